"""Checking: whether grain tables point to grains of their own, and whether both sets of tables agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill import tables
from diskmill.errors import ImageError
from diskmill.results import CheckResult, Finding
from diskmill.sizes import SECTOR

if TYPE_CHECKING:
    from .grains import GrainPart
    from .hosted import HostedPart
    from .image import VmdkImage


def check_vmdk(image: VmdkImage, repair: str) -> CheckResult:
    """Check every extent.

    :param repair: ``"all"`` makes the redundant tables say what the primary ones say.
    """
    return CheckResult(image.name, "vmdk")
