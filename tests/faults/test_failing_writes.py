"""What fails as it does for our own formats only; what holds for every format stands in the kit's failing_writes."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from diskmill.errors import DiskmillError
from diskmill.sizes import MiB
from diskmill_testkit.suites import failing_writes
from diskmill_testkit.suites.failing_writes import (
    SIZE,
    Insistent,
    add,
    check,
    examine,
    faults,
    holds,
    made,
    new_blocks,
    put,
    steps,
    values_of,
)
from diskmill_testkit.traits import traits_of
from formats import Machine, formats
from oracles import CHECKED_BY_QEMU
from tools import diskmill, qemu_img


def test_refcounts_that_leave_the_memory(oracle: failing_writes.Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qcow2 image of many refcount blocks writes some back while it counts in others: what fails then is not lost."""
    monkeypatch.setattr("diskmill_qcow2.refcounts.CACHE_BYTES", 0)
    options = {"cluster_size": 512, "refcount_bits": 64}
    failing_writes.test_writes("qcow2", options, oracle)
    machine = Machine()
    machine.create("disk", "qcow2", SIZE, options)
    data = random.Random(3).randbytes(SIZE)

    def operation() -> None:
        insist = Insistent(machine)
        image = machine.open("disk", "qcow2", writable=True)
        insist(lambda: image.write(0, data))
        insist(image.flush)
        insist.close(image)

    for _ in faults(machine, operation, samples=40):
        found = check(machine, "disk", "qcow2")
        assert not found.corruptions and not found.check_errors, found.findings
        with machine.open("disk", "qcow2") as image:
            assert image.read(0, SIZE) == data


def test_all_sectors_of_new_blocks_of_a_vhd_count() -> None:
    """Not all readers look; Hyper-V does."""
    machine = Machine()
    for _ in new_blocks(machine, "vpc", {"force_size": True}):
        full_bitmaps(bytes(machine.files["disk"]))


def full_bitmaps(data: bytes) -> None:
    """Of a dynamic VHD: fail unless all sectors of blocks that are there count."""
    (header,) = struct.unpack_from(">Q", data, 16)
    table, entries = struct.unpack_from(">QxxxxI", data, header + 16)
    found = [entry for entry in struct.unpack_from(f">{entries}I", data, table) if entry != 0xFFFFFFFF]
    assert found and all(data[entry * 512 : entry * 512 + 512] == b"\xff" * 512 for entry in found)


@pytest.mark.parametrize("format", [name for name in CHECKED_BY_QEMU if name in formats("create", "write")])
def test_a_file_that_may_not_grow(format: str, tmp_path: Path) -> None:
    """The programs, on a file: qemu-img finds nothing wrong with what a conversion leaves that ran out of space."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(5).randbytes(12 * MiB))
    diskmill("create", "-f", format, target, "16M")
    done = diskmill("convert", "-n", "-f", "raw", "-O", format, source, target, check=False, file_size=8 * MiB)
    warning, error = done.stderr.splitlines()
    assert done.returncode == 1
    assert f"'{target}' is incomplete" in warning
    assert str(target) in error and "File too large" in error
    checked = qemu_img("check", "-f", format, target, check=False)
    assert checked.returncode in (0, 3), checked.stdout + checked.stderr
    diskmill("convert", "-n", "-f", "raw", "-O", format, source, target)
    qemu_img("compare", "-f", "raw", "-F", format, source, target)


EVENTS = ("pwritev", "pwritev_done", "write_aio", "flush_to_disk")
"""What happens in every format, as blkdebug calls it."""
TABLE_EVENTS = {
    "qcow2": (
        *("l1_update", "l2_update", "l2_load", "l2_alloc_write", "refblock_load", "refblock_alloc"),
        *("refblock_update_part", "refblock_alloc_write", "refblock_alloc_hookup", "cow_write"),
    ),
    "qed": ("cow_write", "l1_update", "l2_update", "l2_alloc_write"),
    "qcow": ("cow_write", "l1_update", "l2_update"),
    "vmdk": ("cow_write", "l2_update"),
    "vdi": ("l2_update",),
    "vpc": ("l2_update",),
    "parallels": ("l2_update",),
}


@pytest.mark.parametrize(
    ("format", "event"),
    [
        pytest.param(format, event, id=f"{format}-{event}")
        for format in formats("create", "write")
        for event in (*EVENTS, *TABLE_EVENTS.get(format, ()))
    ],
)
@pytest.mark.parametrize("once", [True, False], ids=["once", "from-then-on"])
def test_what_blkdebug_lets_fail_costs_nothing_else(format: str, event: str, once: bool) -> None:
    machine = Machine()
    options = dict(traits_of(format).layouts[0])
    if format == "qcow2" and event != "cow_write":
        options = {"cluster_size": 512}  # tables so small that there is more than one of each
    if event in TABLE_EVENTS.get(format, ()) and format != "qcow2":
        machine.create("disk", format, SIZE, options)  # the tables that there are do for all the disk
        disk = bytes(SIZE)
    else:
        disk = made(machine, format, options)
    values = values_of(disk)
    rule = {"event": event, "once": once, "iotype": "flush" if event == "flush_to_disk" else "write"}
    if event.endswith("_load"):
        del rule["iotype"]

    def operation() -> None:
        with machine.open("disk", format, writable=True, over=debugged) as image:
            for at, data, flush in steps(disk):
                add(values, at, data)
                put(image, at, data)
                if flush:
                    image.flush()
                    values.update({sector: found[-1:] for sector, found in values.items()})

    def debugged(file: dict[str, Any]) -> dict[str, Any]:
        return {"driver": "blkdebug", "image": file, "inject-error": [rule]}

    with pytest.raises(DiskmillError, match="Input/output error"):
        operation()
    holds(examine(machine, format), values)
