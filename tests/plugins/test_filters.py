"""The filters of plugins/filters, each for what it is for. Command lines beside qemu-img's stand in tests/commands."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diskmill import convert
from diskmill.contract.extents import Kind
from diskmill.contract.node import Image, Storage
from diskmill.errors import CancelledError, DiskmillError, RefusedError, StorageError, UsageError
from diskmill.opening.context import SharedObject
from diskmill.opening.gate import FOLDER
from diskmill.opening.graph import open_image
from diskmill.sizes import KiB, MiB
from formats import Machine
from tools import diskmill, qemu_img

SIZE = 300_000


@pytest.fixture
def machine() -> Machine:
    return Machine()


def memory(name: str) -> dict[str, Any]:
    return {"driver": "memory", "filename": f"memory:{name}"}


def opened(machine: Machine, driver: str, *, writable: bool = True, **options: Any) -> Image:
    options.setdefault("file", memory("disk"))
    return open_image({"driver": driver, **options}, context=machine.context, writable=writable)


def over(image: Image) -> Storage:
    """The filter that a raw image stands on."""
    assert isinstance(image.file, Storage)
    return image.file


TRANSPARENT: dict[str, dict[str, Any]] = {
    "throttle": {"limits.bps-total": 1 << 40, "limits.iops-read": 1 << 30},
    "blkdebug": {"file": None, "image": memory("disk"), "max-transfer": 1000},
    "blkverify": {"file": None, "raw": memory("other"), "test": memory("disk")},
    "quorum": {"file": None, "children": [memory("disk"), memory("other"), memory("third")], "vote-threshold": 3},
    "blklogwrites": {"log": memory("log")},
    "preallocate": {"prealloc-size": 64 * KiB, "prealloc-align": 4096},
    "delay": {"rdelay": "0.00001"},
    "retry": {},
    "readahead": {"readahead": 9000},
    "cache": {"cache-min-block-size": 4096, "cache-max-size": 40_000},
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_passes_through_is_what_a_plain_file_has(machine: Machine, name: str) -> None:
    chance = random.Random(name)
    expected = bytearray(chance.randbytes(SIZE))
    for file in ("disk", "other", "third"):
        machine.put(file, bytes(expected))
    machine.put("log", b"")
    options = {key: value for key, value in TRANSPARENT[name].items() if value is not None}
    spec = {"driver": name, **({} if "file" in TRANSPARENT[name] else {"file": memory("disk")}), **options}
    with open_image(spec, context=machine.context, writable=True) as image:
        node = over(image)
        for _ in range(300):
            what = chance.choice(("read", "read", "write", "zero", "truncate", "extents"))
            at, length = chance.randrange(SIZE), chance.choice((1, 512, 5000, 20_000))
            if what == "read":
                assert node.read(at, length) == bytes(expected[at : at + length]).ljust(length, b"\0")
            elif what == "extents":
                length = max(min(length, len(expected) - at), 0)
                for extent in node.extents(at, length):
                    if extent.kind is not Kind.DATA:
                        assert not any(expected[extent.start : extent.end])
                    length -= extent.length
                assert length == 0
            elif what == "truncate":
                size = chance.randrange(SIZE - 50_000, SIZE + 50_000)
                node.truncate(size)
                expected[:] = expected[:size].ljust(size, b"\0")
            else:
                data = bytes(length) if what == "zero" else chance.randbytes(length)
                if what == "zero":
                    node.zero(at, length)
                else:
                    node.write(at, data)
                expected[:] = expected.ljust(at, b"\0")
                expected[at : at + length] = data
        assert node.size == len(expected)
        node.flush()
    node.close()  # twice is harmless
    node.abandon()
    assert bytes(machine.files["disk"]) == expected
    if name == "quorum":
        assert bytes(machine.files["disk"]) == bytes(machine.files["third"])


def test_an_image_names_no_filter(machine: Machine, tmp_path: Path) -> None:
    """A filter may open files that the gate never sees: blkdebug's configuration, for one."""
    spec = {"driver": "blkdebug", "config": "/etc/passwd", "image": {"driver": "file", "filename": "base"}}
    (tmp_path / "base").write_bytes(bytes(MiB))
    for name in (f"json:{json.dumps({'driver': 'raw', 'file': spec})}", "blkdebug:/etc/passwd:base"):
        over = tmp_path / "over.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", over, "1M")
        machine.context.trust = FOLDER
        with pytest.raises(RefusedError, match="filter 'blkdebug' is not trusted"):
            open_image(str(over), "qcow2", context=machine.context)


