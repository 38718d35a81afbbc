"""New images, byte for byte as qemu-img makes them, over hundreds of combinations of options.

What is made up for each image (identifiers, times) is masked: see MASKS. Programs that know the layout of QEMU's
qcow2 images (header, refcount table, first refcount block and L1 table in the first clusters) find it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from diskmill.sizes import parse_size
from tools import qemu_img

SIZES = ("0", "512", "1000", "1M", "5000000", "64M", "3G", "300G", "9T")
SMALL = ("0", "1000", "1M", "5000000", "64M")


def qcow2_options() -> Iterator[tuple[list[str], str]]:
    draw = random.Random(3)
    for cluster, bits in itertools.product(("512", "4k", "64k", "256k", "2M"), (1, 2, 4, 8, 16, 32, 64)):
        for size in draw.sample(SIZES[: {"512": 6, "4k": 8}.get(cluster, 9)], 4):
            yield [f"cluster_size={cluster}", f"refcount_bits={bits}"], size
    for compat, cluster in itertools.product(("0.10", "v3"), ("512", "1k", "8k", "64k")):
        yield [f"compat={compat}", f"cluster_size={cluster}"], draw.choice(SIZES[:6])
    for cluster in ("16k", "64k", "2M"):
        for more in ([], ["lazy_refcounts=on"], ["compression_type=zstd"], ["lazy_refcounts=on", "refcount_bits=1"]):
            yield [f"cluster_size={cluster}", "extended_l2=on", *more], draw.choice(SIZES)
    for bits, cluster in itertools.product((1, 8, 16, 64), ("512", "4k", "64k", "2M")):
        for extended in ("on", "off") if cluster in ("64k", "2M") else ("off",):
            options = [f"cluster_size={cluster}", f"refcount_bits={bits}", f"extended_l2={extended}"]
            # As far as one refcount block counts it: where the next ones go is the writer's choice.
            counted = parse_size(cluster) ** 2 * 8 // bits
            for size in [one for one in SMALL if parse_size(one) * 9 // 8 < counted]:
                yield [*options, "preallocation=metadata"], size
    for more in ([], ["data_file_raw=on"]):
        for size in SMALL:
            yield ["data_file=data", *more], size
    for name in ("base.qcow2", "./base.qcow2"):
        for more in ([], ["extended_l2=on"], ["cluster_size=2M"], ["compat=v2"], ["cluster_size=512"]):
            yield [f"backing_file={name}", "backing_fmt=qcow2", *more], draw.choice(SIZES[:6])


# Other formats leave more to the writer: where VDI, VHDX and streamOptimized VMDK begin their data.
OTHERS: dict[str, list[list[str]]] = {
    "raw": [[], ["preallocation=full"], ["preallocation=falloc"]],
    "qcow": [[], ["backing_file=base.qcow2", "backing_fmt=qcow2"], ["backing_file=./base.raw", "backing_fmt=raw"]],
    "parallels": [[], *([f"cluster_size={one}"] for one in ("4k", "64k", "1M", "2M", "32256"))],
    "qed": [
        *(
            [f"cluster_size={cluster}", f"table_size={table}"]
            for cluster in ("4k", "64k", "1M")
            for table in (2, 4, 16)
        ),
        ["backing_file=base.qcow2", "backing_fmt=qcow2"],
        ["backing_file=base.raw", "backing_fmt=raw"],
    ],
    "vpc": [["subformat=dynamic"], ["subformat=fixed"], ["force_size=on"], ["subformat=fixed", "force_size=on"]],
    "vmdk": [
        *([f"subformat={one}"] for one in ("monolithicSparse", "monolithicFlat")),
        *([f"adapter_type={one}"] for one in ("ide", "lsilogic", "buslogic", "legacyESX")),
        ["hwversion=7", "zeroed_grain=on"],
        ["compat6"],
    ],
}


def lines() -> Iterator[tuple[str, list[str], str]]:
    for options, size in qcow2_options():
        yield "qcow2", options, size
    for format, every in OTHERS.items():
        for options in every:
            for size in ("512", "1M", "5000192", "64M"):
                yield format, options, size


LINES = list(lines())

Mask = Callable[[bytearray], None]


def blank(*ranges: tuple[int, int]) -> Mask:
    """Zeros instead of the bytes (start, end); negative ones count from the end."""

    def mask(data: bytearray) -> None:
        for start, end in ranges:
            low, high = (at + len(data) if at < 0 else at for at in (start, end))
            data[low:high] = bytes(max(min(high, len(data)) - low, 0))

    return mask


def mask_vpc(data: bytearray) -> None:
    """Of each footer: time, unique id, and the checksum over them."""
    for at in (0, len(data) - 512):
        if data[at : at + 8] == b"conectix":
            blank((at + 24, at + 28), (at + 64, at + 84))(data)


def mask_vmdk(data: bytearray) -> None:
    """The descriptor's content identifier."""
    data[:4096] = re.sub(rb"\nCID=[0-9a-f]+", b"\nCID=", data[:4096]).ljust(4096, b"\0")


