"""The ``qemu-img`` executable: the ``diskmill`` command under the name, and with the habits, that callers know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from diskmill_cli import __version__
from diskmill_cli.main import main as run
from diskmill_cli.session import Session

if TYPE_CHECKING:
    from diskmill.contract.options import Option
    from diskmill.contract.results import Creation
    from diskmill.errors import DiskmillError

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

    @property
    def guessed(self) -> Callable[[str], None]:
        """qemu-img tells it in three lines, without its name in front, and with ``-q``, too."""
        return _tell_guess

    def idle_options(self) -> Sequence[Option]:
        """What is for the file: qemu-img takes it with every format, though a file that begins empty has nothing to
        claim space for, and the hint means something on XFS only."""
        from diskmill.contract.options import Option

        return (
            Option("preallocation", "str", "claim space for an empty file", choices=("off", "falloc", "full")),
            Option("extent_size_hint", "size", "how much space the file system shall claim at once"),
        )

    def creation_words(self, made: Creation, given: Mapping[str, str]) -> Iterator[str]:
        """The options, order and spelling of the release that is followed."""
        from .formatting import words

        return words(made, given)

    def message(self, error: DiskmillError) -> str:
        """The phrases in it that programs search for."""
        from .phrases import message

        return message(error)


def _tell_guess(name: str) -> None:
    import sys

    from diskmill.errors import printable

    sys.stdout.flush()
    sys.stderr.write(
        f"WARNING: Image format was not specified for '{printable(name)}' and probing guessed raw.\n"
        "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be "
        "restricted.\n"
        "         Specify the 'raw' format explicitly to remove the restrictions.\n"
    )
    sys.stderr.flush()


def main() -> None:
    """The console script ``qemu-img``."""
    run(QemuImg())
