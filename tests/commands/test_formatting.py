"""The line that `create` prints, option for option as qemu-img prints it: programs take it apart.

Three hundred combinations of options, drawn at random but the same each time.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import dropin, qemu_img

SECRET = ("--object", "secret,id=s,data=letmein")
CIPHER = {
    "cipher-alg": ["aes-128", "aes-256"],
    "cipher-mode": ["xts"],
    "ivgen-alg": ["plain64", "plain"],
    "hash-alg": ["sha1", "sha256", "sha512"],
}
FILE = {"nocow": ["on", "off"], "extent_size_hint": ["1M", "65536"]}
OPTIONS: dict[str, dict[str, list[str]]] = {
    "raw": {**FILE, "preallocation": ["off", "falloc", "full"]},
    "qcow2": {
        **FILE,
        "cluster_size": ["4k", "0x10000", "65536", "2M", "1048576"],
        "preallocation": ["off", "metadata", "falloc", "full"],
        "lazy_refcounts": ["on", "off", "yes", "no", "true", "false", "y", "n"],
        "refcount_bits": ["1", "0x10", "64"],
        "compression_type": ["zlib", "zstd"],
        "extended_l2": ["off", "no"],
        "compat": ["1.1", "v3"],
        "data_file": ["data", "da ta", "da,,ta"],
        "data_file_raw": ["off", "n"],
        "size": ["3M", "1000"],
    },
    "qcow": {"extent_size_hint": ["1M"], "preallocation": ["off", "falloc"]},
    "qed": {"cluster_size": ["4k", "128k"], "table_size": ["2", "8", "16"], **FILE},
    "vdi": {"static": ["on", "off", "yes"], "preallocation": ["falloc"], **FILE},
    "vmdk": {
        **FILE,
        "adapter_type": ["ide", "lsilogic", "buslogic", "legacyESX"],
        "subformat": ["monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentFlat"],
        "hwversion": ["4", "7"],
        "toolsversion": ["5", "2147483647"],
        "zeroed_grain": ["off"],
    },
    "vpc": {"subformat": ["dynamic", "fixed"], "force_size": ["on", "off"], "nocow": ["off"]},
    "vhdx": {
        "log_size": ["1M", "2097152"],
        "block_size": ["0", "1M", "2M"],
        "subformat": ["dynamic", "fixed"],
        "block_state_zero": ["on", "off"],
    },
    "parallels": {"cluster_size": ["4k", "1M"], **FILE},
    "luks": {**CIPHER, "preallocation": ["off", "falloc"]},
    "qcow2-luks": {**{f"encrypt.{name}": values for name, values in CIPHER.items()}},
}
BACKING = ("qcow2", "qcow", "qed", "vmdk")


def lines() -> Iterator[list[str]]:
    draw = random.Random(13)
    for kind, options in OPTIONS.items():
        for _ in range(1 if "luks" in kind else 90 if kind == "qcow2" else 30):
            names = draw.sample(sorted(options), draw.randint(0, min(len(options), 5)))
            given = [f"{name}={draw.choice(options[name])}" for name in names]
            yield _line(kind, given, draw)
    yield ["create", "-f", "vmdk", "-o", "compat6", "a.img", "1M"]
    yield ["create", "-f", "qcow2", "-o", "lazy_refcounts", "a,b.img", "1M"]
    yield ["create", "-f", "qcow2", "-o", "compat=0.10", "a'b.img", "1M"]
    yield ["create", "-f", "qcow2", "-o", "compat=v2,refcount_bits=16", "-o", "cluster_size=4k", "a.img", "1.5M"]
    yield ["create", "-f", "qcow2", "-o", "cluster_size=4k,cluster_size=8k", "a.img", "1M"]
    yield ["create", "-f", "qcow2", "-o", "backing_file=base.qcow2,backing_fmt=qcow2", "a.img"]
    yield ["create", "-f", "qcow2", "-o", "backing_fmt=qcow2,extended_l2=yes", "-b", "base.qcow2", "a.img", "4M"]
    for form in ("encryption=on", "encrypt.format=aes"):
        for format in ("qcow", "qcow2"):
            yield ["create", *SECRET, "-f", format, "-o", f"{form},encrypt.key-secret=s", "a.img", "1M"]


def _line(kind: str, given: list[str], draw: random.Random) -> list[str]:
    format, _, sealed = kind.partition("-")
    more: list[str] = []
    if kind == "luks":
        given, more = [*given, "key-secret=s", "iter-time=10"], list(SECRET)
    elif sealed:
        given = [*given, "encrypt.format=luks", "encrypt.key-secret=s", "encrypt.iter-time=10"]
        more = list(SECRET)
    elif format in BACKING and not any(one.startswith(("preall", "data_file", "subf")) for one in given):
        base = "vmdk" if format == "vmdk" else draw.choice(["qcow2", "raw"])
        more = draw.choice([[], [], ["-b", f"base.{base}", "-F", base]])
    draw.shuffle(given)
    size = [] if any(one.startswith("size=") for one in given) else ["2M"]
    return ["create", *more, "-f", format, *(["-o", ",".join(given)] if given else []), "a.img", *size]


def ours(line: list[str], folder: Path) -> tuple[int, str]:
    with contextlib.chdir(folder):
        status, out, err = dropin(*line)
    return status, out or err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formatting")
    for format in ("raw", "qcow2", "vmdk"):
        qemu_img("create", "-q", "-f", format, folder / f"base.{format}", "2M")
    return folder


LINES = list(lines())


@pytest.mark.parametrize("at", range(0, len(LINES), 20))
def test_as_qemu_img_prints_it(at: int, folder: Path) -> None:
    wrong = []
    for line in LINES[at : at + 20]:
        theirs = qemu_img(*line, cwd=folder, check=False)
        status, text = ours(line, folder)
        assert (theirs.returncode, status) == (0, 0), f"{line}\n{theirs.stderr}\n{text}"
        if theirs.stdout != text:
            wrong.append(f"{line}\n{theirs.stdout}{text}")
    assert not wrong, "\n".join(wrong)


def test_there_are_enough_of_them() -> None:
    assert len({tuple(line) for line in LINES}) >= 230
