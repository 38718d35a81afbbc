"""What goes through pipes, as a matrix; that nothing is put into temporary folders; and digests of what comes once."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diskmill as api
import pytest
from diskmill.sizes import MiB
from samples import scattered_file
from tools import qemu_img, tool

COMMAND = Path(sys.executable).with_name("diskmill")
STREAMED = ("-o", "subformat=streamOptimized")
SIZE = 5 * MiB


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One disk, in what is read in one pass."""
    folder = tmp_path_factory.mktemp("inputs")
    raw = scattered_file(folder / "disk.raw", SIZE, seed=12, pieces=50)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk.qcow2")
    qemu_img("convert", "-f", "raw", "-O", "vmdk", *STREAMED, raw, folder / "disk.vmdk")
    (folder / "disk.qcow2.gz").write_bytes(gzip.compress((folder / "disk.qcow2").read_bytes(), 1))
    qemu_img("convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", raw, folder / "disk.vpc")
    api.convert([raw], folder / "disk.ova", format="raw", output_format="ova")
    return {path.name.partition(".")[2]: path for path in folder.iterdir()}


def run(
    *words: str | Path, stdin: Path | None = None, stdout: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The command, with pipes and not files for its standard input and output."""
    source = subprocess.Popen(["cat", stdin or "/dev/null"], stdout=subprocess.PIPE)
    done = subprocess.run([COMMAND, *words], stdin=source.stdout, capture_output=True)
    assert source.stdout is not None
    source.stdout.close()
    source.wait()
    if stdout is not None:
        stdout.write_bytes(done.stdout)
    return done


@pytest.mark.parametrize("output", ["raw", "vmdk", "qcow2"])
@pytest.mark.parametrize("source", ["raw", "vpc", "vmdk", "qcow2.gz"])
def test_one_pass(inputs: dict[str, Path], tmp_path: Path, source: str, output: str) -> None:
    """A file or standard input, to standard output: it is whole, or refused before a byte."""
    given = ("-f", source) if source in ("raw", "vpc") else ()
    options = STREAMED if output == "vmdk" else ()
    for place in (inputs[source], "-"):
        out = tmp_path / "out"
        words = ("convert", *given, "-O", output, *options, place, "-")
        done = run(*words, stdin=inputs[source] if place == "-" else None, stdout=out)
        once = place == "-" or source == "qcow2.gz"
        if once and (output == "qcow2" or source in ("raw", "vpc") and output != "raw"):
            assert done.returncode == 1
            assert done.stdout == b""
            assert b"--spool" in done.stderr
        else:
            assert done.returncode == 0, done.stderr
            qemu_img("compare", "-f", "raw", "-F", output, inputs["raw"], out)


@pytest.mark.parametrize("output", ["raw", "vmdk", "qcow2"])
def test_nothing_is_put_into_a_temporary_folder(inputs: dict[str, Path], tmp_path: Path, output: str) -> None:
    log, options = tmp_path / "log", STREAMED if output == "vmdk" else ()
    source = inputs["vmdk"]
    words = [COMMAND, "convert", "-O", output, *options, source, "-"]
    trace = [tool("strace"), "-f", "-o", log, "-e", "trace=openat,open,creat,memfd_create,mkdir,mkdirat,linkat"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    done = subprocess.run([*trace, *words], stdout=subprocess.PIPE, env=environment, check=True)
    assert done.stdout
    written = [
        line
        for line in log.read_text().splitlines()
        if "O_CREAT" in line or "O_TMPFILE" in line or "memfd" in line or "mkdir" in line
    ]
    assert [line for line in written if "temporary" in line or '"/tmp"' in line or "O_TMPFILE" in line] == []


READERS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "digest": lambda raw: ("digest", "-"),
    "compare": lambda raw: ("compare", "-F", "raw", "-", str(raw)),
}


@pytest.mark.parametrize("source", ["qcow2", "vmdk", "ova", "qcow2.gz"])
@pytest.mark.parametrize("command", READERS)
def test_other_commands_read_what_comes_once(inputs: dict[str, Path], command: str, source: str) -> None:
    done = run(*READERS[command](inputs["raw"]), stdin=inputs[source])
    assert done.returncode == 0, done.stderr
    if command == "digest":
        assert done.stdout.decode() == f"{api.digest(inputs['raw'], format='raw')}  -\n"


@pytest.mark.parametrize("size", [0, 1000, 65536, SIZE])
def test_the_digest_of_a_raw_disk_of_unknown_size(inputs: dict[str, Path], tmp_path: Path, size: int) -> None:
    part = tmp_path / "part.raw"
    part.write_bytes(inputs["raw"].read_bytes()[:size])
    done = run("digest", "-f", "raw", "-", stdin=part)
    assert done.stdout.decode() == f"{api.digest(part, format='raw')}  -\n", done.stderr


@pytest.mark.parametrize("damage", ["none", "cut", "checksum"])
def test_the_footer_of_a_fixed_vhd_comes_last(inputs: dict[str, Path], tmp_path: Path, damage: str) -> None:
    """Nobody knows the size before; and without its footer the disk may be cut off, and gets no name."""
    data, image, out = inputs["vpc"].read_bytes(), tmp_path / "disk.vpc", tmp_path / "out.qcow2"
    image.write_bytes({"none": data, "cut": data[:-70_000], "checksum": data[:-400] + b"?" + data[-399:]}[damage])
    done = run("convert", "-f", "vpc", "-O", "qcow2", "-", out, stdin=image)
    digest = run("digest", "-f", "vpc", "-", stdin=image)
    if damage == "none":
        qemu_img("compare", "-f", "raw", "-F", "qcow2", inputs["raw"], out)
        assert digest.stdout.decode() == f"{api.digest(inputs['raw'], format='raw')}  -\n"
    else:
        for failed in (done, digest):
            assert failed.returncode == 1
            assert b"does not end with the footer of a fixed VHD image" in failed.stderr
        assert not out.exists()


@pytest.mark.parametrize(("skip", "count"), [(0, None), (3, None), (1, 3), (99, None)])
@pytest.mark.parametrize("source", ["raw", "qcow2"])
def test_blocks_of_what_comes_once(
    inputs: dict[str, Path], tmp_path: Path, source: str, skip: int, count: int | None
) -> None:
    """``dd`` copies blocks of standard input, also where nobody knows how much comes."""
    out = tmp_path / "out"
    words = [f"skip={skip}", *([] if count is None else [f"count={count}"])]
    done = run("dd", "-f", source, "-O", "qcow2", "bs=1M", *words, "if=-", f"of={out}", stdin=inputs[source])
    assert done.returncode == 0, done.stderr
    with api.open(out, "qcow2") as image:
        found = image.read(0, image.size)
    assert found == inputs["raw"].read_bytes()[skip * MiB :][: None if count is None else count * MiB]
