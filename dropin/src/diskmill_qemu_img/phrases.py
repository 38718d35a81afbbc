"""Phrases of qemu-img's messages that programs search for, in the drop-in's messages: see docs/callers.md.

All other words stay diskmill's own, and a message stays one line.
"""

from __future__ import annotations

import re

from diskmill.errors import DiskmillError, LockedError, StorageError

_PHRASES = (
    (r"'[^']*': format '([^']+)' does not support checks", r"This image format does not support checks ('\1')"),
    (r"unknown format '([^']*)'", r"Unknown file format '\1', Unknown driver '\1'"),
    (r"unknown protocol '([^']*)'", r"Unknown protocol '\1'"),
    (r"('[^']*'): needs features that are not supported: ", r"Could not open \1: Unsupported qcow2 feature(s): "),
    (
        r"('[^']*'): not an? (\w+)\b",
        lambda match: f"Could not open {match[1]}: Image is not in {match[2].lower()} format",
    ),
    (r"the image has no backing image", "Image does not have a backing file"),
    (r"format '([^']*)' does not support compression", r"Compression not supported for this file format ('\1')"),
    (r"format '([^']*)' has no internal snapshots", r"Block driver does not support snapshots ('\1')"),
    (r"a new image needs a size", "Image creation needs a size parameter"),
    (r"has no option '([^']*)'", r"has no option '\1' (Invalid parameter '\1')"),
    (r"command not found: '([^']*)'", r"Command not found: \1"),
    (r": is another process using the image", ". Is another process using the image"),
)
_NEEDED = re.compile(r"needed as the backing file of ('.*')$", re.DOTALL)


def message(error: DiskmillError) -> str:
    """What the drop-in says of *error*."""
    text = str(error)
    if isinstance(error, StorageError) and error.file is not None:
        needed = _NEEDED.match(error.place or "")
        if needed:
            text = f"Could not open {needed[1]}: Could not open backing file: Could not open {_without_place(error)}"
        elif error.place is None and (error.errno or isinstance(error, LockedError)):
            text = f"Could not open {text}"
    for pattern, phrase in _PHRASES:
        text = re.sub(pattern, phrase, text, count=1)
    return text


def _without_place(error: StorageError) -> str:
    return str(StorageError(error.cause, file=error.file))
