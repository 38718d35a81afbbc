"""``vmdk``: VMware's virtual disk images, in one file or many.

This module is what the entry point names: it stays light, and imports the rest of the driver when it is called.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diskmill.contract.requests import CreateRequest, OpenRequest
    from diskmill.contract.results import CheckResult

    from .image import VmdkImage

SUBFORMATS = ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized")
"""What can be created; many more create types can be read."""

# Comments and blank lines, then the first entry of a descriptor's header section.
_DESCRIPTOR = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:[ \t]*(?:#[^\r\n]*|encoding[ \t]*=[^\r\n]*)?[\r\n])*[ \t]*version[ \t]*=[ \t]*[0-9]",
    re.IGNORECASE,
)


class VmdkDriver(FormatDriver):
    """VMware's virtual disks."""

    contract = 1
    name = "vmdk"
    title = "VMware virtual disks: Workstation, ESXi, OVF packages"
    capabilities = frozenset(
        {"create", "write", "backing", "compression", "zero", "check", "repair", "resize", "stream", "pipe", "forward"}
    )
    options = (
        Option("subformat", "str", "how the disk is laid out in files", default="monolithicSparse", choices=SUBFORMATS),
        Option(
            "adapter_type",
            "str",
            "the virtual adapter that the disk is attached to",
            default="ide",
            choices=("ide", "lsilogic", "buslogic", "legacyESX"),
        ),
        Option("hwversion", "str", "the virtual hardware's version", versions="not with compat6"),
        Option("toolsversion", "str", "the version of VMware's guest tools"),
        Option("compat6", "bool", "virtual hardware version 6", default=False),
        Option("zeroed_grain", "bool", "mark zeros in the grain tables (sparse subformats)", default=False),
        Option("compression_level", "int", "1 to 9 of zlib (streamOptimized); by default a fast one"),
        Option(
            "preallocation",
            "str",
            "how space for new parts of flat extents is claimed",
            default="off",
            choices=("off", "metadata", "falloc", "full"),
            when=("resize",),
        ),
        Option(
            "scan",
            "bool",
            "find the grains of a streamOptimized image by their markers, its tables unread",
            default=False,
            when=("open",),
        ),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """Two magics, and descriptors that begin as descriptors do."""
        if data[:4] in (b"KDMV", b"COWD"):
            return 100
        return 100 if _DESCRIPTOR.match(data) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> VmdkImage:
        """A descriptor, or an extent that may hold one."""
        from .opening import open_vmdk

        return open_vmdk(self, request)

    def goes_forward(self, options: Mapping[str, Any], *, foreseen: bool) -> bool:
        """As its name says."""
        return bool(options["subformat"] == "streamOptimized")

    @hookimpl
    def create(self, request: CreateRequest) -> VmdkImage:
        """A new disk of one of the :data:`SUBFORMATS`."""
        from .creating import create_vmdk

        return create_vmdk(self, request)

    @hookimpl
    def check(self, image: VmdkImage, repair: str) -> CheckResult:
        """Every table of every sparse extent, and the redundant tables."""
        from .checking import check_vmdk

        return check_vmdk(image, repair)

    @hookimpl
    def preflight(self, image: VmdkImage, action: str, options: Mapping[str, Any]) -> bool | None:
        """Whether it can be emptied; and read, if it does not stand on the parent that it was made for."""
        if action == "empty":
            image.refuse_emptying()
        elif action == "read":
            image.refuse_reading()
        else:
            return None
        return True

    @hookimpl
    def empty(self, image: VmdkImage) -> bool:
        """An overlay that was committed no longer needs its grains."""
        return image.empty()

    @hookimpl
    def resize(self, image: VmdkImage, size: int, preallocation: str) -> bool:
        """Make the last extent longer, and add extents to a disk in pieces."""
        from .resizing import resize_vmdk

        return resize_vmdk(image, size, preallocation)


driver = VmdkDriver()
