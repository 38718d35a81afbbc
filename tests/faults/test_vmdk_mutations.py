"""Damaged VMDKs: headers, descriptors, grain directories, tables and markers; in one file, and in several."""

from __future__ import annotations

import os
import random
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diskmill
import esx
import pytest
from diskmill.engine.walk import walk
from diskmill.errors import DiskmillError
from diskmill.opening.context import Context
from diskmill.opening.gate import FOLDER
from diskmill.opening.graph import open_image
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import bounded, mutants, withstand
from samples import KiB, MiB, sparse_file
from tools import diskmill as command

SECTOR = 512
GRAIN = 64 * KiB
EMBEDDED = (SECTOR, 1 * KiB)


def disk(folder: Path) -> Path:
    """4 MiB: text, random bytes, holes."""
    chance = random.Random(1)
    pieces = {0: b"text " * 30_000, MiB: chance.randbytes(2 * GRAIN), 3 * MiB + 100: chance.randbytes(1000)}
    return sparse_file(folder / "disk.raw", 4 * MiB, pieces)


def image(folder: Path, subformat: str, **options: Any) -> Path:
    result = folder / "image.vmdk"
    diskmill.convert(
        [str(disk(folder))], str(result), output_format="vmdk", options={"subformat": subformat, **options}
    )
    return result


_opened: list[str] = []
"""The names of the files that were opened, while somebody watches."""
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str) and arguments[1] is not None:
        _opened.append(arguments[0])


_os_open = os.open


