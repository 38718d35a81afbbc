"""``convert --resume``: the process ends at any moment, and the same call goes on."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diskmill as api
import pytest
from diskmill.errors import CancelledError, ImageError, UnsupportedError, UsageError
from samples import MiB, scattered_file
from tools import diskmill, qemu_img

SIZE = 24 * MiB
EVERY = 2 * MiB
CASES: dict[str, dict[str, Any]] = {
    "raw": {"output_format": "raw"},
    "qcow2": {"output_format": "qcow2"},
    "qcow2 -c": {"output_format": "qcow2", "compress": True},
    "qcow2, all there": {"output_format": "qcow2", "options": {"preallocation": "falloc"}},
    "vmdk": {"output_format": "vmdk"},
    "vhdx": {"output_format": "vhdx", "options": {"block_size": 8 * MiB}},
    "vdi": {"output_format": "vdi"},
    "vpc": {"output_format": "vpc", "options": {"force_size": True}},
    "vpc, fixed": {"output_format": "vpc", "options": {"force_size": True, "subformat": "fixed"}},
    "parallels": {"output_format": "parallels"},
    "qed": {"output_format": "qed"},
}
REPEATABLE = ("raw", "qcow2")
"""Images whose files are the same for the same disk, however often they were gone on with."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scattered_file(tmp_path_factory.mktemp("resumed") / "source.raw", SIZE, seed=16, pieces=150, longest=MiB)


def convert(source: Path, output: Path, progress: Callable[[int, int], None] | None = None, **case: Any) -> None:
    api.convert([source], output, format="raw", progress=progress, resume=True, mark_every=EVERY, **case)


def killed(source: Path, output: Path, moment: int, **case: Any) -> None:
    """The same in a process that ends at once, without any cleaning, when *moment* bytes of the disk are dealt with."""
    child = os.fork()
    if child == 0:
        try:
            convert(source, output, lambda done, total: os._exit(9) if done >= moment else None, **case)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("case", CASES)
def test_what_was_killed_goes_on(source: Path, tmp_path: Path, case: str) -> None:
    output, options = tmp_path / "out", CASES[case]
    chance = random.Random(case)
    moments = sorted(chance.randrange(1, SIZE) for _ in range(3))
    for moment in moments:
        killed(source, output, moment, **options)
        assert sorted(os.listdir(tmp_path)) in (["out.part"], ["out.part", "out.part.journal"])
    seen: list[int] = []
    convert(source, output, lambda done, total: seen.append(done), **options)
    # Some threads are ahead of what is marked by what they have in hand.
    again = 8 * MiB if options["output_format"] == "vhdx" else EVERY
    assert next(done for done in seen if done) >= moments[-1] - EVERY - again - 4 * MiB
    assert os.listdir(tmp_path) == ["out"]
    format = str(options["output_format"])
    qemu_img("compare", "-f", "raw", "-F", format, source, output)
    if format not in ("raw", "vpc"):
        qemu_img("check", "-f", format, output)
    if case in REPEATABLE:
        api.convert([source], tmp_path / "plain", format="raw", **options)
        assert (tmp_path / "plain").read_bytes() == output.read_bytes()


def test_marks_say_how_far_it_is(source: Path, tmp_path: Path) -> None:
    """What is read again is what came after the last mark, and nothing before it."""
    output = tmp_path / "out"
    killed(source, output, SIZE * 3 // 4, output_format="raw")
    part = tmp_path / "out.part"
    with part.open("r+b") as file:  # nobody looks there again, so nobody would mend it
        file.seek(EVERY // 2)
        file.write(b"changed")
    convert(source, output, output_format="raw")
    with output.open("rb") as file:
        file.seek(EVERY // 2)
        assert file.read(7) == b"changed"


def test_what_changed_is_refused(source: Path, tmp_path: Path) -> None:
    copy, output = tmp_path / "copy.raw", tmp_path / "out"
    copy.write_bytes(source.read_bytes())
    killed(copy, output, SIZE // 2, output_format="qcow2")
    with pytest.raises(UsageError, match=r"begun with another compression \(-c\): remove '.*\.part\.journal'"):
        convert(copy, output, output_format="qcow2", compress=True)
    with pytest.raises(UsageError, match="begun with another set of options"):
        convert(copy, output, output_format="qcow2", options={"cluster_size": 131072})
    os.utime(copy)
    with pytest.raises(UsageError, match="the source has changed since"):
        convert(copy, output, output_format="qcow2")
    journal = tmp_path / "out.part.journal"
    journal.write_bytes(journal.read_bytes()[:-1] + b"?")
    with pytest.raises(ImageError, match="no journal of a conversion, or damaged"):
        convert(copy, output, output_format="qcow2")
    journal.unlink()
    convert(copy, output, output_format="qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", copy, output)


def test_a_digest_is_that_of_the_whole_disk(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    killed(source, output, SIZE * 2 // 3, output_format="qcow2")
    found = api.convert(
        [source],
        output,
        format="raw",
        output_format="qcow2",
        resume=True,
        mark_every=EVERY,
        digest="sha256",
        verify=True,
    )
    assert found == api.digest(source, format="raw")


def test_what_is_cancelled_can_be_gone_on_with(source: Path, tmp_path: Path) -> None:
    import threading

    cancel = threading.Event()
    output = tmp_path / "out"
    with pytest.raises(CancelledError):
        api.convert(
            [source],
            output,
            format="raw",
            output_format="qcow2",
            resume=True,
            mark_every=EVERY,
            cancel=cancel,
            progress=lambda done, total: cancel.set() if done > SIZE // 2 else None,
        )
    assert sorted(os.listdir(tmp_path)) == ["out.part", "out.part.journal"]
    convert(source, output, output_format="qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, output)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"output_format": "vmdk", "options": {"subformat": "streamOptimized"}}, "written in one go"),
        ({"output_format": "vmdk", "options": {"subformat": "twoGbMaxExtentSparse"}}, "several files"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UnsupportedError, match=text):
        convert(source, tmp_path / "out.vmdk", **options)
    assert os.listdir(tmp_path) == []


def test_the_command(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.qcow2"
    killed(source, output, SIZE // 2, output_format="qcow2")
    assert (
        "--mark-every requires --resume"
        in diskmill("convert", "--mark-every", "2M", source, output, check=False).stderr
    )
    diskmill("convert", "-f", "raw", "-O", "qcow2", "--resume", "--mark-every=2M", source, output)
    assert os.listdir(tmp_path) == ["out.qcow2"]
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, output)