def test_filters_stand_on_filters(machine: Machine) -> None:
    machine.put("disk", b"x" * 4096)
    deep: dict[str, Any] = memory("disk")
    for driver, role in (("retry", "file"), ("blkdebug", "image"), ("cache", "file"), ("delay", "file")):
        deep = {"driver": driver, role: deep}
    spec = {"driver": "quorum", "vote-threshold": 2, "children": [deep, {"driver": "raw", "file": memory("disk")}]}
    with open_image(spec, context=machine.context) as image:
        assert image.read(0, 4096) == b"x" * 4096


def test_nodes_are_not_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    for levels, status in ((20, 0), (200, 1), (900, 1)):
        text = '{"driver":"file","filename":"disk"}'
        for _ in range(levels):
            text = f'{{"driver":"quorum","vote-threshold":1,"children":[{text}]}}'
        done = diskmill("info", f"json:{text}", cwd=tmp_path, check=False)
        assert done.returncode == status and len(done.stderr.splitlines()) == status
        assert "internal error" not in done.stderr


# --- blkdebug


def debug(machine: Machine, *rules: dict[str, Any], changes: tuple[dict[str, Any], ...] = ()) -> Image:
    machine.put("disk", b"x" * 65536)
    options = {"inject-error": list(rules), "set-state": list(changes)}
    spec = {"driver": "blkdebug", "image": memory("disk"), **{key: value for key, value in options.items() if value}}
    return open_image(spec, context=machine.context, writable=True)


def test_an_error_comes_once_or_always(machine: Machine) -> None:
    with debug(machine, {"event": "read_aio", "errno": 28, "once": True}) as image:
        with pytest.raises(StorageError, match="No space left") as caught:
            image.read(0, 512)
        assert caught.value.errno == 28
        assert image.read(512, 512) == b"x" * 512
    with debug(machine, {"event": "write_aio", "iotype": "write"}) as image:
        image.read(0, 512)
        for _ in range(3):
            with pytest.raises(StorageError, match="Input/output"):
                image.write(0, b"y")
        assert image.read(0, 512) == b"x" * 512


def test_an_error_of_one_sector(machine: Machine) -> None:
    with debug(machine, {"event": "none", "sector": 3, "iotype": "read"}) as image:
        assert image.read(0, 1536) == b"x" * 1536
        assert image.read(2048, 10) == b"x" * 10
        for offset, length in ((0, 1537), (1600, 1), (2047, 512)):
            with pytest.raises(StorageError):
                image.read(offset, length)
        image.write(1536, b"y" * 512)


def test_states_follow_each_other(machine: Machine) -> None:
    changes = ({"event": "write_aio", "state": 1, "new_state": 2}, {"event": "write_aio", "state": 2, "new_state": 3})
    with debug(machine, {"event": "write_aio", "state": 3, "iotype": "write"}, changes=changes) as image:
        image.write(0, b"1")
        image.write(0, b"2")
        with pytest.raises(StorageError):
            image.write(0, b"3")


def test_kinds_of_requests(machine: Machine) -> None:
    for kind in ("read", "write", "write-zeroes", "discard", "flush", "block-status"):
        with debug(machine, {"event": "none", "iotype": kind, "once": True}) as image:
            node = over(image)

            def calls(node: Storage = node) -> Iterator[tuple[str, Any]]:
                yield "read", lambda: node.read(0, 10)
                yield "write", lambda: node.write(0, b"y")
                yield "write-zeroes", lambda: node.zero(0, 512)
                yield "discard", lambda: node.discard(0, 512)
                yield "flush", node.flush
                yield "block-status", lambda: list(node.extents(0, 512))

            for name, call in calls():
                if name == kind:
                    with pytest.raises(StorageError):
                        call()
                else:
                    call()


