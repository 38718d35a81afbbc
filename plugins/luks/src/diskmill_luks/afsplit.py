"""The anti-forensic splitter of TKS1, as LUKS uses it: a key is blown up into *stripes*, all of which are needed.

LUKS On-Disk Format Specification 1.2.3, section 2.4.
"""

from __future__ import annotations

import hashlib
import os


def _diffuse(block: int, size: int, name: str) -> int:
    """Hash *block* piece by piece, each with its number in front."""
    data = block.to_bytes(size, "big")
    width = hashlib.new(name).digest_size
    parts = []
    for index, at in enumerate(range(0, size, width)):
        piece = data[at : at + width]
        parts.append(hashlib.new(name, index.to_bytes(4, "big") + piece).digest()[: len(piece)])
    return int.from_bytes(b"".join(parts), "big")


def split(key: bytes | bytearray, stripes: int, name: str) -> bytearray:
    """*key* as ``stripes * len(key)`` bytes; *name* is the hash."""
    size = len(key)
    material = bytearray(os.urandom((stripes - 1) * size))
    material += (_fold(material, stripes - 1, size, name) ^ int.from_bytes(key, "big")).to_bytes(size, "big")
    return material


def merge(material: bytes | bytearray | memoryview, stripes: int, size: int, name: str) -> bytearray:
    """The key of *size* bytes that :func:`split` made *material* of."""
    last = int.from_bytes(material[(stripes - 1) * size : stripes * size], "big")
    return bytearray((_fold(material, stripes - 1, size, name) ^ last).to_bytes(size, "big"))


def _fold(material: bytes | bytearray | memoryview, stripes: int, size: int, name: str) -> int:
    state = 0
    for at in range(0, stripes * size, size):
        state = _diffuse(state ^ int.from_bytes(material[at : at + size], "big"), size, name)
    return state
