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
@pytest.mark.parametrize("source", ["raw", "vmdk", "qcow2.gz"])
def test_one_pass(inputs: dict[str, Path], tmp_path: Path, source: str, output: str) -> None:
    """A file or standard input, to standard output: it is whole, or refused before a byte."""
    given = () if source != "raw" else ("-f", "raw")
    options = STREAMED if output == "vmdk" else ()
    for place in (inputs[source], "-"):
        out = tmp_path / "out"
        words = ("convert", *given, "-O", output, *options, place, "-")
        done = run(*words, stdin=inputs[source] if place == "-" else None, stdout=out)
        once = place == "-" or source == "qcow2.gz"
        if once and (output == "qcow2" or source == "raw" and output != "raw"):
            assert done.returncode == 1
            assert done.stdout == b""
            assert b"--spool" in done.stderr
        elif done.returncode:  # a raw disk of unknown size
            assert (source, output, place) == ("raw", "raw", "-"), done.stderr
            assert done.stdout == b""
        else:
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