def test_a_configuration_says_what_options_say(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 4096)
    (tmp_path / "rules").write_text(
        '# rules\n[set-state "one"]\nevent = "read_aio"\nstate = "1"\nnew_state = "2"\n\n'
        '[inject-error]\nevent = "read_aio"\nstate = "1"\nerrno = "13"\nsector = "0"\n'
    )
    done = diskmill("convert", "-f", "raw", "-O", "raw", "blkdebug:rules:disk", "out", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Permission denied" in done.stderr
    (tmp_path / "rules").write_text("[inject-error]\nevent = read_aio\n")
    done = diskmill("info", "blkdebug:rules:disk", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "line 2" in done.stderr


# --- quorum and blkverify


def quorum(machine: Machine, *contents: bytes, **options: Any) -> Image:
    for number, content in enumerate(contents):
        machine.put(f"q{number}", content)
    children = [memory(f"q{number}") for number in range(len(contents))]
    return open_image({"driver": "quorum", "children": children, **options}, context=machine.context, writable=True)


def test_what_is_outvoted_is_put_right(machine: Machine) -> None:
    with quorum(
        machine, b"a" * 4096, b"b" * 4096, b"a" * 4096, **{"vote-threshold": 2, "rewrite-corrupted": True}
    ) as image:
        assert image.read(0, 1024) == b"a" * 1024
    assert bytes(machine.files["q1"]) == b"a" * 1024 + b"b" * 3072


def test_no_majority_is_an_error(machine: Machine) -> None:
    with quorum(machine, b"a" * 512, b"b" * 512, b"c" * 512, **{"vote-threshold": 2}) as image:
        with pytest.raises(StorageError, match="fewer than 2 of 3"):
            image.read(0, 512)
        image.write(0, b"d" * 512)
        assert image.read(0, 512) == b"d" * 512


def test_a_quorum_lives_with_a_node_that_fails(machine: Machine) -> None:
    for name in ("q0", "q1"):
        machine.put(name, b"a" * 4096)
    broken = {"driver": "blkdebug", "image": memory("q0"), "inject-error": [{"event": "none"}]}
    for threshold, pattern in ((1, "quorum"), (1, "fifo"), (2, "quorum")):
        spec = {
            "driver": "quorum",
            "children": [broken, memory("q1")],
            "vote-threshold": threshold,
            "read-pattern": pattern,
        }
        image = open_image(spec, context=machine.context, writable=True)
        if threshold == 1:
            image.write(0, b"b" * 512)
            assert image.read(0, 513) == b"b" * 512 + b"a"
        else:
            with pytest.raises(StorageError, match="Input/output"):
                image.read(0, 512)
            with pytest.raises(StorageError, match="Input/output"):
                image.write(0, b"c")
        image.abandon()


def test_blkverify_finds_the_first_difference(machine: Machine) -> None:
    machine.put("disk", b"a" * 5000 + b"!" + b"a" * 1143)
    machine.put("raw", b"a" * 6144)
    spec = {"driver": "blkverify", "raw": memory("raw"), "test": memory("disk")}
    with open_image(spec, context=machine.context) as image:
        assert image.read(0, 5000) == b"a" * 5000
        with pytest.raises(StorageError, match="contents mismatch at offset 5000"):
            image.read(4096, 2048)


# --- the others


def test_copy_on_read_keeps_what_the_backing_image_has(machine: Machine) -> None:
    machine.fill("base", "raw", random.Random(1).randbytes(MiB))
    machine.create("over", "qcow2", MiB, backing=machine.backing("base", "raw"))
    spec = {"driver": "copy-on-read", "file": {"driver": "qcow2", "file": memory("over")}}
    with open_image(spec, context=machine.context, writable=True) as image:
        image.write(100_000, b"own" * 10)
        assert image.read(70_000, 10) == random.Random(1).randbytes(MiB)[70_000:70_010]
        image.read(300_000, 200_000)
    machine.check("over", "qcow2")
    expected = bytearray(random.Random(1).randbytes(MiB))
    expected[100_000:100_030] = b"own" * 10
    with machine.open("over", "qcow2") as image:
        kept = [one for one in image.extents(0, MiB) if one.kind is Kind.DATA]
        assert [(one.start, one.end) for one in kept] == [(65536, 131072), (262144, 524288)]
        assert image.read(0, MiB) == expected
    with pytest.raises(UsageError, match="Block node is read-only"):
        open_image(spec, context=machine.context)


def test_what_is_written_through_compress_is_compressed(machine: Machine) -> None:
    machine.create("disk", "qcow2", MiB + 512)
    spec = {"driver": "compress", "file": {"driver": "qcow2", "file": memory("disk")}}
    expected = bytearray(MiB + 512)
    with open_image(spec, context=machine.context, writable=True) as image:
        for at, data in ((0, b"a" * 200_000), (70_000, b"b" * 10), (MiB, b"c" * 512), (400_000, b"d" * 1000)):
            image.write(at, data)
            expected[at : at + len(data)] = data
        assert image.read(0, MiB + 512) == expected
    machine.check("disk", "qcow2")
    with machine.open("disk", "qcow2") as image:
        assert image.read(0, MiB + 512) == expected
        kinds = {one.kind for one in image.extents(0, MiB)}
        assert Kind.ENCODED in kinds and Kind.DATA not in kinds
    assert len(bytes(machine.files["disk"])) < 500_000


def test_space_ahead_is_claimed_and_given_back(machine: Machine) -> None:
    machine.put("disk", b"")
    image = opened(machine, "preallocate", **{"prealloc-size": MiB, "prealloc-align": 4096})
    node = over(image)
    node.write(0, b"x" * 5000)
    assert len(bytes(machine.files["disk"])) >= MiB and node.size == 5000
    assert [(one.kind, one.length) for one in node.extents(0, 6000)][-1] == (Kind.ZERO, 1000)
    image.close()
    assert bytes(machine.files["disk"]) == b"x" * 5000


def test_failures_are_tried_again_but_flushes_are_not(machine: Machine) -> None:
    for event, kind in (("read_aio", "read"), ("write_aio", "write"), ("flush_to_disk", "flush")):
        machine.put("disk", b"x" * 4096)
        rule = {"event": event, "once": True, "iotype": kind}
        below = {"driver": "blkdebug", "image": memory("disk"), "inject-error": [rule]}
        image = opened(machine, "retry", file=below, **{"retry-delay": 0})
        assert image.read(0, 10) == b"x" * 10
        image.write(0, b"y")
        if kind == "flush":
            with pytest.raises(StorageError):
                image.flush()
        image.close()
        assert bytes(machine.files["disk"])[:1] == b"y"
    machine.put("disk", b"x" * 4096)
    below = {"driver": "blkdebug", "image": memory("disk"), "inject-error": [{"event": "none", "iotype": "read"}]}
    image = opened(machine, "retry", file=below, **{"retry-delay": 0})
    with pytest.raises(StorageError, match="Input/output"):
        image.read(0, 10)
    image.abandon()


def test_cancelling_reaches_a_filter_that_waits(machine: Machine, tmp_path: Path) -> None:
    machine.put("disk", b"x" * 4096)
    below = {"driver": "blkdebug", "image": memory("disk"), "inject-error": [{"event": "none", "iotype": "read"}]}
    node = {"driver": "retry", "file": below, "retry-delay": 3600}
    name = "json:" + json.dumps({"driver": "raw", "file": node})
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(CancelledError):
        convert([name], str(tmp_path / "out"), context=machine.context, cancel=cancel)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "size"),
    [({"truncate": 3000}, 3000), ({"truncate": 9000}, 9000), ({"round-up": 4096}, 8192), ({"round-down": 4096}, 4096)],
)
def test_truncate_pads_and_cuts(machine: Machine, options: dict[str, Any], size: int) -> None:
    machine.put("disk", b"x" * 5000)
    image = opened(machine, "truncate", **options)
    node = over(image)
    assert node.size == size
    assert node.read(0, 10_000) == (b"x" * 5000)[:size].ljust(10_000, b"\0")
    assert sum(one.length for one in node.extents(0, size)) == size
    node.zero(0, size)
    if size > 5000:
        node.write(5000, bytes(size - 5000))
        with pytest.raises(StorageError, match="padding"):
            node.write(4990, b"y" * 11)
    image.close()
    assert bytes(machine.files["disk"]) == bytes(min(size, 5000)) + b"x" * max(5000 - size, 0)


