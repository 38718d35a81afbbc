"""One module for each command: its options as data, and what it does with them."""

NAMES = (
    "check",
    "compare",
    "convert",
    "create",
    "drivers",
    "info",
    "map",
    "measure",
)
"""Every command, which is also the name of its module."""
