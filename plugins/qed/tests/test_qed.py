"""QED: all sizes of clusters and tables, backing chains, checks and repairs, against qemu-img and qemu-io."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill import qapi
from diskmill.errors import ImageError, UnsupportedError
from samples import KiB, MiB, scattered_file
from tools import qemu_img, qemu_img_json, qemu_io, without_newer

HEADER = struct.Struct("<4sIIIQQQQQII")
FEATURES, COMPAT, AUTOCLEAR = 16, 24, 32
NEED_CHECK = 2


def convert(disk: Path, image: Path, **options: Any) -> None:
    diskmill.convert([str(disk)], str(image), format="raw", output_format="qed", options=options)


def patch(image: Path, offset: int, format: str, *values: int) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(f"<{format}", *values))


def words(image: Path, offset: int, count: int) -> tuple[int, ...]:
    with image.open("rb") as file:
        file.seek(offset)
        return struct.unpack(f"<{count}Q", file.read(count * 8))


def header(image: Path) -> tuple[Any, ...]:
    with image.open("rb") as file:
        return HEADER.unpack(file.read(HEADER.size))


def clean(image: Path) -> None:
    """Both find nothing wrong."""
    qemu_img("check", "-f", "qed", image)
    assert diskmill.check(str(image)).findings == []


@pytest.mark.parametrize("cluster", [4 * KiB, 16 * KiB, 256 * KiB, 1 * MiB, 2 * MiB, 4 * MiB])
@pytest.mark.parametrize("table", [2, 8, 16])
def test_every_size_of_clusters_and_tables(tmp_path: Path, cluster: int, table: int) -> None:
    """Also those that do not fit into one page of memory, and clusters larger than the engine's unit."""
    disk, image, theirs = scattered_file(tmp_path / "disk", 9 * MiB + 512, seed=7), tmp_path / "a", tmp_path / "b"
    if cluster == 4 * MiB and table > 2 or cluster == 2 * MiB and table > 8:
        # QEMU's limit for the size overflows, and it refuses all disks.
        options = f"cluster_size={cluster},table_size={table}"
        assert qemu_img("create", "-f", "qed", "-o", options, theirs, "1M", check=False).returncode
        with pytest.raises(diskmill.DiskmillError, match="16 EiB"):
            convert(disk, image, cluster_size=cluster, table_size=table)
        assert not image.exists()
        return
    convert(disk, image, cluster_size=cluster, table_size=table)
    options = f"cluster_size={cluster},table_size={table}"
    qemu_img("convert", "-f", "raw", "-O", "qed", "-o", options, disk, theirs)
    for one in (image, theirs):
        qemu_img("compare", "-f", "raw", "-F", "qed", disk, one)
        assert diskmill.compare(str(disk), str(one), format_a="raw").identical
        clean(one)
        with diskmill.open(str(one), writable=True) as target:
            target.write(5 * MiB - 100, b"x" * 300)
        qemu_io(one, f"read -P {ord('x')} {5 * MiB - 100} 300", f"write -P 9 {8 * MiB} 64k", format="qed")
        with diskmill.open(str(one)) as target:
            assert target.read(8 * MiB, 64 * KiB) == b"\x09" * 64 * KiB
        clean(one)


@pytest.mark.parametrize(("cluster", "table"), [(64 * MiB, 2), (16 * MiB, 1), (8 * MiB, 4), (4 * KiB, 1)])
def test_sizes_that_qemu_has_trouble_with(tmp_path: Path, cluster: int, table: int) -> None:
    """They are what the specification allows: not made any more, but read and written where there are some."""
    disk, image = scattered_file(tmp_path / "disk", 9 * MiB + 512, seed=7, pieces=8), tmp_path / "a"
    with pytest.raises(diskmill.DiskmillError, match="table_size"):
        diskmill.create(str(image), MiB, format="qed", options={"cluster_size": cluster, "table_size": table})
    with image.open("wb") as file:
        file.write(HEADER.pack(b"QED\0", cluster, table, 1, 0, 0, 0, cluster, disk.stat().st_size, 0, 0))
        file.truncate((1 + table) * cluster)
    diskmill.convert([str(disk)], str(image), format="raw", output_format="qed", existing=True)
    assert diskmill.compare(str(disk), str(image), format_a="raw").identical
    assert diskmill.check(str(image)).findings == []
    assert image.stat().st_blocks * 512 < 20 * MiB


