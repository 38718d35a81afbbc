"""Options of nodes that say how they are used: in option strings and `json:` names, as QEMU's users write them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diskmill.errors import DiskmillError, LockedError, UsageError
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image, storage_of
from diskmill.opening.names import flatten, parse_name
from diskmill.opening.runtime import split_runtime
from diskmill.sizes import MiB
from tools import diskmill, qemu_img, qemu_io

NODE = "driver=qcow2,file.filename={}"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "4M")
    qemu_io(path, "write -P 7 0 4M")
    return path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{'file': {'driver': 'file', 'filename': 'a'}}", "a"),
        ("{'file.filename': 'it\\'s'}", "it's"),
        ("{'file.filename': \"it's\"}", "it's"),
        ("{'file.filename': 'say \"x\"'}", 'say "x"'),
        ("{'file.filename': 'say \\\"x\\\"'}", 'say "x"'),
        ('{"file.filename": "it\\\'s \'"}', "it's '"),
        ("{'file.filename': 'back\\\\slash\\u0041'}", "back\\slashA"),
    ],
)
def test_strings_in_single_quotes(text: str, name: str) -> None:
    assert parse_name(f"json:{text}")["file"]["filename"] == name


@pytest.mark.parametrize(
    "text", ["{'a': 'b", "{'a': 1,}", "{'a': 1, 'a': 2}", "{'a': NaN}", "{'a': '\\x'}", "{a: 1}", "'"]
)
def test_what_no_parser_takes(text: str) -> None:
    with pytest.raises(UsageError, match="cannot parse"):
        parse_name(f"json:{text}")


IDLE = [
    *("l2-cache-size=1M", "cache-size=2M", "l2-cache-entry-size=4k", "refcount-cache-size=128k"),
    *("cache-clean-interval=5", "lazy-refcounts=on", "pass-discard-request=on", "pass-discard-snapshot=off"),
    *("pass-discard-other=on", "overlap-check=all", "overlap-check.template=constant", "overlap-check.main-header=on"),
    *("cache.direct=on", "cache.no-flush=on", "discard=unmap", "detect-zeroes=on", "read-only=on"),
    *("auto-read-only=on", "force-share=on", "node-name=disk0", "file.aio=threads", "file.locking=off"),
    *("file.cache.direct=on", "file.node-name=f", "file.read-only=on", "file.discard=ignore", "detect-zeroes=off"),
]


@pytest.mark.parametrize("option", IDLE)
def test_read_as_qemu_img_reads(option: str, disk: Path) -> None:
    words = ("info", "--output=json", "--image-opts", f"{NODE.format(disk)},{option}")
    ours, theirs = (json.loads(one(*words).stdout) for one in (diskmill, qemu_img))
    assert ours["filename"] == theirs["filename"] == str(disk)
    assert ours["virtual-size"] == theirs["virtual-size"]


@pytest.mark.parametrize("option", ["discard-no-unref=on", "file.pr-manager=helper0"])
def test_what_the_oracle_here_cannot_have(option: str, disk: Path) -> None:
    """An option of later releases, and one that names an object of a virtual machine."""
    assert json.loads(diskmill("info", "--output=json", "--image-opts", f"{NODE.format(disk)},{option}").stdout)


@pytest.mark.parametrize(
    "option",
    [
        *("detect-zeroes=unmap", "detect-zeroes=unmap,discard=ignore", "detect-zeroes=2", "discard=maybe"),
        *("overlap-check=some", "file.locking=maybe", "file.aio=posix", "node-name=0x", "cache.writeback=on"),
        *("read-only=maybe", "file.cache.direct=maybe"),
    ],
)
def test_refused_as_qemu_img_refuses(option: str, disk: Path) -> None:
    words = ("info", "--image-opts", f"{NODE.format(disk)},{option}")
    assert [one(*words, check=False).returncode for one in (diskmill, qemu_img)] == [1, 1]


@pytest.mark.parametrize("option", ["read-only=on", "force-share=on", "file.read-only=on"])
def test_not_written(option: str, disk: Path) -> None:
    before = disk.read_bytes()
    words = ("resize", "--image-opts", f"{NODE.format(disk)},{option}", "+1M")
    assert [one(*words, check=False).returncode for one in (diskmill, qemu_img)] == [1, 1]
    assert disk.read_bytes() == before


@pytest.mark.parametrize(
    ("mode", "options", "cache"),
    [
        ("writeback", {"cache.direct": True}, "none"),
        ("writeback", {"cache": {"no-flush": True}}, "unsafe"),
        ("writethrough", {"cache.direct": True}, "directsync"),
        ("none", {"cache.direct": False}, "writeback"),
        ("directsync", {"cache": {"direct": False}}, "writethrough"),
        ("unsafe", {"cache.no-flush": False}, "writeback"),
        ("none", {"cache.no-flush": True}, "none"),
    ],
)
def test_cache_mode_of_a_node(mode: str, options: dict[str, object], cache: str) -> None:
    runtime, _ = split_runtime(flatten(options))
    assert runtime.context(Context(cache=mode)).cache == cache


@pytest.mark.parametrize(
    ("options", "direct"),
    [
        ({}, False),
        ({"cache": {"direct": True}}, True),
        ({"file": {"cache.direct": True}}, True),
        ({"cache.direct": True, "file": {"cache.direct": False}}, False),
    ],
)
def test_the_file_inherits_the_cache_mode(options: dict[str, Any], direct: bool, disk: Path) -> None:
    below = {"driver": "file", "filename": str(disk), **options.get("file", {})}
    with open_image({"driver": "qcow2", **options, "file": below}, context=Context()) as image:
        fd = storage_of(image).fileno()
        assert fd is not None
        assert bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT) == direct


@pytest.fixture
def held(disk: Path) -> Iterator[Path]:
    with open_image(str(disk), context=Context(), writable=True):
        yield disk


def test_locks_are_as_the_node_says(held: Path) -> None:
    spec = {"driver": "qcow2", "file": {"driver": "file", "filename": str(held)}}
    with pytest.raises(LockedError):
        open_image(spec, context=Context())
    for more in ({"force-share": True}, {"file": {**spec["file"], "locking": "off"}}):  # type: ignore[dict-item]
        open_image({**spec, **more}, context=Context()).close()


@pytest.mark.parametrize(("option", "kept"), [("discard=unmap", False), ("discard=ignore", True)])
def test_space_comes_back_unless_the_node_forbids(option: str, kept: bool, disk: Path, tmp_path: Path) -> None:
    """Zeros over an image that is full: the clusters' space goes back to the file system, or stays."""
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(4 * MiB))
    diskmill("convert", "-n", "-f", "raw", zeros, "--target-image-opts", f"{NODE.format(disk)},{option}")
    assert (disk.stat().st_blocks * 512 >= 4 * MiB) == kept
    assert qemu_img("compare", "-f", "raw", zeros, disk).returncode == 0
    assert qemu_img("check", disk).returncode == 0


