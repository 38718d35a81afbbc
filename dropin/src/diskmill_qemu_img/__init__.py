"""The ``qemu-img`` executable: the ``diskmill`` command under the name, and with the habits, that callers know."""

from __future__ import annotations

from diskmill_cli import __version__
from diskmill_cli.main import main as run
from diskmill_cli.session import Session

FOLLOWS = "7.2.0"
"""The release of qemu-img whose commands, options and outputs these are; callers look for it in ``--version``."""


class QemuImg(Session):
    """Messages, trust and versions as qemu-img has them."""

    def __init__(self) -> None:
        super().__init__("qemu-img", trust="anything", plain=True)

    @property
    def version(self) -> str:
        return f"version {FOLLOWS} (diskmill {__version__})"


def main() -> None:
    """The console script ``qemu-img``."""
    run(QemuImg())
