"""The benchmark runs, checks its own results, and reports. No time is asserted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tools import run, tool

ROOT = Path(__file__).parents[2]
# An output that is a whole qcow2 image of the right size, with wrong bytes.
LIAR = """
import subprocess, sys
subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", sys.argv[-1], "8M"], check=True)
"""


def bench(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    tool("qemu-img")
    words = ("--size", "8M", "--runs", "1", "--folder", str(folder), *arguments)
    return run(sys.executable, "-m", "bench", *words, cwd=ROOT, check=check, timeout=240)


def test_main_job(tmp_path: Path) -> None:
    names = ["raw-qcow2", "qcow2-raw", "raw-qcow2-deflate", "raw-qcow2-zstd", "qcow2-deflate-raw", "compare", "info"]
    table = bench(tmp_path, "--only", *names).stdout
    for name in names:
        assert re.search(rf"^\| {name}[ |(].*\d", table, re.MULTILINE), f"{name} is not in\n{table}"
    assert list(tmp_path.iterdir()) == []


def test_works_with_servers_beside(tmp_path: Path) -> None:
    for name in ("nbdkit", "nbdcopy", "qemu-nbd", "nginx", "wget", "sshd", "scp"):
        tool(name)
    table = bench(tmp_path, "--only", "nbd-raw*", "raw-nbd*", "serve-qcow2", "http-raw-raw", "ssh-raw-raw").stdout
    for name in ("nbd-raw", "nbd-raw-nbdcopy", "raw-nbd-nbdcopy", "serve-qcow2", "http-raw-raw", "ssh-raw-raw"):
        assert re.search(rf"^\| {name}[ |(].*\d", table, re.MULTILINE), f"{name} is not in\n{table}"
    assert list(tmp_path.iterdir()) == []


def test_wrong_result_is_an_error(tmp_path: Path) -> None:
    liar = tmp_path / "liar.py"
    liar.write_text(LIAR)
    done = bench(tmp_path, "--diskmill", f"{sys.executable} {liar}", "--only", "raw-qcow2", check=False)
    assert done.returncode == 1
    assert "Content mismatch" in done.stderr


def test_unknown_work_is_an_error(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "raw-nothing", check=False)
    assert done.returncode == 2
    assert "raw-nothing" in done.stderr


def test_chart_is_a_picture_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from bench.measure import Result, Run
    from bench.report import chart
    from bench.works import WORKS

    results = [Result(work, [Run(2.0, 1.0, 0)], [Run(1.0, 1.0, 0)], (0, 0)) for work in WORKS[:3]]
    texts = [text.text for text in ElementTree.fromstring(chart(results, "a note")).iter() if text.text]
    assert texts.count("0.50 ×") == 3
    assert all(work.name in texts for work in WORKS[:3])


def test_source_is_the_same_each_time_and_half_full(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(sys.executable, "-m", "bench.source", tmp_path / name, str(8 << 20), cwd=ROOT)
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "two").read_bytes()
    assert len(one) == 8 << 20
    filled = sum(any(one[at : at + 4096]) for at in range(0, len(one), 4096))
    assert filled * 4096 == 4 << 20
