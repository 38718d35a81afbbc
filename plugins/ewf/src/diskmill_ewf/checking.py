"""Checking an EWF image: every chunk, and the hashes of the disk. Source: see :mod:`.c_ewf`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from diskmill.contract.results import CheckResult
from diskmill.errors import ImageError
from diskmill.sizes import MiB

if TYPE_CHECKING:
    from .image import EwfImage


def check_ewf(image: EwfImage) -> CheckResult:
    """Tables, by their checksums; chunks, by reading them; the disk, by its hashes."""
    result = CheckResult()
    for table in image.tables:
        for copy in (table, table.mirror):
            if copy is not None and copy.summed and not copy.sound():
                result.found("corruption", f"{copy.section.place}: the checksum of its entries is wrong")
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in image.hashes}
    step = min(image.chunk_size, MiB)
    buffer, whole = bytearray(step), image.held == image.size
    if not whole:
        result.found("corruption", f"no table has a chunk for guest bytes {image.held} to {image.size}")
    for at in range(0, image.held, step):
        part = memoryview(buffer)[: image.held - at]
        try:
            image.read_into(at, part)
        except ImageError as error:
            result.found("corruption", ": ".join(text for text in (error.place, error.cause) if text))
            whole = False
        for one in hashes.values():
            one.update(part)
    for name, expected in image.hashes.items() if whole else ():
        if hashes[name].digest() != expected:
            result.found("corruption", f"the disk's {name.upper()} is {hashes[name].hexdigest()}, not {expected.hex()}")
    return result
