"""qcow2 whose tables are named more often than they are there."""

from __future__ import annotations

from array import array
from pathlib import Path

from diskmill_qcow2 import c_qcow2 as c

from . import attack, put

MiB = 1 << 20
COPIED = 1 << 63


def words(values: array[int]) -> bytes:
    """*values* as the disk has them."""
    values = values[:]
    values.byteswap()
    return values.tobytes()


def header(*, bits: int, size: int, l1_size: int, l1: int, features: int = 0, **fields: object) -> bytes:
    """A header of version 3."""
    given = {
        "magic": c.QCOW_MAGIC,
        "version": 3,
        "cluster_bits": bits,
        "size": size,
        "l1_size": l1_size,
        "l1_table_offset": l1,
        "refcount_table_offset": 1 << bits,
        "refcount_table_clusters": 1,
        "incompatible_features": features,
        "refcount_order": 4,
        "header_length": c.HEADER_LENGTH,
    }
    return c.HEADER.pack(c.HEADER.new(**{**given, **fields})).ljust(c.HEADER_LENGTH, b"\0")


CONTENTS = ("holes", "zeros", "one cluster", "many clusters", "compressed")


def l2(contents: str, bits: int, data: int, entries: int) -> array[int]:
    """The entries of an L2 table."""
    if contents == "holes":
        return array("Q", bytes(entries * 8))
    if contents == "zeros":
        return array("Q", [1]) * entries
    if contents == "one cluster":
        return array("Q", [data | COPIED]) * entries
    if contents == "many clusters":  # never two neighbours
        return array("Q", [(data + (index % 2 << bits)) | COPIED for index in range(entries)])
    return array("Q", [1 << 62 | data]) * entries


@attack("qcow2/one L2 for all", contents=CONTENTS, bits=(9, 16), entries=(100_000,))
def one_l2(path: Path, contents: str, bits: int, entries: int) -> None:
    """All L1 entries name one L2 table."""
    size = 1 << bits
    per = size // 8
    l1_clusters = -(-entries * 8 // size)
    table = (3 + l1_clusters) * size
    data = table + size
    put(
        path,
        (0, header(bits=bits, size=entries * per * size, l1_size=entries, l1=3 * size)),
        (3 * size, words(array("Q", [table | COPIED]) * entries)),
        (table, words(l2(contents, bits, data, per))),
        (data, b"\x5a" * (2 * size)),
    )


@attack("qcow2/two L2 by turns", contents=("zeros",), entries=(1 << 22,))
@attack("qcow2/two L2 by turns", contents=CONTENTS, entries=(100_000,))
def two_l2(path: Path, contents: str, entries: int) -> None:
    """L1 entries name one of two L2 tables, by turns: no two neighbours are alike."""
    bits, size = 16, 1 << 16
    l1_clusters = -(-entries * 8 // size)
    table = (3 + l1_clusters) * size
    data = table + 2 * size
    put(
        path,
        (0, header(bits=bits, size=min(entries << 29, (1 << 63) - 512), l1_size=entries, l1=3 * size)),
        (3 * size, words(array("Q", [table | COPIED, table + size | COPIED]) * (entries // 2))),
        (table, words(l2(contents, bits, data, 8192))),
        (table + size, words(l2("zeros", bits, data, 8192))),
        (data, b"\x5a" * (2 * size)),
    )


@attack("qcow2/extended L2 for all", bitmap=(0x55555555, 0xFFFFFFFF, 0x5555555500000000, 0x0000FFFF00000000))
def extended(path: Path, bitmap: int) -> None:
    """As one L2 for all, with subclusters."""
    bits, size, entries = 16, 1 << 16, 100_000
    table = 16 * size + (entries * 8 // size + 1) * size
    data = table + size
    rows = array("Q", [data | COPIED if bitmap & 0xFFFFFFFF else 0, bitmap]) * (size // 16)
    put(
        path,
        (0, header(bits=bits, size=entries * (size // 16) * size, l1_size=entries, l1=3 * size, features=16)),
        (3 * size, words(array("Q", [table | COPIED]) * entries)),
        (table, words(rows)),
        (data, b"\x5a" * size),
    )


@attack("qcow2/a sparse L1 of 32 MiB", bits=(9, 16, 21))
def sparse_l1(path: Path, bits: int) -> None:
    """The largest L1 table there can be, nothing of which is there."""
    entries, size = 1 << 22, 1 << bits
    put(
        path,
        (0, header(bits=bits, size=min(entries * (size // 8) * size, (1 << 63) - 512), l1_size=entries, l1=4 * size)),
        size=4 * size + entries * 8,
    )


def _snapshots(count: int, l1: int, entries: int) -> bytes:
    parts = []
    for index in range(count):
        key, name = str(index + 1).encode(), f"snap{index}".encode()
        record = c.SNAPSHOT.new(
            l1_table_offset=l1, l1_size=entries, id_size=len(key), name_size=len(name), extra_data_size=24
        )
        data = c.SNAPSHOT.pack(record) + bytes(24) + key + name
        parts.append(data.ljust(-(-len(data) // 8) * 8, b"\0"))
    return b"".join(parts)


@attack("qcow2/snapshots on one L1", count=(200, 60000), contents=("holes", "tables"))
def snapshots(path: Path, count: int, contents: str) -> None:
    """Many snapshots that all have one L1 table, of which each claims 4 MiB or a few entries."""
    bits, size = 16, 1 << 16
    entries = 1 << 19 if count < 60000 else 1 << 10
    table = 8 * size
    l1_end = table + entries * 8
    l2_at = l1_end
    snaps = l2_at + 64 * size
    named = array("Q", [(l2_at + (index % 64 << bits)) for index in range(entries)] if contents == "tables" else [])
    data = _snapshots(count, table, entries)
    put(
        path,
        (0, header(bits=bits, size=size, l1_size=1, l1=3 * size, nb_snapshots=count, snapshots_offset=snaps)),
        (table, words(named)),
        (l2_at, words(array("Q", [1]) * 8192)),
        (snaps, data),
    )


@attack("qcow2/one refcount block for all", entries=(1 << 9, 1 << 10))
def refcount_blocks(path: Path, entries: int) -> None:
    """A refcount table whose entries all name one block, for a file that claims terabytes."""
    bits, size = 16, 1 << 16
    clusters = -(-entries * 8 // size)
    put(
        path,
        (
            0,
            header(
                bits=bits,
                size=MiB,
                l1_size=1,
                l1=2 * size,
                refcount_table_offset=16 * size,
                refcount_table_clusters=clusters,
            ),
        ),
        (3 * size, b"\xff" * size),
        (16 * size, words(array("Q", [3 * size]) * entries)),
        size=entries * (size // 2) * size,
    )


@attack("qcow2/clusters far apart", count=(512, 4096), where=("data", "tables"))
def far_apart(path: Path, count: int, where: str) -> None:
    """Clusters, or L2 tables, so far apart that what is known of each needs an array of its own."""
    bits, size = 9, 1 << 9
    places = [(3 + index * ((1 << 20) + 1)) << bits | COPIED for index in range(1, count + 1)]
    per = size // 8
    tables = count if where == "tables" else count // per
    l1, l2 = 3 * size, 3 * size + -(-tables * 8 // size) * size
    named = places if where == "tables" else [l2 + index * size | COPIED for index in range(tables)]
    put(
        path,
        (0, header(bits=bits, size=tables * per * size, l1_size=tables, l1=l1)),
        (l1, words(array("Q", named))),
        (l2, words(array("Q", places if where == "data" else [])) or b"\0"),
        size=(places[-1] & ~COPIED) + size,
    )
