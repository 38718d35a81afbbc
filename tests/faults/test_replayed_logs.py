"""What blklogwrites logs, replayed: each state of an image at a flush opens, checks clean and holds what was written.

The log is read here by its own description (Linux, Documentation/admin-guide/device-mapper/log-writes.rst).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diskmill.opening.graph import open_image
from diskmill.sizes import SECTOR, KiB, MiB
from formats import FORMATS, Machine
from tools import diskmill, run, tool

FLUSH, DISCARD = 1, 4
SIZE = 2 * MiB
LAYOUTS: dict[str, dict[str, Any]] = {
    "qcow2": {"cluster_size": 4 * KiB},
    "vmdk": {},
    "vhdx": {"block_size": MiB},
    "qed": {"cluster_size": 16 * KiB, "table_size": 2},
}

UNFINISHED = ("its log holds updates", "its redundant copy differ")
"""What is told of a state between two flushes, and does no harm: whoever opens the image next puts it right."""


def entries(log: bytes) -> Iterator[tuple[int, int, bytes, int]]:
    """(flags, byte offset, data, bytes) of each write in *log*."""
    magic, version, count, sector = struct.unpack_from("<QQQI", log)
    assert (magic, version) == (0x6A736677736872, 1)
    at = sector
    for _ in range(count):
        start, sectors, flags, _ = struct.unpack_from("<QQQQ", log, at)
        at += sector
        data = b"" if flags & DISCARD else log[at : at + sectors * sector]
        assert flags & DISCARD or len(data) == sectors * sector
        at += len(data)
        yield flags, start * sector, data, sectors * sector


def states(before: bytes, log: bytes) -> Iterator[bytes]:
    """What the device holds at each flush."""
    device = bytearray(before)
    for flags, offset, data, length in entries(log):
        if offset + length > len(device):
            device.extend(bytes(offset + length - len(device)))
        device[offset : offset + length] = data or bytes(length)
        if flags & FLUSH:
            yield bytes(device)


@pytest.mark.parametrize("format", LAYOUTS)
def test_each_flush_leaves_a_clean_image(format: str) -> None:
    machine, chance = Machine(), random.Random(5)
    machine.create("disk", format, SIZE, LAYOUTS[format])
    before = bytes(machine.files["disk"])
    machine.put("log", b"")
    disk, flushed = bytearray(SIZE), [bytes(SIZE)]  # what the guest has, and had at each flush

    def logged(file: dict[str, Any]) -> dict[str, Any]:
        return {"driver": "blklogwrites", "file": file, "log": {"driver": "memory", "filename": "memory:log"}}

    with machine.open("disk", format, writable=True, over=logged) as image:
        for _ in range(24):
            at = chance.randrange(SIZE // SECTOR) * SECTOR
            data = chance.randbytes(min(chance.choice((1, 9, 80)) * SECTOR, SIZE - at))
            image.write(at, data)
            disk[at : at + len(data)] = data
            if chance.random() < 0.25:
                image.flush()
                flushed.append(bytes(disk))
    flushed.append(bytes(disk))
    seen = list(states(before, bytes(machine.files["log"])))
    assert len(seen) > 8
    reached = 0
    for state in seen:
        machine.put("state", state)
        with machine.open("state", format) as image:
            held = image.read(0, SIZE)
            if held in flushed[reached:]:
                reached = flushed.index(held, reached)
            if "check" in FORMATS[format].capabilities:
                found = machine.context.registry.call(image.driver, "check", image=image, repair="")
                wrong = [one.text for one in found.findings if one.kind == "corruption"]
                assert not found.check_errors
                assert not [text for text in wrong if not any(known in text for known in UNFINISHED)], wrong
    machine.check("state", format)
    assert reached == flushed.index(bytes(disk)) and held == disk
    assert bytes(machine.files["disk"]).rstrip(b"\0") == seen[-1].rstrip(b"\0")


def test_what_is_cut_off_reads_as_zeros_in_a_replay() -> None:
    machine = Machine()
    machine.put("disk", b"x" * 5000)
    machine.put("log", b"")
    spec = {
        "driver": "blklogwrites",
        "file": {"driver": "memory", "filename": "memory:disk"},
        "log": {"driver": "memory", "filename": "memory:log"},
    }
    with open_image(spec, context=machine.context, writable=True) as image:
        image.file.truncate(1000)
        image.file.truncate(3000)
        image.file.write(2999, b"y")
        image.file.zero(0, 10)
    device = list(states(b"x" * 5120, bytes(machine.files["log"])))[-1]
    assert device == bytes(10) + b"x" * 990 + bytes(1999) + b"y" + bytes(5120 - 3000)


def test_diskmill_goes_on_with_a_log_of_qemu_and_qemu_with_ours(tmp_path: Path) -> None:
    source = random.Random(1).randbytes(MiB)
    (tmp_path / "source").write_bytes(source)
    by_qemu = b"\1" * 4096 + bytes(4096) + b"\2" * (MiB - 8192)

    def options(name: str, append: str) -> str:
        files = f"file.file.filename={name},file.log.filename={name}.log"
        return f"driver=raw,file.driver=blklogwrites,{files},file.log-append={append}"

    def theirs(name: str, append: str) -> None:
        commands = ("write -P 1 0 4k", "write -z 4k 4k", "write -P 2 8k 1016k", "flush")
        words = [word for command in commands for word in ("-c", command)]
        run(tool("qemu-io"), "--image-opts", options(name, append), *words, cwd=tmp_path)

    def ours(name: str, append: str) -> None:
        words = ("-n", "-f", "raw", "--target-image-opts", "source", options(name, append))
        diskmill("convert", *words, cwd=tmp_path)

    for name, order, first, last in (("a", (theirs, ours), by_qemu, source), ("b", (ours, theirs), source, by_qemu)):
        (tmp_path / name).write_bytes(bytes(MiB))
        (tmp_path / f"{name}.log").touch()
        for number, write in enumerate(order):
            write(name, "on" if number else "off")
        seen = list(states(bytes(MiB), (tmp_path / f"{name}.log").read_bytes()))
        assert first in seen
        assert seen[-1] == last == (tmp_path / name).read_bytes()
