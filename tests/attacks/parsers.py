"""Small files that ask their parser to build much: XML, JSON, logs, key derivations.

Each function writes one image to the path that it is given, in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import vhdx_samples

KiB, MiB = 1 << 10, 1 << 20
Attack = tuple[str, Callable[[Path], None]]

# XML, of Parallels bundles (4 MiB are read) and of DMG's property lists (16 MiB)


def _documents(root: bytes, size: int, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Documents of up to *size* bytes, whose element *root* begins with what is in *body*."""
    half = size // 2
    end = b"</" + root + b">"

    def document(inner: bytes, attributes: bytes = b"", before: bytes = b"") -> bytes:
        return b"<?xml version='1.0'?>" + before + b"<" + root + attributes + b">" + body + inner + end

    name = b"n" * (120 * KiB)
    yield "long namespace", document(b"<a/>" * 20_000, b" xmlns='" + name + b"'")
    yield "long prefix", document(b"<p:a/>" * 20_000, b" xmlns:p='" + name + b"'")
    yield "lines of text", document(b"\n" * (size - 2 * KiB))
    yield "lines between tags", document(b"\n<a/>" * 99_000 + b"\n" * half)
    yield "text after each tag", document((b"x" * 30 + b"<a/>") * 99_000)
    yield "wide characters", document("\U0001f600".encode() + b"x" * (size - 2 * KiB))
    yield "references", document(b"&#65;" * (size // 6))
    yield "as many tags as may be", document(b"<a/>" * 99_000)
    yield "many tags", document(b"<a/>" * (size // 5))
    yield "an encoding of Python's", document(b"", before=b"").replace(b"?>", b" encoding='unicode_escape'?>", 1)
    yield "many names", document(b"".join(b"<a%d/>" % number for number in range(99_000)))
    yield "deep", document(b"<a>" * 90_000)
    yield "deep and closed", document(b"<a>" * 49_000 + b"</a>" * 49_000)
    yield "many attributes", document(b"<a" + b"".join(b" a%d=''" % n for n in range(size // 14)) + b"/>")
    yield "comments", document(b"x<!---->" * 90_000)
    yield "sections", document(b"<![CDATA[x]]>" * 90_000)
    entity = b'<!DOCTYPE x [<!ENTITY a "' + b"a" * half + b'">]>'
    yield "entity", document(b"&a;" * 10_000, before=entity)
    defaults = b"<!DOCTYPE x [<!ATTLIST a b CDATA '" + b"a" * half + b"'>]>"
    yield "default attribute", document(b"<a/>" * 90_000, before=defaults)


def _parallels() -> Iterator[Attack]:
    head = b"<Disk_Parameters><Disk_size>0</Disk_size><Padding>0</Padding></Disk_Parameters>"
    for name, document in _lazy("Parallels_disk_image", 3 * MiB + 900 * KiB, head):
        yield f"parallels xml: {name}", partial(_write, document=document)


def _dmg() -> Iterator[Attack]:
    for name, document in _lazy("plist", 15 * MiB + 900 * KiB, b""):
        yield f"dmg plist: {name}", partial(_plist, document=document)
    data = b"<plist><dict><key>resource-fork</key><dict><key>blkx</key><array>%s</array></dict></dict></plist>"
    one = b"<dict><key>Data</key><data>%s</data></dict>"
    yield "dmg plist: one large table", partial(_plist, document=lambda: data % (one % (b"A" * (15 * MiB))))
    yield "dmg plist: small tables", partial(_plist, document=lambda: data % ((one % b"AAAA") * 14_000))
    empty = b64encode(b"mish" + struct.pack(">I", 1) + bytes(196))
    yield "dmg plist: tables without chunks", partial(_plist, document=lambda: data % ((one % empty) * 14_000))
    yield "dmg fork: tables without chunks", partial(_fork, each=b"mish" + struct.pack(">I", 1) + bytes(196))
    yield "dmg fork: tables in one place", partial(_fork, each=b"", count=65535)


def _lazy(root: str, size: int, body: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """What :func:`_documents` gives, made when it is asked for."""
    for number, (name, _) in enumerate(_documents(root.encode(), 4 * KiB, body)):

        def make(number: int = number) -> bytes:
            return next(text for at, (_, text) in enumerate(_documents(root.encode(), size, body)) if at == number)

        yield name, make


def _write(path: Path, *, document: Callable[[], bytes]) -> None:
    path.write_bytes(document())


def _plist(path: Path, *, document: Callable[[], bytes]) -> None:
    text = document()
    trailer = bytearray(struct.pack(">4sII", b"koly", 4, 512).ljust(512, b"\0"))
    trailer[0xD8:0xE8] = struct.pack(">QQ", 0, len(text))
    trailer[492:500] = struct.pack(">Q", 2048)
    path.write_bytes(text + trailer)


def _fork(path: Path, *, each: bytes, count: int = 60_000) -> None:
    """A resource fork with so many tables: those of no bytes share a place."""
    data = b"".join(struct.pack(">I", len(each)) + each for _ in range(count if each else 1))
    step = 4 + len(each) if each else 0
    references = b"".join(struct.pack(">hHII", 0, 0, 0x50 << 24 | at * step & 0xFFFFFF, 0) for at in range(count))
    types = struct.pack(">H4sHH", 0, b"blkx", count - 1, 10) + references
    head = struct.pack(">IIII", 256, 256 + len(data), len(data), 28 + len(types))
    fork = head.ljust(256, b"\0") + data + head + bytes(8) + struct.pack(">HH", 28, 0) + types
    trailer = bytearray(struct.pack(">4sII", b"koly", 4, 512).ljust(512, b"\0"))
    trailer[0x28:0x38] = struct.pack(">QQ", 0, len(fork))
    trailer[492:500] = struct.pack(">Q", 2048)
    path.write_bytes(fork + trailer)


# LUKS2

_SLOTS_AT, _AREA = 8 * MiB, 512 * KiB


def _luks2(path: Path, *, text: Callable[[int], bytes]) -> None:
    """A LUKS2 header of 4 MiB, both copies with the metadata *text* (of at most so many bytes)."""
    size = 4 * MiB
    metadata = text(size - 4096 - 1)
    with path.open("wb") as file:
        for at, magic in ((0, b"LUKS\xba\xbe"), (size, b"SKUL\xba\xbe")):
            head = struct.pack(">6sHQQ48s32s64s40s48sQ", magic, 2, size, 1, b"", b"sha256", b"", b"0" * 36, b"", at)
            whole = bytearray(head.ljust(4096, b"\0") + metadata).ljust(size, b"\0")
            whole[448:480] = hashlib.sha256(whole).digest()
            file.seek(at)
            file.write(whole)
        file.truncate(_SLOTS_AT + 32 * MiB)


def _metadata(**changes: Any) -> dict[str, Any]:
    """Metadata with 32 key slots, each with *changes*."""
    slot = {
        "type": "luks2",
        "key_size": 64,
        "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
        "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": "AAAAAAAAAAAAAAAAAAAA"},
    }
    slots = {}
    for number in range(32):
        area = {"type": "raw", "offset": str(_SLOTS_AT + number * _AREA), "size": str(_AREA), "key_size": 64}
        slots[str(number)] = {**slot, **changes, "area": {**area, "encryption": "aes-xts-plain64"}}
    segment = {"type": "crypt", "offset": str(24 * MiB), "size": "dynamic", "iv_tweak": "0", "sector_size": 512}
    digest = {"type": "pbkdf2", "keyslots": list(slots), "segments": ["0"], "hash": "sha256", "iterations": 1000}
    cipher = "aes-xts-plain64" if changes.get("key_size", 64) == 64 else "aes-cbc-plain64"
    return {
        "keyslots": slots,
        "tokens": {},
        "segments": {"0": {**segment, "encryption": cipher}},
        "digests": {"0": {**digest, "salt": "AAAAAAAAAAAAAAAAAAAA", "digest": "A" * 44}},
        "config": {"json_size": str(4 * MiB - 4096), "keyslots_size": str(16 * MiB)},
    }


def _with_token(make: Callable[[int], str], length: int) -> bytes:
    """Metadata whose token is the text that *make* gives, of at most so many bytes as there is room for."""
    whole = json.dumps({**_metadata(), "tokens": {"0": {"type": "x", "keyslots": [], "x": "HERE"}}})
    return whole.replace('"HERE"', make(length - len(whole))).encode()


def _luks() -> Iterator[Attack]:
    texts: dict[str, Callable[[int], str]] = {
        "nested 900 deep": lambda room: "[" + ",".join(["[" * 900 + "]" * 900] * (room // 1802)) + "]",
        "nested 40 deep": lambda room: "[" + ",".join(["[" * 40 + "]" * 40] * 200) + "]",
        "nested 100,000 deep": lambda room: "[" * 100_000 + "]" * 100_000,
        "lists": lambda room: "[" + ",".join(["[]"] * (room // 3 - 1)) + "]",
        "objects": lambda room: "[" + ",".join(['{"":{}}'] * (room // 8 - 1)) + "]",
        "names": lambda room: "{" + ",".join(f'"{number:x}":0' for number in range(room // 12)) + "}",
        "fractions": lambda room: "[" + ",".join(["1.5"] * (room // 4 - 1)) + "]",
        "large number": lambda room: "9" * room,
        "wide characters": lambda room: '"\U0001f600' + "x" * (room - 10) + '"',
        "half a character": lambda room: '"\\ud800"',
        "escapes": lambda room: '"' + "\\u0041" * (room // 6 - 1) + '"',
    }
    for name, make in texts.items():
        yield f"luks2 metadata: {name}", partial(_luks2, text=partial(_with_token, make))
    derivation = {"type": "argon2id", "time": 4, "memory": 1 << 20, "cpus": 4, "salt": "AAAAAAAAAAAAAAAAAAAA"}
    changes: dict[str, dict[str, Any]] = {
        "many stripes": {"key_size": 16, "af": {"type": "luks1", "stripes": 32768, "hash": "md5"}},
        "long stripes": {"key_size": 64, "af": {"type": "luks1", "stripes": 8192, "hash": "md5"}},
        "argon2 of 4 TiB": {"kdf": {**derivation, "memory": (1 << 32) - 1}},
        "argon2 without end": {"kdf": {**derivation, "memory": 1024, "time": (1 << 32) - 1}},
    }
    for name, change in changes.items():
        text = partial(_slots, change=change)
        yield f"luks2 key slots: {name}", partial(_luks2, text=text)


def _slots(room: int, *, change: dict[str, Any]) -> bytes:
    return json.dumps(_metadata(**change)).encode()


# VHDX

_GUID = bytes(range(16))


def _vhdx(path: Path, *, log: Callable[[int], Iterator[bytes]], size: int = 32 * MiB) -> None:
    """A VHDX image whose log, of *size* bytes, holds entries that *log* makes."""
    regions = MiB + size
    bat, metadata = regions, regions + MiB
    with path.open("wb") as file:
        file.write(b"vhdxfile")
        for number, at in enumerate(vhdx_samples.HEADERS):
            head = struct.pack(
                "<4sIQ16s16s16sHHIQ", b"head", 0, number + 1, b"f" * 16, b"d" * 16, _GUID, 0, 1, size, MiB
            )
            _put(file, at, head.ljust(4096, b"\0"))
        table = struct.pack("<4sIII", b"regi", 0, 2, 0)
        table += vhdx_samples.BAT + struct.pack("<QII", bat, MiB, 1)
        table += vhdx_samples.METADATA + struct.pack("<QII", metadata, MiB, 1)
        for at in vhdx_samples.REGION_TABLES:
            _put(file, at, table.ljust(65536, b"\0"))
        items = (
            (vhdx_samples.FILE_PARAMETERS, struct.pack("<II", MiB, 0), 4),
            (uuid.UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8").bytes_le, struct.pack("<Q", 8 * MiB), 6),
            (vhdx_samples.LOGICAL_SECTOR, struct.pack("<I", 512), 6),
            (uuid.UUID("CDA348C7-445D-4471-9CC9-E9885251C556").bytes_le, struct.pack("<I", 4096), 6),
            (uuid.UUID("BECA12AB-B2E6-4523-93EF-C309E000C746").bytes_le, b"p" * 16, 6),
        )
        entries, values = struct.pack("<8sHH20s", b"metadata", 0, len(items), b""), b""
        for guid, value, flags in items:
            entries += guid + struct.pack("<IIII", 65536 + len(values), len(value), flags, 0)
            values += value
        file.seek(metadata)
        file.write(entries.ljust(65536, b"\0") + values)
        file.truncate(metadata + MiB)
        file.seek(MiB)
        for entry in log(size):
            file.write(entry)


def _put(file: Any, at: int, structure: bytes) -> None:
    """Write *structure* with its checksum."""
    whole = bytearray(structure)
    vhdx_samples.seal(whole, 0, len(whole))
    file.seek(at)
    file.write(whole)


def _zeros(size: int, *, each: int, step: int, sound: bool = True) -> Iterator[bytes]:
    """Entries of *each* bytes that are full of zero descriptors, for places that are *step* bytes apart."""
    count = (each - 64) // 32
    at = 8 * MiB
    for number in range(size // each):
        sequence = number + 1
        descriptors = b"".join(
            struct.pack("<4sIQQQ", b"zero", 0, 4096, at + index * step, sequence) for index in range(count)
        )
        at += count * step
        head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, each, 0, sequence, count, 0, _GUID, MiB, 64 * MiB)
        whole = bytearray((head + descriptors).ljust(each, b"\0"))
        vhdx_samples.seal(whole, 0, each)
        if not sound:
            whole[4] ^= 1
        yield bytes(whole)


def _vhdx_logs() -> Iterator[Attack]:
    for name, each, step, sound in (
        ("one place", 16 * MiB, 0, True),
        ("neighbours", 16 * MiB, 4096, True),
        ("places apart", 16 * MiB, 8192, True),
        ("small entries", 4096, 8192, True),
        ("wrong checksums", MiB, 8192, False),
        ("small entries with wrong checksums", 4096, 8192, False),
    ):
        log = partial(_zeros, each=each, step=step, sound=sound)
        yield f"vhdx log of zeros: {name}", partial(_vhdx, log=log)


ATTACKS: list[Attack] = [*_parallels(), *_dmg(), *_luks(), *_vhdx_logs()]
"""(name, what writes it to a path)."""
