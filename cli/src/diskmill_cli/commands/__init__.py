"""One module for each command: its options as data, and what it does with them."""

NAMES = (
    "amend",
    "bench",
    "bitmap",
    "check",
    "commit",
    "compare",
    "convert",
    "create",
    "dd",
    "digest",
    "drivers",
    "info",
    "map",
    "measure",
    "rebase",
    "resize",
    "snapshot",
    "sync",
)
"""Every command that comes with the program, which is also the name of its module."""

OWN = ("digest", "sync")
"""Those that qemu-img does not have, nor the drop-in."""
