"""The ``qemu-img`` executable: the ``diskmill`` command under the name, and with the habits, that callers know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diskmill_cli import __version__
from diskmill_cli.main import main as run
from diskmill_cli.session import Session

if TYPE_CHECKING:
    from diskmill.options import Option

FOLLOWS = "7.2.0"
"""The release of qemu-img whose commands, options and outputs these are; callers look for it in ``--version``."""


class QemuImg(Session):
    """Messages, trust, outputs and versions as qemu-img has them."""

    def __init__(self) -> None:
        super().__init__("qemu-img", trust="anything", overwrite="in-place", plain=True)

    @property
    def version(self) -> str:
        return f"version {FOLLOWS} (diskmill {__version__})"

    def idle_options(self) -> Sequence[Option]:
        """What is for the file: qemu-img takes it with every format, though a file that begins empty has nothing to
        claim space for, and the hint means something on XFS only."""
        from diskmill.options import Option

        return (
            Option("preallocation", "str", "claim space for an empty file", choices=("off", "falloc", "full")),
            Option("extent_size_hint", "size", "how much space the file system shall claim at once"),
        )


def main() -> None:
    """The console script ``qemu-img``."""
    run(QemuImg())
