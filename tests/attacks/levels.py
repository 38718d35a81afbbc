"""Formats with two levels of tables (QED, qcow): L1 entries that all name one L2 table."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path

from diskmill_qcow import c_qcow
from diskmill_qed import c_qed

from . import attack, put

KINDS = ("holes", "zeros", "one cluster", "many clusters")


def _l2(kind: str, entries: int, data: int, cluster: int) -> array[int]:
    if kind == "holes":
        return array("Q", bytes(entries * 8))
    if kind == "zeros":
        return array("Q", [1]) * entries
    if kind == "one cluster":
        return array("Q", [data]) * entries
    return array("Q", [data, data + cluster]) * (entries // 2)


@attack("qed/one L2 for all", kind=KINDS, cluster=(4096, 1 << 20), table=(2, 16))
def qed(path: Path, kind: str, cluster: int, table: int) -> None:
    """QED whose L1 entries all name one table."""
    entries = table * cluster // 8
    l1, l2 = cluster, cluster + table * cluster
    data = l2 + table * cluster
    used = min(entries, 1 << 15)
    header = c_qed.HEADER.new(
        magic=b"QED\0",
        cluster_size=cluster,
        table_size=table,
        header_size=1,
        l1_table_offset=l1,
        image_size=min(used * entries * cluster, (1 << 62)),
    )
    put(
        path,
        (0, c_qed.HEADER.pack(header)),
        (l1, array("Q", [l2] * used).tobytes()),
        (l2, _l2(kind, min(entries, 1 << 16), data, cluster).tobytes()),
        (data, b"\x5a" * 8192),
        size=data + 2 * cluster,
    )


@attack("qcow/one L2 for all", kind=("holes", "one cluster", "many clusters"), bits=(9, 16), count=(100_000,))
def qcow(path: Path, kind: str, bits: int, count: int) -> None:
    """qcow whose L1 entries all name one table."""
    entries = 1 << 9
    l1 = 64
    l2 = -(-(l1 + count * 8) // 512) * 512
    data = l2 + entries * 8
    header = c_qcow.HEADER.new(
        magic=b"QFI\xfb",
        version=1,
        size=count * entries << bits,
        cluster_bits=bits,
        l2_bits=9,
        l1_table_offset=l1,
    )
    tables = [array("Q", [l2] * count), _l2(kind, entries, data, 1 << bits)]
    for one in tables:
        if sys.byteorder == "little":
            one.byteswap()
    put(
        path,
        (0, c_qcow.HEADER.pack(header)),
        (l1, tables[0].tobytes()),
        (l2, tables[1].tobytes()),
        (data, b"\x5a" * (2 << bits)),
    )