def _spy(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
    """os.open, which may be told a folder to start from: only the open file tells where it lies."""
    fd = _os_open(path, flags, *arguments, **options)
    if not flags & os.O_PATH:  # a folder on the way: nothing can be read or written through it
        _opened.append(os.readlink(f"/proc/self/fd/{fd}"))
    return fd


sys.addaudithook(_watch)  # it cannot be taken back


@contextmanager
def only_inside(folder: Path) -> Iterator[None]:
    """Fail when a file outside *folder* is opened; Python's own do not count."""
    global _watching
    _opened.clear()
    _watching = True
    try:
        with patch.object(os, "open", _spy):
            yield
    finally:
        _watching = False
    own = (os.path.realpath("/proc/self"), sys.prefix, sys.base_prefix, os.path.realpath(folder))
    assert not [
        name
        for name in _opened
        if not os.path.realpath(name).startswith(own) and not name.endswith((".py", ".pyc", ".so"))
    ]


# -- one file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_sparse_images(seed: int, tmp_path: Path) -> None:
    data = image(tmp_path, "monolithicSparse", zeroed_grain="on").read_bytes()
    tables = (21 * SECTOR, 11 * SECTOR)
    counts = withstand("vmdk", mutants(data, [(0, 80), EMBEDDED, tables], seed=seed, count=300))
    assert min(counts.values()) > 20, counts


@pytest.mark.parametrize("seed", range(3))
def test_streams(seed: int, tmp_path: Path) -> None:
    data = image(tmp_path, "streamOptimized").read_bytes()
    # The grains' own bytes too: what deflate makes of damage is part of it. The last ten sectors are all metadata.
    regions = [(0, 80), EMBEDDED, (128 * SECTOR, 8 * KiB), (len(data) - 10 * SECTOR, 10 * SECTOR)]
    counts = withstand("vmdk", mutants(data, regions, seed=seed, count=300))
    assert counts["written"] == 0
    assert min(counts["read"], counts["refused"]) > 20, counts


def test_streams_by_their_markers(tmp_path: Path) -> None:
    path = image(tmp_path, "streamOptimized")
    data = path.read_bytes()
    regions = [(0, 80), (128 * SECTOR, 2 * KiB), (len(data) - 10 * SECTOR, 10 * SECTOR)]
    counts = {True: 0, False: 0}
    for what, mutant in mutants(data, regions, seed=9, count=300):
        path.write_bytes(mutant)
        with bounded(what):
            counts[_reads({"driver": "vmdk", "scan": "on", "filename": str(path)}, what)] += 1
    assert min(counts.values()) > 20, counts


def _reads(name: Any, what: str) -> bool:
    """Whether the image reads, in part; else it must be one error of the project's own, in one line."""
    try:
        with open_image(name, context=Context(trust=FOLDER)) as opened:
            opened.details()
            for extent in islice(walk(opened, 0, opened.size), 10_000):
                assert 0 <= extent.start < extent.end <= opened.size
            for at in {0, opened.size // 2, max(opened.size - SECTOR, 0)}:
                opened.read(at, min(GRAIN, opened.size - at))
    except DiskmillError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    else:
        return True
    assert message, what
    assert "\n" not in message, what
    return False


# -- several files, and ESX's ---------------------------------------------------------------------------------------


COWD = esx.cowd(8192, {8: b"A" * SECTOR, 9: b"B" * SECTOR})
SESPARSE = esx.sesparse(8192, {0: b"C" * 4096, 2: None, 3: b"D" * 4096})
DESCRIPTOR = b"""# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="custom"

# Extent description
RW 8192 VMFSSPARSE "cowd.vmdk"
RW 8192 SESPARSE "se.vmdk"
RW 128 ZERO
RW 8192 FLAT "flat.vmdk" 8
RDONLY 8192 VMFS "flat.vmdk"

# The Disk Data Base
ddb.adapterType = "lsilogic"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    result = tmp_path / "images"
    result.mkdir()
    (result / "cowd.vmdk").write_bytes(COWD)
    (result / "se.vmdk").write_bytes(SESPARSE)
    (result / "flat.vmdk").write_bytes(random.Random(2).randbytes(4 * MiB + 4096))
    (result / "disk.vmdk").write_bytes(DESCRIPTOR)
    return result


def test_what_is_damaged_here_reads_when_it_is_not(folder: Path) -> None:
    flat = (folder / "flat.vmdk").read_bytes()
    expected = bytearray(4 * MiB)
    expected[8 * SECTOR : 10 * SECTOR] = b"A" * SECTOR + b"B" * SECTOR
    second = bytearray(4 * MiB)
    second[:4096], second[3 * 4096 : 4 * 4096] = b"C" * 4096, b"D" * 4096
    whole = bytes(expected + second) + bytes(128 * SECTOR) + flat[4096:] + flat[: 4 * MiB]
    with open_image(str(folder / "disk.vmdk"), context=Context(trust=FOLDER)) as opened:
        assert opened.read(0, opened.size) == whole


@pytest.mark.parametrize("file", ["cowd.vmdk", "se.vmdk", "disk.vmdk"])
def test_disks_of_several_files(file: str, folder: Path) -> None:
    data = (folder / file).read_bytes()
    regions = {
        "cowd.vmdk": [(0, 32), (2048, 8), (5 * SECTOR, 64)],
        "se.vmdk": [(0, 208), (SECTOR, 32), (4 * SECTOR, 8), (5 * SECTOR, 64)],
        "disk.vmdk": [(0, len(data))],
    }[file]
    counts = {True: 0, False: 0}
    for what, mutant in mutants(data, regions, seed=3, count=400):
        (folder / file).write_bytes(mutant)
        with bounded(what), only_inside(folder):
            counts[_reads(str(folder / "disk.vmdk"), what)] += 1
    assert min(counts.values()) > 20, counts


PIECES = b"""# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="twoGbMaxExtentFlat"

# Extent description
RW 128 FLAT "disk-f001.vmdk" 0
RW 100 FLAT "disk-f002.vmdk" 0

# The Disk Data Base
ddb.geometry.cylinders = "0"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
# Extents to be, of a resize that has not ended
#RW 128 FLAT "disk-f002.vmdk" 0
#RW 128 FLAT "disk-f003.vmdk" 0
#RW 44 FLAT "disk-f004.vmdk" 0
"""


def test_damaged_disks_that_grow_harm_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("creating", "resizing"):
        monkeypatch.setattr(f"diskmill_vmdk.{module}.SPLIT", 128 * SECTOR)
    folder, chance = tmp_path / "images", random.Random(6)
    folder.mkdir()
    monkeypatch.chdir(folder)  # new files are opened relative to it
    parts = {f"disk-f00{number}.vmdk": chance.randbytes(size * SECTOR) for number, size in ((1, 128), (2, 100))}
    left = {"disk-f003.vmdk": bytes(128 * SECTOR)}
    others = dict.fromkeys(("disk-f005.vmdk", "disk-f4.vmdk", "disc-f003.vmdk", "../disk-f003.vmdk"), b"somebody's")
    counts = {"grown": 0, "refused": 0}
    for what, mutant in mutants(PIECES, [(0, len(PIECES))], seed=5, count=400):
        for path in folder.iterdir():
            path.unlink()
        for name, data in {**parts, **left, **others, "disk.vmdk": mutant}.items():
            (folder / name).write_bytes(data)
        try:
            with bounded(what), only_inside(folder):
                diskmill.resize(str(folder / "disk.vmdk"), 500 * SECTOR, context=Context(trust=FOLDER))
            message = ""
        except DiskmillError as error:
            message = str(error)
        assert "\n" not in message, what
        counts["refused" if message else "grown"] += 1
        for name, data in {**parts, **others}.items():
            assert (folder / name).read_bytes()[: len(data)] == data, what
            assert name not in others or (folder / name).read_bytes() == data, what
    assert min(counts.values()) > 20, counts


WORDS = st.sampled_from([
    "RW", "RDONLY", "NOACCESS", "FLAT", "SPARSE", "VMFS", "ZERO", "SESPARSE", "8192", "0", "-1", "99999999999999999999",
    '"flat.vmdk"', '"cowd.vmdk"', '"disk.vmdk"', '"/etc/passwd"', '"../images/flat.vmdk"', '"../../etc/passwd"', '"',
    '"json:{}"', '"nbd://localhost/x"', '"\\\\.\\PhysicalDrive0"', '"/dev/null"', '""', "createType=", '"custom"',
    "CID=", "parentCID=", "fffffffe", "parentFileNameHint=", "encoding=", '"UTF-16"', '"zlib"', "\r", "\n", "\n", "\n",
    " ", "\t", "#", "version=1\n", "\0", "\ufeff", "\u2028", "ddb.x = ", "8",
])  # fmt: skip


@settings(max_examples=500)
@given(words=st.lists(WORDS, max_size=40), head=st.booleans())
def test_descriptors_of_any_words(words: list[str], head: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "words"
    folder.mkdir(exist_ok=True)
    (folder / "flat.vmdk").write_bytes(bytes(MiB))
    (folder / "cowd.vmdk").write_bytes(COWD)
    text = ('# Disk DescriptorFile\nversion=1\ncreateType="custom"\n' if head else "") + " ".join(words)
    path = folder / "disk.vmdk"
    path.write_bytes(text.encode())
    with bounded(text), only_inside(folder):
        _reads({"driver": "vmdk", "filename": str(path)}, text)


# -- right data -----------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(entry=st.integers(0, 63), value=st.integers(0, 2**32 - 1) | st.integers(0, 4096))
def test_a_damaged_entry_harms_no_other_grain(entry: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "entry"
    path = folder / "image.vmdk"
    if not folder.exists():
        folder.mkdir()
        image(folder, "monolithicSparse")
        (folder / "whole").write_bytes(path.read_bytes())
    data, expected = bytearray((folder / "whole").read_bytes()), (folder / "disk.raw").read_bytes()
    directory = struct.unpack_from("<Q", data, 56)[0]
    table = struct.unpack_from("<I", data, directory * SECTOR)[0]
    struct.pack_into("<I", data, table * SECTOR + entry * 4, value)
    path.write_bytes(data)
    with open_image(str(path), context=Context()) as opened:
        for number in range(64):
            if number != entry:
                assert opened.read(number * GRAIN, GRAIN) == expected[number * GRAIN : (number + 1) * GRAIN]


@pytest.mark.parametrize(
    "line",
    [
        b"a=x%sy" % (b" " * 900_000),
        b"a%sy" % (b" " * 900_000),
        b"RW 1 FLAT%sy" % (b" " * 900_000),
        b"\r" * 900_000 + b"x",
        b"# Extents to be, of a resize that has not ended\n" * 18_000 + b"x",
        b"# Extents to be, of a resize that has not ended" + b"\n#" * 450_000 + b"x",
    ],
    ids=["value", "key", "extent", "line ends", "plans", "plan"],
)
def test_a_long_descriptor_takes_no_time(tmp_path: Path, line: bytes) -> None:
    """What a reader looks for in a text must not cost the square of its length."""
    image = tmp_path / "disk.vmdk"
    (tmp_path / "flat").write_bytes(bytes(512))
    head = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\nRW 1 FLAT "flat" 0\n'
    image.write_bytes(head + line + b"\n")
    told = command("info", image, check=False, timeout=30)
    assert told.returncode in (0, 1)
    assert "Traceback" not in told.stderr