@pytest.mark.parametrize(("option", "data"), [("detect-zeroes=on", 0), ("detect-zeroes=off", 4 * MiB)])
def test_zeros_are_found_where_the_node_asks(option: str, data: int, disk: Path) -> None:
    spec = {"driver": "qcow2", "file": {"driver": "file", "filename": str(disk)}, **dict([option.split("=")])}
    with open_image(spec, context=Context(), writable=True) as image:
        image.write(0, bytes(4 * MiB))
    entries = json.loads(qemu_img("map", "--output=json", disk).stdout)
    assert sum(one["length"] for one in entries if one["data"]) == data


def test_zeros_are_found_in_a_copy_that_would_write_them(disk: Path, tmp_path: Path) -> None:
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(4 * MiB))
    target = f"{NODE.format(disk)},detect-zeroes=on"
    diskmill("convert", "-n", "-S", "0", "-f", "raw", zeros, "--target-image-opts", target)
    assert not any(one["data"] for one in json.loads(qemu_img("map", "--output=json", disk).stdout))


def test_an_unknown_option_is_refused(disk: Path) -> None:
    with pytest.raises(DiskmillError, match="no option"):
        open_image({"driver": "qcow2", "l3-cache-size": 1, "file": {"filename": str(disk)}}, context=Context())
