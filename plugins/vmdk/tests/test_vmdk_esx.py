"""Snapshots of ESX, COWD (vmfsSparse) and seSparse, alone and on their parents: qemu-img reads them too."""

from __future__ import annotations

import random
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import ImageError, UnsupportedError
from esx import SECTOR, SESPARSE_GRAIN, cowd, sesparse
from samples import KiB, MiB
from tools import assert_identical, qemu_img, qemu_img_json, run, tool

TEXT = """# Disk DescriptorFile
version=1
encoding="UTF-8"
CID={cid:08x}
parentCID={parent:08x}
isNativeSnapshot="no"
createType="{type}"
{hint}
# Extent description
RW {sectors} {extent} "{file}"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.virtualHWVersion = "14"
"""
SIZE = 17 * MiB + 3 * SECTOR
NONE = 0xFFFFFFFF


def describe(path: Path, type: str, extent: str, file: str, *, cid: int, parent: int = NONE, hint: str = "") -> Path:
    hint = f'parentFileNameHint="{hint}"' if hint else ""
    values = {"type": type, "extent": extent, "file": file, "cid": cid, "parent": parent, "hint": hint}
    path.write_text(TEXT.format(sectors=SIZE // SECTOR, **values))
    return path


def drawn(seed: int, grain: int) -> dict[int, bytes]:
    """Grains of *grain* bytes: here and there, in runs, the first and the last."""
    chance = random.Random(seed)
    last = (SIZE - 1) // grain
    numbers = {0, last, 4095, 4096} | {chance.randrange(last) for _ in range(30)}
    for _ in range(4):
        start = chance.randrange(last - 40)
        numbers |= set(range(start, start + 40))
    return {number: chance.randbytes(grain) for number in sorted(numbers) if number <= last}


def laid_over(below: bytes, grains: dict[int, bytes | None], grain: int) -> bytes:
    result = bytearray(below)
    for number, data in grains.items():
        end = min((number + 1) * grain, len(result))
        result[number * grain : end] = (data or bytes(grain))[: end - number * grain]
    return bytes(result)


def extent(kind: str, seed: int, grain: int = SECTOR) -> tuple[bytes, dict[int, bytes | None], int]:
    """The file of an extent, its grains, and their size in bytes."""
    grains: dict[int, bytes | None]
    if kind == "VMFSSPARSE":
        plain = drawn(seed, grain)
        return cowd(SIZE // SECTOR, plain, grain=grain // SECTOR, seed=seed), dict(plain), grain
    grains = dict(drawn(seed, SESPARSE_GRAIN))
    for number in list(grains)[10:20]:
        grains[number] = None
    return sesparse(SIZE // SECTOR, grains, seed=seed), grains, SESPARSE_GRAIN


KINDS = [("VMFSSPARSE", "vmfsSparse", SECTOR), ("VMFSSPARSE", "vmfsSparse", 64 * KiB), ("SESPARSE", "seSparse", SECTOR)]


@pytest.mark.parametrize(("kind", "type", "grain"), KINDS)
def test_an_extent_alone(kind: str, type: str, grain: int, tmp_path: Path) -> None:
    data, grains, unit = extent(kind, 1, grain)
    (tmp_path / "delta.vmdk").write_bytes(data)
    path = describe(tmp_path / "disk.vmdk", type, kind, "delta.vmdk", cid=1)
    raw = tmp_path / "raw"
    raw.write_bytes(laid_over(bytes(SIZE), grains, unit))
    assert diskmill.compare(str(raw), str(path), format_a="raw").identical
    assert_identical(raw, path, formats=("raw", "vmdk"))
    assert diskmill.check(str(path)).findings == []
    told, expected = diskmill.info(str(path)).specific, qemu_img_json("info", path)["format-specific"]["data"]
    assert told is not None
    assert (told["create-type"], told["extents"][0]["virtual-size"]) == (type, SIZE)
    assert expected["create-type"] == type
    if kind == "VMFSSPARSE":
        assert f"({SIZE} bytes)" in run(tool("vmdkinfo"), path).stdout


@pytest.mark.parametrize(("kind", "type", "grain"), KINDS)
def test_a_snapshot_of_a_snapshot_of_a_flat_disk(kind: str, type: str, grain: int, tmp_path: Path) -> None:
    expected = random.Random(9).randbytes(SIZE)
    (tmp_path / "disk-flat.vmdk").write_bytes(expected)
    describe(tmp_path / "disk.vmdk", "vmfs", "VMFS", "disk-flat.vmdk", cid=1)
    for number, parent in ((1, "disk.vmdk"), (2, "disk-000001.vmdk")):
        data, grains, unit = extent(kind, number, grain)
        name = f"disk-00000{number}"
        (tmp_path / f"{name}-delta.vmdk").write_bytes(data)
        describe(
            tmp_path / f"{name}.vmdk", type, kind, f"{name}-delta.vmdk", cid=number + 1, parent=number, hint=parent
        )
        expected = laid_over(expected, grains, unit)
    top, raw = tmp_path / "disk-000002.vmdk", tmp_path / "raw"
    raw.write_bytes(expected)
    assert diskmill.compare(str(raw), str(top), format_a="raw").identical
    diskmill.convert([str(top)], str(tmp_path / "whole.vmdk"), output_format="vmdk")
    assert_identical(raw, tmp_path / "whole.vmdk", formats=("raw", "vmdk"))
    qemu_img("compare", "-f", "raw", "-F", "vmdk", raw, top)
    with pytest.raises(UnsupportedError, match="can only be read"):
        diskmill.open(str(top), "vmdk", writable=True)
    describe(tmp_path / "disk.vmdk", "vmfs", "VMFS", "disk-flat.vmdk", cid=7)  # it was written since
    with pytest.raises(ImageError, match="has changed since"):
        diskmill.convert([str(top)], str(tmp_path / "back"))


def test_a_cowd_extent_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    data, _, _ = extent("VMFSSPARSE", 1, 64 * KiB)
    (tmp_path / "delta.vmdk").write_bytes(data[:-SECTOR])
    path = describe(tmp_path / "disk.vmdk", "vmfsSparse", "VMFSSPARSE", "delta.vmdk", cid=1)
    with pytest.raises(ImageError, match="not all inside the file"):
        diskmill.convert([str(path)], str(tmp_path / "back"))
    assert diskmill.check(str(path)).corruptions == 1
