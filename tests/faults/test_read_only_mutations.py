"""Damaged images of formats that are only read, or written once: data or one clear error, in bounded time and memory.

Where checksums would give damage away, they are made right again, so that what is behind them is looked at too.
"""

from __future__ import annotations

import plistlib
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import diskmill
import pytest
from diskmill.sizes import KiB
from encoders import bochs, cloop, dmg, ewf, in_memory, sparseimage, vma
from formats import Machine, fragments
from mutations import Region, mutants, withstand

COUNT = 2000


def disk(size: int = 128 * KiB) -> bytes:
    data = bytearray(size)
    for offset, part in fragments(3, size, 16 * KiB):
        data[offset : offset + len(part)] = part
    return bytes(data)


DISK = disk()


def survived(format: str, images: Iterator[tuple[str, bytes]]) -> None:
    counts = withstand(format, images)
    assert counts["read"] > COUNT // 20
    assert counts["refused"] > COUNT // 20


@pytest.mark.parametrize("block", [4096, 128 * KiB])
def test_cloop(block: int) -> None:
    data = in_memory(cloop.encode, block=block)(DISK)
    table = 8 + 8 * (len(DISK) // block + 2)
    regions = [(0, 32), (128, 8), (128, table), (128 + table, 200)]
    survived("cloop", mutants(data, regions, seed=block, count=COUNT // 2))


@pytest.mark.parametrize("version", [1, 2])
def test_bochs(version: int) -> None:
    data = in_memory(bochs.encode, extent=4096, version=version, seed=1)(DISK)
    catalog = len(DISK) // 4096 * 4
    regions = [(0, 64), (64, 40), (64, 40), (512, catalog), (512 + catalog, 16)]
    survived("bochs", mutants(data, regions, seed=version, count=COUNT // 2))


def _dmg(**choices: object) -> bytes:
    return in_memory(dmg.encode, types=dmg.EVERY, chunk=40, borders=(1, 200), **choices)(DISK)


def test_dmg_trailers() -> None:
    data = _dmg()
    end = len(data) - 512
    regions = [(end, 80), (end + 0xD8, 16), (end + 488, 12), (end, 512)]
    survived("dmg", mutants(data, regions, seed=1, count=COUNT // 2))


def test_dmg_property_lists() -> None:
    data = _dmg()
    (offset,) = struct.unpack_from(">Q", data, len(data) - 512 + 0xD8)
    survived("dmg", mutants(data, [(offset, len(data) - 512 - offset)], seed=2, count=COUNT // 2))


def test_dmg_resource_forks() -> None:
    data = _dmg(fork=True)
    offset, length = struct.unpack_from(">QQ", data, len(data) - 512 + 0x28)
    where = struct.unpack_from(">I", data, offset + 4)[0]
    regions: list[Region] = [(offset, 16), (offset + where, length - where), (offset + 256, length - 256)]
    survived("dmg", mutants(data, regions, seed=3, count=COUNT // 2))


def test_dmg_block_tables() -> None:
    """Behind base64 and XML, which damage seldom leaves readable."""
    image = _dmg()
    resources = dmg.resources_of(image)
    chance = random.Random(4)

    def damaged() -> Iterator[tuple[str, bytes]]:
        for number in range(COUNT):
            index = chance.randrange(len(resources))
            table = resources[index]
            regions = [(0, 204), (204, len(table) - 204), (204, len(table) - 204)]
            ((what, changed),) = mutants(table, regions, seed=number, count=1)
            yield what, dmg.with_resources(image, [*resources[:index], changed, *resources[index + 1 :]])

    survived("dmg", damaged())


def test_dmg_payloads() -> None:
    data = _dmg()
    (offset,) = struct.unpack_from(">Q", data, len(data) - 512 + 0xD8)
    counts = withstand("dmg", mutants(data, [(0, offset)], seed=5, count=COUNT // 2))
    assert sum(counts.values()) == COUNT // 2


# -- formats with checksums, and their cousins -----------------------------------------------------------------------


def mended(images: Iterator[tuple[str, bytes]], mend: Callable[[bytes], bytes]) -> Iterator[tuple[str, bytes]]:
    """*images*, of which three in four have their checksums made right by *mend*."""
    for number, (what, data) in enumerate(images):
        yield what, mend(data) if number % 4 else data


@pytest.mark.parametrize("zeros", ["fill", "skip"])
def test_sparse(zeros: str) -> None:
    machine = Machine()
    machine.put("raw", DISK)
    diskmill.convert(
        ["memory:raw"],
        "memory:out",
        format="raw",
        output_format="sparse",
        options={"zeros": zeros, "block_size": 1024},
        context=machine.context,
    )
    data = bytes(machine.files["out"])
    at, heads = 28, []
    while at < len(data):
        heads.append((at, 16))
        at += struct.unpack_from("<I", data, at + 8)[0]
    crc = struct.pack("<HHIII", 0xCAC4, 0, 0, 16, zlib.crc32(DISK))
    data = data[:20] + struct.pack("<I", len(heads) + 1) + data[24:] + crc
    regions = [(0, 28), *heads, (len(data) - 16, 16)]
    survived("sparse", mutants(data, regions, seed=len(zeros), count=COUNT // 2))


def _vma_summed(data: bytes) -> bytes:
    """*data* with right checksums of the header, and of each extent that still begins where one began."""
    size = min(int.from_bytes(data[56:60], "big"), len(data))
    if len(data) >= 60:
        data = vma.summed(data[:32] + bytes(16) + data[48:size], 32) + data[size:]
    for at in _VMA_EXTENTS:
        if len(data) >= at + 512:
            data = (
                data[:at] + vma.summed(data[at : at + 24] + bytes(16) + data[at + 40 : at + 512], 24) + data[at + 512 :]
            )
    return data


_VMA = vma.archive({"drive-scsi0": DISK * 31}, seed=1)
_VMA_EXTENTS = [at for at in range(0, len(_VMA), 512) if _VMA.startswith(b"VMAE", at)]


def test_vma() -> None:
    blobs = 4096 + 256 * 32
    regions = [(0, 64), (2044, 16), (4096 + 32, 32), (blobs, 64), *((at, 128) for at in _VMA_EXTENTS)]
    assert len(_VMA_EXTENTS) > 1
    survived("vma", mended(mutants(_VMA, regions, seed=1, count=COUNT // 4), _vma_summed))


def _ewf_places(data: bytes) -> list[tuple[int, int]]:
    """(offset, end) of everything in the image *data* that its checksum follows, and that is no chunk."""
    found, at = [], 13
    while True:
        kind, following = struct.unpack_from("<16sQ", data, at)
        name = kind.rstrip(b"\0")
        found.append((at, at + 72))
        if name in (b"table", b"table2"):
            found.append((at + 76, at + 96))
            if b"sectors" in data:  # else chunks follow, and no checksum
                found.append((at + 100, following - 4))
        elif name not in (b"sectors", b"done"):
            found.append((at + 76, following - 4))
        if name == b"done":
            return found
        at = following


@pytest.mark.parametrize("choices", [{"entries": 2, "base": True}, {"smart": True}, {"sectors": 5000, "level": 0}])
def test_ewf(choices: dict[str, int]) -> None:
    data = in_memory(ewf.encode, **choices)(DISK)
    places = _ewf_places(data)

    def summed(mutant: bytes) -> bytes:
        copy = bytearray(mutant)
        for start, end in places:
            if end + 4 <= len(copy):
                copy[end : end + 4] = struct.pack("<I", zlib.adler32(copy[start:end]))
        return bytes(copy)

    regions = [(0, 13), *((start, min(end - start, 40)) for start, end in places)]
    survived("ewf", mended(mutants(data, regions, seed=len(places), count=COUNT // 2), summed))


@pytest.mark.parametrize("band", [512, 8192])
def test_sparseimage(band: int) -> None:
    disk = bytes(number % 251 + 1 for number in range(1 << 10)) * 700
    data = in_memory(sparseimage.encode, band=band, seed=1)(disk)
    nodes = [at for at in range(0, len(data), 512) if data.startswith(b"sprs", at)]
    assert len(nodes) == 2 if band == 512 else 1
    regions = [(at, 128) for at in nodes]
    survived("sparseimage", mutants(data, regions, seed=band, count=COUNT // 4))


def test_sparse_bundles() -> None:
    plist = plistlib.dumps(
        {"band-size": 8192, "diskimage-bundle-type": "com.apple.diskimage.sparsebundle", "size": 65536}
    )
    counts = withstand("sparseimage", mutants(plist, [(0, len(plist)), (180, 160)], seed=1, count=COUNT // 4))
    assert counts["refused"] > COUNT // 20
