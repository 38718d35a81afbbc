"""An output that is not finished never bears the output's name, however convert ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import MiB, scattered_file
from tools import qemu_img

SIZE = 96 * MiB
OLD = b"what bore the name before"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scattered_file(tmp_path_factory.mktemp("killed") / "source.raw", SIZE, seed=9, pieces=400, longest=MiB)


def start(source: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).with_name("diskmill")
    return subprocess.Popen(
        [program, "convert", *options, "-O", "qcow2", source, output], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )


def duration(source: Path, output: Path) -> float:
    """Seconds that a conversion takes which nobody disturbs."""
    began = time.monotonic()
    process = start(source, output)
    process.communicate()
    assert process.returncode == 0
    return time.monotonic() - began


def test_kill_at_50_random_moments(source: Path, tmp_path: Path) -> None:
    whole = min(duration(source, tmp_path / f"whole{number}.qcow2") for number in range(3))
    chance = random.Random(50)
    killed = 0
    for moment in range(50):
        output = tmp_path / f"out{moment}.qcow2"
        existed = moment % 2 == 1
        if existed:
            output.write_bytes(OLD)
        process = start(source, output)
        time.sleep(chance.uniform(0, whole))
        process.send_signal(signal.SIGKILL)
        _, _ = process.communicate()
        if process.returncode == 0:
            qemu_img("compare", source, output)  # it was done before the signal came: then it is whole
        else:
            killed += 1
            # Between the rename and the process's end the signal may still come: the output is whole then.
            if output.exists() and not (existed and output.read_bytes() == OLD):
                qemu_img("compare", source, output)
        output.unlink(missing_ok=True)
    assert killed >= 25, "most signals came while convert ran"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_leaves_nothing_behind(source: Path, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "out.qcow2"
    process = start(source, output, "-r", "8M")  # slow enough to be still at it
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert errors.decode().count("\n") == 1
    assert "Traceback" not in errors.decode()
    assert os.listdir(tmp_path) == []


def test_interrupted_keeps_the_old_output(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.qcow2"
    output.write_bytes(OLD)
    process = start(source, output, "-r", "8M")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert output.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["out.qcow2"]
