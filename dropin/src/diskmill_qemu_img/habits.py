"""What callers of qemu-img take for granted of images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from diskmill.contract.options import Option
from diskmill.errors import printable
from diskmill.opening.context import Habits


class QemuHabits(Habits):
    """qemu-img's: it takes bytes as they are, and leaves it to the user to know better."""

    archives_are_bytes = True
    anything_is_a_disk = True
    all_extents_are_there = True
    devices_are_there = True
    dash_is_a_file = True
    digests_are_a_file = True
    incompressible_is_plain = True

    @property
    def idle_options(self) -> Sequence[Option]:
        """What is for the file: qemu-img takes it with every format, though a file that begins empty has nothing to
        claim space for, and the hint means something on XFS only."""
        return (
            Option("preallocation", "str", "claim space for an empty file", choices=("off", "falloc", "full")),
            Option("extent_size_hint", "size", "how much space the file system shall claim at once"),
        )

    def tell_guess(self, name: str, warn: Callable[[str], None]) -> None:
        """In three lines, without the program's name in front, and with ``-q``, too."""
        sys.stdout.flush()
        sys.stderr.write(
            f"WARNING: Image format was not specified for '{printable(name)}' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will "
            "be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n"
        )
        sys.stderr.flush()