MASKS: dict[str, Mask] = {
    "vpc": mask_vpc,
    "vmdk": mask_vmdk,
}


def made(run: Callable[[list[str]], tuple[int, str]], line: tuple[str, list[str], str]) -> tuple[int, str]:
    format, options, size = line
    return run(["create", "-q", "-f", format, *(["-o", ",".join(options)] if options else []), "new", size])


def ours(words: list[str]) -> tuple[int, str]:
    from diskmill_cli.main import run
    from diskmill_cli.session import Session

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        return run(words, Session()), err.getvalue()


def theirs(words: list[str]) -> tuple[int, str]:
    done = qemu_img(*words, check=False)
    return done.returncode, done.stderr


def difference(one: Path, other: Path, format: str) -> str | None:
    """Where the files differ; they may be large, and mostly holes."""
    sizes = [path.stat().st_size for path in (one, other)]
    if sizes[0] != sizes[1] and not (format == "vmdk" and max(sizes) < 4096):  # a descriptor: CIDs have 1 to 8 digits
        return f"{sizes[0]} and {sizes[1]} bytes"
    with one.open("rb") as left, other.open("rb") as right:
        data = [bytearray(file.read(4 << 20)) for file in (left, right)]
    for part in data:
        MASKS.get(format, lambda data: None)(part)
    if data[0] == data[1]:
        return None
    at = next(at for at, (low, high) in enumerate(zip(*data, strict=True)) if low != high)
    return f"offset {at}: {data[0][at : at + 16].hex()} and {data[1][at : at + 16].hex()}"


@pytest.mark.parametrize("at", range(0, len(LINES), 25))
def test_as_qemu_img_makes_them(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = tmp_path / "theirs", tmp_path / "ours"
    for folder in folders:
        folder.mkdir()
        for format in ("qcow2", "raw"):
            qemu_img("create", "-q", "-f", format, folder / f"base.{format}", "1M")
    wrong = []
    for line in LINES[at : at + 25]:
        outcomes = []
        for folder, run in zip(folders, (theirs, ours), strict=True):
            monkeypatch.chdir(folder)
            for path in folder.glob("new*"):
                path.unlink()
            outcomes.append(made(run, line))
        assert [status for status, _ in outcomes] == [0, 0], f"{line}: {outcomes}"
        found = difference(folders[0] / "new", folders[1] / "new", line[0])
        if found:
            wrong.append(f"{line}: {found}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mode", ["falloc", "full"])
@pytest.mark.parametrize("cluster", ["4k", "64k"])
def test_the_first_clusters_of_an_image_with_all_its_space(mode: str, cluster: str, tmp_path: Path) -> None:
    """Header, refcount table, first refcount block and L1 table; QEMU moves its refcount table in this case."""
    path = tmp_path / "new"
    assert (
        ours(["create", "-q", "-f", "qcow2", "-o", f"preallocation={mode},cluster_size={cluster}", str(path), "1M"])[0]
        == 0
    )
    data = path.read_bytes()
    size = 1 << struct.unpack(">I", data[20:24])[0]
    assert struct.unpack(">QQI", data[40:60]) == (3 * size, size, 1)
    assert struct.unpack(">Q", data[size : size + 8])[0] == 2 * size
    assert qemu_img("check", path).returncode == 0


def test_there_are_enough_of_them() -> None:
    assert len(LINES) >= 300