@pytest.mark.parametrize(
    "option",
    ["cluster_size=2k", "cluster_size=96k", "cluster_size=128M", "table_size=0", "table_size=3", "table_size=32"],
)
def test_impossible_sizes_are_refused(tmp_path: Path, option: str) -> None:
    name, _, value = option.partition("=")
    with pytest.raises(diskmill.DiskmillError, match=name):
        diskmill.create(str(tmp_path / "x"), MiB, format="qed", options={name: value})
    assert not (tmp_path / "x").exists()
    assert qemu_img("create", "-f", "qed", "-o", option, tmp_path / "x", "1M", check=False).returncode


# -- backing images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", ["4k", "64k", "2M", "4M"])
@pytest.mark.parametrize("length", [3 * MiB, 11 * MiB + 512])
def test_chains_both_ways(tmp_path: Path, cluster: str, length: int) -> None:
    """Overlays that each program writes over an image of the other's, with a base that is shorter or longer."""
    chance = random.Random(length)
    size = 8 * MiB
    scattered_file(tmp_path / "base", length, seed=1)
    options = f"cluster_size={cluster},table_size=2"
    backing = {"backing": "base", "backing_format": "raw"}
    diskmill.create(
        str(tmp_path / "one"), size, format="qed", options=dict(o.split("=") for o in options.split(",")), **backing
    )
    qemu_img("create", "-q", "-f", "qed", "-o", options, "-b", "one", "-F", "qed", "two", str(size), cwd=tmp_path)
    model = bytearray((tmp_path / "base").read_bytes()[:size].ljust(size, b"\0"))
    for image in ("one", "two"):
        for step in range(12):  # zeros last: QEMU 7.2 writes parts of zero clusters wrong when there is a backing image
            at = chance.randrange(size // 512 - 1) * 512
            count = min(chance.choice((512, 5 * 512, 70 * KiB // 512 * 512, MiB)), size - at)
            byte = step + 1 if step < 9 else 0
            if step % 2 and step < 11:
                command = f"write -z {at} {count}" if not byte else f"write -P {byte} {at} {count}"
                qemu_io(tmp_path / image, command, format="qed", cwd=tmp_path)
            else:
                with diskmill.open(str(tmp_path / image), "qed", writable=True) as target:
                    if byte:
                        target.write(at, bytes([byte]) * count)
                    else:
                        target.zero(at, count)
            model[at : at + count] = bytes([byte]) * count
    (tmp_path / "model").write_bytes(model)
    qemu_img("compare", "-f", "raw", "-F", "qed", "model", "two", cwd=tmp_path)
    with diskmill.open(str(tmp_path / "two"), "qed") as image:
        assert image.read(0, size) == model
    for one in ("one", "two"):
        clean(tmp_path / one)
        theirs = qemu_img_json("map", "-f", "qed", tmp_path / one)
        ours = [without_newer(qapi.map_entry(entry)) for entry in diskmill.map(str(tmp_path / one), format="qed")]
        assert depths(ours) == depths(theirs)
    info = qemu_img_json("info", tmp_path / "one")
    assert (info["backing-filename"], info["backing-filename-format"]) == ("base", "raw")
    assert qapi.image_info(diskmill.info(str(tmp_path / "two"))).get("backing-filename-format") is None


def depths(entries: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Where what the disk holds begins to come from another image of the chain: (guest offset, which)."""
    found: list[tuple[int, int]] = []
    for entry in entries:
        if not found or found[-1][1] != entry["depth"]:
            found.append((entry["start"], entry["depth"]))
    return found


def test_a_raw_backing_file_is_not_probed(tmp_path: Path) -> None:
    """Whatever a guest wrote into its first sector."""
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "evil", "1M")
    diskmill.create(str(tmp_path / "top"), 512 * KiB, format="qed", backing="evil", backing_format="raw")
    with diskmill.open(str(tmp_path / "top")) as image:
        assert image.read(0, 4) == b"QFI\xfb"
    qemu_io(tmp_path / "top", "read -P 0x51 0 1", format="qed")


@pytest.mark.parametrize("unsafe", [False, True])
def test_rebase(tmp_path: Path, unsafe: bool) -> None:
    for name, byte in (("a", b"a"), ("b", b"b")):
        (tmp_path / name).write_bytes(byte * MiB)
    top = tmp_path / "top"
    diskmill.create(str(top), MiB, format="qed", backing="a", backing_format="raw")
    with diskmill.open(str(top), writable=True) as image:
        image.write(0, b"t" * 512)
    for name, format in (("b", "raw"), ("", ""), ("a", "raw"), ("./././b", "raw"), ("a", "raw")):
        diskmill.rebase(str(top), name, backing_format=format or None, unsafe=unsafe)
        expected = {"a": b"a", "b": b"b", "": b"\0"}[name[-1:]] if unsafe else b"a"
        qemu_io(top, f"read -P {ord('t')} 0 512", f"read -P {expected[0]} 512k 512k", format="qed")
        with diskmill.open(str(top)) as image:  # its first cluster is its own
            assert image.read(0, MiB) == b"t" * 512 + b"a" * (64 * KiB - 512) + expected * (MiB - 64 * KiB)
        info = qemu_img_json("info", top)
        assert info.get("backing-filename") == (name or None)
        assert info.get("backing-filename-format") == (format or None)
        clean(top)
    with pytest.raises(diskmill.DiskmillError, match="format must be specified"):
        diskmill.rebase(str(top), "b", unsafe=unsafe)


def test_commit_empties_the_overlay(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    diskmill.create(str(base), 4 * MiB, format="qed")
    diskmill.create(str(top), 6 * MiB, format="qed", backing="base", backing_format="qed")
    with diskmill.open(str(top), writable=True) as image:
        image.write(MiB - 5, b"0123456789" * 100_000)
        image.write(6 * MiB - 10, b"0123456789")
    length = top.stat().st_size
    diskmill.commit(str(top))
    assert top.stat().st_size < length
    for image in (base, top):
        clean(image)
        with diskmill.open(str(image)) as disk:
            assert disk.read(MiB - 5, MiB) == (b"0123456789" * 100_000).ljust(MiB, b"\0")
            assert disk.read(6 * MiB - 10, 10) == b"0123456789"


# -- resize ---------------------------------------------------------------------------------------------


def test_growing_hides_what_a_longer_backing_image_has(tmp_path: Path) -> None:
    """qemu-img refuses to."""
    (tmp_path / "base").write_bytes(b"b" * 4 * MiB)
    image = tmp_path / "image"
    diskmill.create(str(image), MiB + 512, format="qed", backing="base", backing_format="raw")
    assert qemu_img("resize", "-q", image, "6M", check=False).returncode
    diskmill.resize(str(image), 6 * MiB)
    with diskmill.open(str(image)) as disk:
        assert disk.read(0, 6 * MiB) == b"b" * (MiB + 512) + bytes(5 * MiB - 512)
    qemu_io(image, "read -P 0 1049088 5241856", "read -P 98 0 1049088", format="qed")
    clean(image)


# -- damage ---------------------------------------------------------------------------------------------


def sample(tmp_path: Path, **options: Any) -> Path:
    """An image of 64 blocks of 4 KiB, each of its own letter, with the L2 table behind the first few."""
    image = tmp_path / "image.qed"
    diskmill.create(str(image), MiB, format="qed", options={"cluster_size": 4096, "table_size": 2, **options})
    with diskmill.open(str(image), writable=True) as disk:
        for block in range(64):
            disk.write(block * 4096, bytes([block + 1]) * 4096)
    return image


def read(image: Path) -> list[int | None]:
    """The letter of each block; None: it is not one all over."""
    with diskmill.open(str(image)) as disk:
        data = disk.read(0, 64 * 4096)
    blocks = (data[at : at + 4096] for at in range(0, len(data), 4096))
    return [block[0] if block == block[:1] * 4096 else None for block in blocks]


def l2_table(image: Path) -> int:
    (offset,) = words(image, header(image)[7], 1)
    return offset


def test_check_finds_what_qemu_finds(tmp_path: Path) -> None:
    image = sample(tmp_path)
    table = l2_table(image)
    first = words(image, table, 1)[0]
    end = image.stat().st_size
    patch(image, table, "Q", end)  # outside
    patch(image, table + 8, "Q", first + 3)  # at no cluster
    patch(image, table + 16, "Q", words(image, table + 24, 1)[0])  # where another block is
    patch(image, table + 32, "Q", table)  # a table
    patch(image, table + 40, "Q", 4096)  # the L1 table
    patch(image, header(image)[7] + 8, "Q", end + 4096)  # a table outside
    found = diskmill.check(str(image))
    theirs = qemu_img_json("check", "-f", "qed", image, check=False)
    assert (found.corruptions, found.leaks) == (theirs["corruptions"], theirs["leaks"])
    assert found.corruptions == 6 and found.leaks == 5
    with diskmill.open(str(image)) as disk, pytest.raises(ImageError, match="block 0"):
        disk.read(0, 512)
    fixed = diskmill.check(str(image), repair="all")
    assert fixed.corruptions == 0 and fixed.corruptions_fixed == 6 and fixed.leaks == 0
    clean(image)
    assert read(image) == [0, 0, 4, 4, None, None, *range(7, 65)]  # what is whole is where it was


def test_shared_places_are_parted(tmp_path: Path) -> None:
    image = sample(tmp_path)
    table = l2_table(image)
    shared = words(image, table, 1)[0]
    patch(image, table, "8Q", *[shared] * 8)
    patch(image, header(image)[7] + 8, "2Q", table, table)  # two more regions of the disk with the same table
    diskmill.check(str(image), repair="all")
    clean(image)
    assert read(image)[:8] == [1] * 8
    with diskmill.open(str(image), writable=True) as disk:
        disk.write(4096, b"\x99" * 4096)
    assert read(image)[:9] == [1, 0x99, 1, 1, 1, 1, 1, 1, 9]


@pytest.mark.parametrize("mode", ["leaks", "all"])
def test_lost_space_is_given_back(tmp_path: Path, mode: str) -> None:
    """Wherever it is: what is behind it moves there."""
    image = sample(tmp_path)
    table, length = l2_table(image), image.stat().st_size
    for block in (0, 5, 6, 7, 30, 60):
        patch(image, table + block * 8, "Q", 0)
    with image.open("ab") as file:
        file.write(b"junk" * 2048)
    expected = [0 if block in (0, 5, 6, 7, 30, 60) else block + 1 for block in range(64)]
    assert qemu_img_json("check", "-f", "qed", image, check=False)["leaks"] == 8
    found = diskmill.check(str(image), repair=mode)
    assert (found.leaks, found.leaks_fixed, found.corruptions) == (0, 8, 0)
    assert image.stat().st_size == length - 6 * 4096
    assert read(image) == expected
    clean(image)


def test_a_table_at_the_end_moves_too(tmp_path: Path) -> None:
    image = sample(tmp_path)
    table = l2_table(image)
    data = image.read_bytes()
    with image.open("ab") as file:  # the table goes to the end
        file.write(data[table : table + 8192])
    patch(image, header(image)[7], "Q", len(data))
    assert diskmill.check(str(image)).leaks == 2
    assert diskmill.check(str(image), repair="leaks").leaks_fixed == 2
    assert image.stat().st_size == len(data)
    assert read(image) == list(range(1, 65))
    clean(image)


def test_a_table_that_only_begins_before_the_new_end_moves_too(tmp_path: Path) -> None:
    """Part of its old place is needed for what lies behind it."""
    image = sample(tmp_path)
    table, length = l2_table(image), image.stat().st_size
    data = bytearray(image.read_bytes())
    last = max(words(image, table, 64))  # its block comes behind the table
    block = words(image, table, 64).index(last)
    moved = data[table : table + 8192]
    struct.pack_into("<Q", moved, block * 8, last + 8192)
    data[last : last + 12288] = moved + data[last : last + 4096]
    struct.pack_into("<Q", data, header(image)[7], last)
    image.write_bytes(data)
    assert read(image) == list(range(1, 65))
    assert diskmill.check(str(image)).leaks == 2
    fixed = diskmill.check(str(image), repair="leaks")
    assert (fixed.leaks, fixed.leaks_fixed, fixed.corruptions) == (0, 2, 0)
    assert image.stat().st_size == length
    assert read(image) == list(range(1, 65))
    clean(image)


def test_an_image_cut_off_within_a_cluster_keeps_what_there_is(tmp_path: Path) -> None:
    image = sample(tmp_path)
    last = max(words(image, l2_table(image), 64))
    block = words(image, l2_table(image), 64).index(last)
    os.truncate(image, last + 1024)
    with diskmill.open(str(image)) as disk, pytest.raises(ImageError, match="ends within"):
        disk.read(block * 4096, 512)
    with diskmill.open(str(image), writable=True) as disk, pytest.raises(ImageError):
        disk.write(900 * KiB, b"new")  # a new cluster would be where the block's is
    diskmill.check(str(image), repair="all")
    clean(image)
    with diskmill.open(str(image)) as disk:
        assert disk.read(block * 4096, 4096) == bytes([block + 1]) * 1024 + bytes(3072)


def test_tables_are_not_overwritten(tmp_path: Path) -> None:
    """A damaged entry that names a table, and a guest that writes there."""
    image = sample(tmp_path)
    table = l2_table(image)
    for place in (4096, 8192, table, table + 4096):
        patch(image, table + 80, "Q", place)
        before = image.read_bytes()
        with diskmill.open(str(image), writable=True) as disk, pytest.raises(ImageError, match="belongs to a table"):
            disk.write(10 * 4096, b"x" * 512)
        assert image.read_bytes() == before


def test_an_image_that_was_not_closed_is_repaired_before_it_is_written(tmp_path: Path) -> None:
    image = sample(tmp_path)
    table = l2_table(image)
    patch(image, table + 8, "Q", image.stat().st_size + 4096)
    patch(image, FEATURES, "Q", NEED_CHECK)
    assert diskmill.info(str(image)).dirty
    before = image.read_bytes()
    assert diskmill.check(str(image)).corruptions == 1
    with diskmill.open(str(image), writable=True) as disk:
        assert disk.read(0, 4096) == b"\1" * 4096
    assert image.read_bytes() == before  # nothing was changed, so nothing was repaired
    with diskmill.open(str(image), writable=True) as disk:
        disk.write(300 * KiB, b"x" * 512)
        assert disk.read(4096, 4096) == bytes(4096)
    assert header(image)[4] == 0 and not diskmill.info(str(image)).dirty
    assert read(image)[2:] == list(range(3, 65))
    found = diskmill.check(str(image))
    assert (found.corruptions, found.leaks) == (0, 1)  # what block 1 had


def test_what_cannot_be_repaired_is_not_written(tmp_path: Path) -> None:
    """The L1 table over the header: nobody can tell which it is."""
    image = sample(tmp_path)
    patch(image, 12, "I", 2)  # header_size
    patch(image, 40, "Q", 4096)
    with pytest.raises(ImageError, match="L1 table"):
        diskmill.open(str(image), writable=True)


def test_features(tmp_path: Path) -> None:
    image = sample(tmp_path)
    patch(image, COMPAT, "QQ", 1 << 40, 1 << 41)
    with diskmill.open(str(image)) as disk:
        disk.read(0, 512)
    assert header(image)[6] == 1 << 41  # reading changes nothing
    with image.open("ab") as file:
        file.write(b"kept for a feature".ljust(4096))
    with diskmill.open(str(image), writable=True) as disk:
        disk.write(900 * KiB, b"x")
    assert header(image)[5:7] == (1 << 40, 0)
    assert b"kept for a feature" in image.read_bytes()
    diskmill.check(str(image), repair="all")
    assert b"kept for a feature" in image.read_bytes()
    with pytest.raises(UnsupportedError, match="features"):
        diskmill.rebase(str(image), "other", backing_format="raw", unsafe=True)
    patch(image, FEATURES, "Q", 1 << 42)
    with pytest.raises(UnsupportedError, match="40000000000"):
        diskmill.open(str(image))
    assert qemu_img("info", image, check=False).returncode


def test_leaks_are_counted_as_qemu_counts_them(tmp_path: Path) -> None:
    """Also where the file ends inside of a sector, which QEMU takes for a whole one."""
    cluster, image = 4096, tmp_path / "image"
    diskmill.create(str(image), MiB, format="qed", options={"cluster_size": cluster, "table_size": 2})
    with diskmill.open(str(image), writable=True) as disk:
        disk.write(0, b"x" * 5 * cluster)
    sound = image.read_bytes()
    for more in (1, 511, 512, cluster - 512, cluster - 511, cluster - 1, cluster, 3 * cluster - 1, 3 * cluster + 100):
        image.write_bytes(sound + bytes(more))
        found = json.loads(qemu_img("check", "-f", "qed", "--output=json", image, check=False).stdout)
        result = diskmill.check(str(image))
        assert (result.leaks, result.corruptions) == (found.get("leaks", 0), 0), more
        assert diskmill.check(str(image), repair="leaks").leaks_fixed == result.leaks
        assert qemu_img("check", "-f", "qed", image).returncode == 0
        assert diskmill.check(str(image)).findings == []


def test_a_guest_may_write_a_part_of_what_a_rebase_made_zeros(tmp_path: Path) -> None:
    """QEMU fills what it leaves of a zero cluster with the backing image's data."""
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(b"b" * MiB)
    qemu_img("create", "-f", "qed", "-o", "cluster_size=4k", top, "1M")
    diskmill.rebase(str(top), str(base), backing_format="raw")
    qemu_io(top, "write -P 7 512 512", format="qed")
    expected = bytearray(MiB)
    expected[512:1024] = b"\7" * 512
    with diskmill.open(str(top)) as image:
        assert image.read(0, MiB) == expected
    qemu_img("check", top)
