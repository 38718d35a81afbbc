"""Phrases of qemu-img's messages that programs search for, in the drop-in's messages: see docs/callers.md.

All other words stay diskmill's own, and a message stays one line.
"""

from __future__ import annotations

import re

from diskmill.errors import DiskmillError, printable

_LOCKED = 'Failed to get "write" lock. Is another process using the image?'
_PHRASES = (
    (r"'[^']*': format '([^']+)' does not support checks", r"This image format does not support checks ('\1')"),
    (r"unknown format '([^']*)'", r"Unknown file format '\1', Unknown driver '\1'"),
    (r"unknown protocol '([^']*)'", r"Unknown protocol '\1'"),
    (r"needs features that are not supported: ", "Unsupported qcow2 feature(s): "),
    (r"not a qcow2 image", "Image is not in qcow2 format"),
    (
        r"('[^']*'): the output is also an input",
        r'Could not open \1: the output is also an input (Failed to get "write" lock. '
        "Is another process using the image?)",
    ),
    (r"invalid parameter '(=[^']*)'$", r"Invalid parameter '\1'"),
    (r"there is no '(snapshot\.[^']*)'$", r"Invalid parameter '\1'"),
    (r"the image has no backing image", "Image does not have a backing file"),
    (r"format '([^']*)' does not support compression", r"Compression not supported for this file format ('\1')"),
    (r"format '([^']*)' has no internal snapshots", r"Block driver does not support snapshots ('\1')"),
    (r"a new image needs a size", "Image creation needs a size parameter"),
    (r"has no option '([^']*)'", r"has no option '\1' (Invalid parameter '\1')"),
    (r"there is no snapshot ('[^']*')$", r"there is no snapshot \1 (No such file or directory)"),
    (r"'json:(.*)' cannot name a new image", r"Unknown protocol 'json': 'json:\1' cannot name a new image"),
    (r"command not found: '([^']*)'", r"Command not found: \1"),
    (r": is another process using the image", ". Is another process using the image"),
)
_BACKING = "needed as the backing file of "


def message(error: DiskmillError) -> str:
    """What the drop-in says of *error*."""
    text = str(error)
    if error.opening is not None:
        if (error.place or "").startswith(_BACKING):
            text = f"Could not open backing file: Could not open {type(error)(error.cause, file=error.file)}"
        elif error.file == error.opening:
            text = ": ".join(part for part in (error.place, error.cause) if part)
        text = printable(f"Could not open '{error.opening}': {text}")
    for pattern, phrase in _PHRASES:
        text = re.sub(pattern, phrase, text, count=1)
    return text