def test_a_group_is_shared(machine: Machine) -> None:
    """What passes one node counts for the other; a burst passes at once."""
    limits = {"x-bps-total": 10_000_000, "x-bps-total-max": 20_000_000}
    machine.context.objects["g"] = SharedObject("throttle-group", limits)
    images = []
    for name in ("one", "two"):
        machine.put(name, b"x" * (8 << 20))
        images.append(opened(machine, "throttle", file=memory(name), **{"throttle-group": "g"}))
    begin = time.monotonic()
    for image in images:
        for at in range(0, 8 << 20, MiB):
            image.read(at, MiB)
    assert time.monotonic() - begin > 0.1  # 16 MiB, 20 of them a second at most
    begin = time.monotonic()
    for image in images:
        for at in range(0, 4 << 20, MiB):
            image.write(at, b"y" * MiB)
        image.close()
    assert time.monotonic() - begin > 0.3  # the burst is used up


def test_null_is_zeros_and_forgets(machine: Machine) -> None:
    with open_image({"driver": "null-co", "size": "1M"}, context=machine.context, writable=True) as image:
        image.write(0, b"x" * 512)
        assert image.read(0, MiB) == bytes(MiB)
        assert [one.kind for one in image.extents(0, MiB)] == [Kind.ZERO]


@pytest.mark.parametrize(
    "spec",
    [
        {"driver": "delay", "rdelay": "soon"},
        {"driver": "truncate", "round-up": 0},
        {"driver": "readahead", "readahead": "1G"},
        {"driver": "cache", "cache-min-block-size": 5000},
        {"driver": "throttle", "limits.bps-total": 1, "throttle-group": "g"},
        {"driver": "quorum", "vote-threshold": 1, "children.x.filename": "disk"},
        {"driver": "blkverify", "raw": "disk"},
        {"driver": "retry", "filename": "retry:disk"},
    ],
    ids=lambda spec: spec["driver"],
)
def test_nonsense_is_refused(machine: Machine, spec: dict[str, Any]) -> None:
    machine.put("disk", bytes(4096))
    if spec["driver"] not in ("quorum", "blkverify"):
        spec = {**spec, "file": memory("disk")}
    with pytest.raises(DiskmillError):
        open_image(spec, context=machine.context)
