"""Manifests: the digests of the files in a package. Source: DMTF DSP0243, section 5.3."""

from __future__ import annotations

import hashlib
import re

from diskmill.contract.node import Image, Node
from diskmill.contract.results import CheckResult, Finding
from diskmill.errors import ImageError
from diskmill.sizes import MiB

from .archive import Entry, entries, is_archive

_LINE = re.compile(r"(SHA1|SHA256|SHA512) ?\((.+)\) ?= ?([0-9a-fA-F]+)")
_MOST = MiB


def check_ova(image: Image) -> CheckResult:
    """Hold each file against the manifest; without one there is nothing to be found."""
    result = CheckResult()
    if not is_archive(image.file):
        return result
    found = {entry.name: entry for entry in entries(image.file, image.name)}
    manifest = next((entry for name, entry in found.items() if name.endswith(".mf")), None)
    if manifest is None:
        return result
    for algorithm, name, digest in _manifest(image, manifest):
        entry = found.get(name)
        if entry is None:
            text = f"the manifest names '{name}', which is not there"
        elif digest_of(image.file, entry.offset, entry.size, algorithm) != digest.lower():
            text = f"'{name}' is not what the manifest says: its {algorithm} differs"
        else:
            continue
        result.corruptions += 1
        result.findings.append(Finding("corruption", text))
    return result


def _manifest(image: Image, entry: Entry) -> list[tuple[str, str, str]]:
    if entry.size > _MOST:
        raise ImageError(f"its manifest has {entry.size} bytes", file=image.name)
    text = image.file.read(entry.offset, entry.size).decode("utf-8", "surrogateescape")
    lines = [_LINE.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    if None in lines:
        raise ImageError("its manifest has lines that are no digests", file=image.name)
    return [(line[1].lower(), line[2], line[3]) for line in lines if line is not None]


def digest_of(file: Node, offset: int, size: int, algorithm: str = "sha256") -> str:
    """The digest of *size* bytes of *file* from *offset* on."""
    made = hashlib.new(algorithm)
    buffer = bytearray(min(size, MiB))
    view = memoryview(buffer)
    for at in range(offset, offset + size, MiB):
        piece = view[: offset + size - at]
        file.read_into(at, piece)
        made.update(piece)
    return made.hexdigest()
