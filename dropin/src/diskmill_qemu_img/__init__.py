"""The ``qemu-img`` executable: the ``diskmill`` command under the name, and with the habits, that callers know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from diskmill_cli import __version__
from diskmill_cli.main import main as run
from diskmill_cli.session import Session

if TYPE_CHECKING:
    from diskmill.contract.results import Creation
    from diskmill.errors import DiskmillError
    from diskmill.opening.context import Habits

FOLLOWS = "7.2.0"
"""The release of qemu-img whose commands, options and outputs these are; callers look for it in ``--version``."""


class QemuImg(Session):
    """Messages, trust, outputs and versions as qemu-img has them."""

    def __init__(self) -> None:
        super().__init__("qemu-img", trust="anything", overwrite="in-place", plain=True)
        self.count_includes_skipped = True

    @property
    def version(self) -> str:
        return f"version {FOLLOWS} (diskmill {__version__})"

    def habits(self) -> Habits:
        from .habits import QemuHabits

        return QemuHabits()

    def creation_words(self, made: Creation, given: Mapping[str, str]) -> Iterator[str]:
        """The options, order and spelling of the release that is followed."""
        from .formatting import words

        return words(made, given)

    def message(self, error: DiskmillError) -> str:
        """The phrases in it that programs search for."""
        from .phrases import message

        return message(error)


def main() -> None:
    """The console script ``qemu-img``."""
    run(QemuImg())
