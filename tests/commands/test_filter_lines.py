"""Each filter beside qemu-img's own of the same name, on 30 command lines or more: the same exit status, data and JSON.

Every line is a node of one table, and what a command of another one does with it. A run of the tests takes one in nine;
``DISKMILL_FILTER_LINES=all`` takes all.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import MiB, scattered_file
from tools import dropin, qemu_img, qemu_io, without_newer

EACH = 1 if os.environ.get("DISKMILL_FILTER_LINES") == "all" else 9
"""Of so many lines one is taken."""
GROUP = "--object throttle-group,id=g,{} "
COMMANDS = (
    "info --output=json {}",
    "map --output=json {}",
    "convert -O raw {} new",
    "measure --output=json -O qcow2 {}",
    "compare {} {}",
)


def over(filter: str, options: str = "", child: str = "file") -> list[str]:
    """*filter* with *options*: below a format and over one, over another filter, and over what is not there."""
    own = "".join(f",{one}" for one in options.split(",") if one)
    deep = "".join(f",file.{one}" for one in options.split(",") if one)
    below = f"file.driver={filter}{deep},file.{child}.driver=file,file.{child}.filename"
    return [
        f"--image-opts driver=raw,{below}=img.raw",
        f"--image-opts driver=qcow2,{below}=img.qcow2",
        f"--image-opts driver={filter}{own},{child}.driver=qcow2,{child}.file.driver=file,"
        f"{child}.file.filename=over.qcow2",
        f"--image-opts driver={filter}{own},{child}.driver=raw,{child}.offset=4096,{child}.size=65536,"
        f"{child}.file.driver=file,{child}.file.filename=img.raw",
        f"--image-opts driver=raw,{below}=nothere",
    ]


def quorum(options: str, *names: str) -> str:
    children = ",".join(
        f"file.children.{number}.driver=file,file.children.{number}.filename={name}"
        for number, name in enumerate(names)
    )
    return f"--image-opts driver=raw,file.driver=quorum,{options},{children}"


def verify(raw: str, test: str) -> str:
    return f"--image-opts driver=blkverify,raw.driver=file,raw.filename={raw},{test}"


def debug(rule: str, image: str = "image.driver=file,image.filename=img.raw") -> str:
    below = ",".join(f"file.{one}" for one in (*image.split(","), *rule.split()))
    return f"--image-opts driver=raw,file.driver=blkdebug,{below}"


NODES: dict[str, list[str]] = {
    "throttle": [
        *(GROUP.format("x-bps-total=1000000000") + one for one in over("throttle", "throttle-group=g")),
        GROUP.format("x-iops-total=1000000,x-bps-read=900000000,x-bps-read-max=1000000000")
        + over("throttle", "throttle-group=g")[0],
    ],
    "blkdebug": [
        *over("blkdebug", child="image")[:4],
        debug("inject-error.0.event=read_aio inject-error.0.errno=5 inject-error.0.once=on"),
        debug("inject-error.0.event=none inject-error.0.iotype=read inject-error.0.sector=128"),
        debug("align=4096 max-transfer=65536"),
    ],
    "blkverify": [
        verify("img.raw", "test.driver=raw,test.file.driver=file,test.file.filename=twin.raw"),
        verify("twin.raw", "test.driver=raw,test.file.driver=file,test.file.filename=img.raw"),
        verify("img.raw", "test.driver=qcow2,test.file.driver=file,test.file.filename=over.qcow2"),
        verify("nothere", "test.driver=raw,test.file.driver=file,test.file.filename=twin.raw"),
        verify("img.raw", "test.driver=raw,test.file.driver=file,test.file.filename=nothere"),
        verify("img.raw", "test.driver=raw,test.file.driver=throttle,test.file.throttle-group=g"),
        "blkverify:img.raw:twin.raw",
    ],
    "quorum": [
        quorum("file.vote-threshold=2", "img.raw", "twin.raw", "other.raw"),
        quorum("file.vote-threshold=3", "img.raw", "twin.raw", "other.raw"),
        quorum("file.vote-threshold=2,file.blkverify=on", "img.raw", "twin.raw"),
        quorum("file.vote-threshold=1,file.read-pattern=fifo", "img.raw", "other.raw"),
        quorum("file.vote-threshold=2", "img.raw", "nothere", "twin.raw"),
        quorum("file.vote-threshold=4", "img.raw", "twin.raw", "other.raw"),
    ],
    "copy-on-read": over("copy-on-read") + over("copy-on-read")[:1],
    "compress": over("compress") + over("compress")[1:2],
    "blklogwrites": [
        f"{one},{'file.' * one.startswith('--image-opts driver=raw,file.driver=blk')}log.driver=file,"
        f"{'file.' * one.startswith('--image-opts driver=raw,file.driver=blk')}log.filename=log"
        for one in [over("blklogwrites")[number] for number in (0, 3, 4)]
    ]
    + [
        "--image-opts driver=raw,file.driver=blklogwrites,file.log-sector-size=4096,file.log.driver=file,"
        "file.log.filename=log,"
        "file.file.driver=file,file.file.filename=img.raw",
        "--image-opts driver=raw,file.driver=blklogwrites,file.log.driver=file,file.log.filename=nothere,"
        "file.file.driver=file,file.file.filename=img.raw",
        "--image-opts driver=raw,file.driver=blklogwrites,file.file.driver=file,file.file.filename=img.raw",
    ],
    "null": [
        *(f"--image-opts driver=raw,file.driver={one},file.read-zeroes=on{size}" for one in ("null-co", "null-aio")
          for size in (",file.size=4194304", ",file.size=1048576")),
        "--image-opts driver=null-co,read-zeroes=on,size=1M",
        "--image-opts driver=raw,file.driver=null-co,file.size=1000,file.read-zeroes=on",
        "--image-opts driver=qcow2,file.driver=null-co,file.read-zeroes=on",
    ],
    "preallocate": over("preallocate") + over("preallocate", "prealloc-align=65536,prealloc-size=1048576")[:1],
    "raw": [
        "--image-opts driver=raw,offset=512,size=1024,file.driver=file,file.filename=img.raw",
        "--image-opts driver=raw,offset=65536,file.driver=file,file.filename=img.raw",
        "--image-opts driver=raw,size=4096,file.driver=file,file.filename=img.raw",
        "--image-opts driver=raw,offset=512,size=2M,file.driver=file,file.filename=img.raw",
        "--image-opts driver=raw,offset=512,size=512,file.driver=file,file.filename=nothere",
        "--image-opts driver=raw,offset=65536,size=131072,file.driver=qcow2,file.file.driver=file,"
        "file.file.filename=over.qcow2",
    ],
}  # fmt: skip


def lines() -> Iterator[Any]:
    for name, nodes in NODES.items():
        assert len(nodes) * len(COMMANDS) >= 30, name
        for place, node in enumerate(nodes):
            for number, command in enumerate(COMMANDS):
                rest = node.partition("--image-opts ")[2]
                if (name, place, number) == ("blkverify", 2, 1):
                    continue  # a map of ours is of the image that is tested, theirs of the raw one
                line = command.replace("{} {}", "{0} {1}").replace("{}", "{0}").format(node, rest or node)
                yield pytest.param(line, id=f"{name}-{place}-{number}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("img.raw", 1), ("twin.raw", 1), ("other.raw", 2)):
        scattered_file(tmp_path / name, MiB, seed=seed, pieces=4)
    (tmp_path / "log").write_bytes(bytes(MiB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "img.raw", "img.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "img.qcow2", "-F", "qcow2", "over.qcow2")
    qemu_io("over.qcow2", "write -P 7 512k 64k", "write -z 64k 64k", format="qcow2")
    return tmp_path


def answer(command: str, status: int, out: str, made: Path) -> tuple[Any, ...]:
    """What is compared of what a program did."""
    data = made.read_bytes() if made.exists() else None
    made.unlink(missing_ok=True)
    if command == "compare":  # blkverify ends qemu-img itself where it finds a difference
        return min(status, 1), out
    told = without_newer(json.loads(out)) if out.startswith(("{", "[")) else None
    if command == "info" and told is not None:
        told = told["virtual-size"]
    if command == "map" and told is not None:
        ranges: list[list[Any]] = []
        for one in told:  # of a hole with nothing behind it qemu-img does not always say that it reads as zeros
            kind = [one["data"], one["zero"] if one["data"] else True]
            if ranges and ranges[-1][1:] == kind:
                ranges[-1][0] += one["length"]
            else:
                ranges.append([one["length"], *kind])
        told = ranges
    return min(status, 1), told, data if status == 0 else None


@pytest.mark.parametrize("line", list(lines())[::EACH])
def test_it_is_as_qemus(line: str, folder: Path) -> None:
    words = shlex.split(line)
    theirs = qemu_img(*words, check=False)
    expected = answer(words[0], theirs.returncode, theirs.stdout, folder / "new")
    status, out, err = dropin(*words)
    assert answer(words[0], status, out, folder / "new") == expected, (err, theirs.stderr)
    assert status == 0 or words[0] == "compare" or len(err.splitlines()) == 1
