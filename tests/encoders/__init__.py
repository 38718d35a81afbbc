"""Makers of images in the formats that diskmill only reads, written from the formats' specifications.

Each module has `encode(source, size, out, ...)`, which makes an image of the first `size` bytes of the file `source`,
and `VARIANTS`, the kinds of image that tests look at. As a program (`python -m tests.encoders.dmg SOURCE IMAGE`), it
makes the image for the benchmark.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping
from typing import BinaryIO

Variants = Mapping[str, Callable[[bytes], bytes]]


def in_memory(encode: Callable[..., None], **choices: object) -> Callable[[bytes], bytes]:
    """A maker of images that takes the disk and gives the image, both as bytes."""

    def make(data: bytes) -> bytes:
        out = io.BytesIO()
        encode(io.BytesIO(data), len(data), out, **choices)
        return out.getvalue()

    return make


def main(encode: Callable[[BinaryIO, int, BinaryIO], None]) -> None:
    """The program: the names of source and image are its arguments."""
    with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb+") as out:
        encode(source, os.fstat(source.fileno()).st_size, out)
