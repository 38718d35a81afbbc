"""How the program reads its command line, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tools import diskmill, diskmill_json, qemu_img, qemu_img_json, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    qemu_img("create", "-q", "-f", "raw", path, "1M")
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["info", "-f", "raw", "--output", "json", "{}"],
        ["info", "-fraw", "--output=json", "{}"],
        ["info", "{}", "--out=json", "--form", "raw"],
        ["info", "-Uf", "raw", "--output=human", "--output=json", "{}"],
        ["info", "--output=json", "--", "{}"],
    ],
)
def test_options_are_read_as_getopt_reads_them(raw: Path, words: list[str]) -> None:
    assert json.loads(diskmill(*(word.format(raw) for word in words)).stdout)["format"] == "raw"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["info", "--f", "raw", "x"], "ambiguous"),
        (["info", "--nope", "x"], "unrecognized option '--nope'"),
        (["info", "-f"], "missing argument"),
        (["info", "--image-opts=x", "x"], "takes no value"),
        (["info", "--output=yaml", "x"], "'human' or 'json'"),
        (["nope"], "command not found"),
        ([], "not enough arguments"),
        (["info", "nothere"], "No such file"),
        (["info", "--trust", "nofolder", "x"], "to trust"),
        (["check", "."], "neither a regular file"),
        (["-T", "nope=1", "info", "x"], "invalid trace option"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], part: str, tmp_path: Path) -> None:
    done = diskmill(*words, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("diskmill: ")
    assert done.stderr.count("\n") == 1
    assert part in done.stderr


def test_info_of_several_images_is_an_array(raw: Path) -> None:
    assert [one["virtual-size"] for one in diskmill_json("info", raw, raw)] == [1 << 20, 1 << 20]


def test_info_of_several_images_tells_of_those_that_there_are(raw: Path) -> None:
    done = diskmill("info", "--output=json", "nothere", raw, check=False)
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"]["cause"] == "No such file or directory"
    assert [one["filename"] for one in json.loads(done.stdout)] == [str(raw)]


def test_progress_for_programs(raw: Path, tmp_path: Path) -> None:
    done = diskmill("convert", "--progress=json", raw, tmp_path / "out.raw")
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["phase"] == "done"
    assert last["bytes"] == last["total"] == 1 << 20
    assert set(last) == {"bytes", "total", "rate", "remaining", "phase"}


def test_a_trace_names_the_operations(raw: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    diskmill("-T", f"enable=op*,file={file}", "info", raw)
    lines = file.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["open", "open"]
    assert all(str(raw) in line and " done " in line for line in lines)
    assert "create" in diskmill("-T", "help").stdout.split()


def test_a_trace_takes_events_from_a_file_and_goes_to_stderr(raw: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.write_text("# what is wanted\nprobe\n\nma*\n")
    done = diskmill("--trace", f"events={events}", "map", raw)
    assert {line.split()[0] for line in done.stderr.splitlines()} == {"probe", "map"}
    missing = diskmill("-T", "nosuch", "info", raw).stderr
    assert missing == "diskmill: warning: trace event 'nosuch' does not exist\n"


def test_names_in_images_may_be_any_bytes(tmp_path: Path) -> None:
    """Of a bitmap, as of a label: what a program writes is what came in."""
    name, image = "\udcf6\udcff", tmp_path / "image"
    diskmill("create", "-q", "-f", "qcow2", image, "1M")
    diskmill("bitmap", "--add", image, name)
    assert qemu_img_json("measure", "-O", "qcow2", image) == diskmill_json("measure", "-O", "qcow2", image)
    options = f"key-secret=s,iter-time=10,version=2,pbkdf=pbkdf2,label={name}"
    diskmill("create", "-q", "-f", "luks", "--object", "secret,id=s,data=x", "-o", options, image, "1M")
    assert os.fsencode(name) in image.read_bytes()[:4096]


def test_a_name_may_be_any_bytes(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/disk\xff\x1b[31m"
    Path(os.fsdecode(path)).write_bytes(bytes(512))
    program = Path(sys.executable).with_name("diskmill")
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([program, "info", path], capture_output=True, env=env)
    shown = path.replace(b"\x1b", "\N{REPLACEMENT CHARACTER}".encode())
    assert done.stdout.splitlines()[0] == b"image: " + shown
    done = subprocess.run([program, "info", path + b"\n"], capture_output=True, env=env)
    assert done.stderr.count(b"\n") == 1
    assert b"\x1b" not in done.stderr


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigint_leaves_nothing_and_says_one_line(tmp_path: Path) -> None:
    source, output = tmp_path / "disk.raw", tmp_path / "out.raw"
    source.write_bytes(os.urandom(1 << 20) * 64)
    words = [Path(sys.executable).with_name("diskmill"), "convert", "-r", "4M", source, output]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: catches(process.pid, signal.SIGUSR1))
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    assert process.stderr.readline().endswith("/100%)\n")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "diskmill: interrupted\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.raw"]


def test_a_closed_pipe_ends_quietly(raw: Path) -> None:
    words = f"{Path(sys.executable).with_name('diskmill')} drivers --output=json | true"
    done = run("bash", "-o", "pipefail", "-c", words, check=False)
    assert done.stderr == ""


def test_the_dropin_runs_as_a_program(raw: Path) -> None:
    env = {"PYTHONPATH": str(ROOT / "dropin" / "src")}
    program = "import diskmill_qemu_img; diskmill_qemu_img.main()"
    assert run(sys.executable, "-c", program, "--version", env=env).stdout.startswith("qemu-img version 7.2.0 ")
    help = run(sys.executable, "-c", program, "info", "-h", env=env).stdout
    for sought in ("-U", "--backing-chain", "--target-is-zero", "Supported formats:", " raw"):
        assert sought in help
    failed = run(sys.executable, "-c", program, "info", "nothere", env=env, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("qemu-img: ")


@pytest.mark.parametrize("option", ["preallocation=full", "extent_size_hint=1M"])
def test_an_option_without_effect_is_taken_under_the_name_qemu_img_only(tmp_path: Path, option: str) -> None:
    words = ("create", "-q", "-f", "vpc", "-o", option, "disk.vpc", "1M")
    done = diskmill(*words, cwd=tmp_path, check=False)
    assert done.returncode == 1 and f"no option '{option.partition('=')[0]}'" in done.stderr
    run(Path(sys.executable).with_name("qemu-img"), *words, cwd=tmp_path)
    assert (tmp_path / "disk.vpc").exists()


def test_dd_counts_what_it_copies(tmp_path: Path) -> None:
    """As the manual says; the drop-in counts as release 7.2 does (cases.txt)."""
    data = bytes(range(256)) * 16
    (tmp_path / "in").write_bytes(data)
    diskmill(
        "dd", "-f", "raw", "-O", "raw", "bs=512", "count=3", "skip=2", f"if={tmp_path / 'in'}", f"of={tmp_path / 'out'}"
    )
    assert (tmp_path / "out").read_bytes() == data[1024:2560]
