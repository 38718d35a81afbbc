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
from nbd_servers import nbdkit, uri
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


def convert(
    source: Path | list[Path],
    output: Path | str,
    progress: Callable[[int, int], None] | None = None,
    resume: str | bool = True,
    **case: Any,
) -> None:
    sources = source if isinstance(source, list) else [source]
    api.convert(sources, output, format="raw", progress=progress, resume=resume, mark_every=EVERY, **case)


def killed(source: Path | list[Path], output: Path | str, moment: int, **case: Any) -> None:
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


def leak(path: Path) -> None:
    """What a killed writer leaves now and then: a cluster that is counted, and in no table yet."""
    with path.open("r+b") as file:
        number = os.fstat(file.fileno()).st_size // 65536
        at = 48
        for _ in ("the table's place in the header", "the first block's in the table"):
            file.seek(at)
            at = int.from_bytes(file.read(8), "big")
        file.seek(at + 2 * number)
        file.write(b"\0\1")
        file.truncate((number + 1) * 65536)
    assert "leaked" in qemu_img("check", "-f", "qcow2", path, check=False).stdout


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vhdx"])
def test_an_image_that_was_there_goes_on(source: Path, tmp_path: Path, format: str) -> None:
    """It holds other bytes before, and is the copy afterwards; what was marked is not written again."""
    output, journal = tmp_path / "out", tmp_path / "out.part.journal"
    scattered_file(tmp_path / "before", SIZE, seed=3, pieces=40, longest=MiB)
    qemu_img("convert", "-f", "raw", "-O", format, tmp_path / "before", output)
    case: dict[str, Any] = {"output_format": format, "existing": True}
    for moment in (SIZE // 5, SIZE * 3 // 4):
        killed(source, output, moment, **case)
        assert journal.exists()
    if format == "qcow2":
        leak(output)
    with pytest.raises(UsageError, match=r"begun with another target \(-n\)"):
        convert(source, output, output_format=format)
    seen: list[int] = []
    convert(source, output, lambda done, total: seen.append(done), **case)
    assert next(done for done in seen if done) >= SIZE * 3 // 4 - 2 * EVERY - 4 * MiB
    assert not journal.exists()
    qemu_img("compare", "-f", "raw", "-F", format, source, output)
    if format != "raw":
        qemu_img("check", "-f", format, output)


def test_a_target_that_reads_as_zeros_does_so_only_at_first(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    qemu_img("create", "-q", "-f", "raw", output, str(SIZE))
    case: dict[str, Any] = {"output_format": "raw", "existing": True, "target_zero": True}
    killed(source, output, EVERY // 2, **case)
    convert(source, output, **case)
    assert output.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_several_disks_in_one_go_on(source: Path, tmp_path: Path, format: str) -> None:
    """Where one ends and the next begins they share a cluster."""
    sources, output = [tmp_path / f"part{number}" for number in range(3)], tmp_path / "out"
    data = source.read_bytes()
    ends = (0, 5 * MiB + 512, 15 * MiB - 1536, SIZE)
    for path, start, end in zip(sources, ends, ends[1:], strict=False):
        path.write_bytes(data[start:end])
    for moment in (4 * MiB, 9 * MiB, 16 * MiB):
        killed(sources, output, moment, output_format=format)
    convert(sources, output, output_format=format)
    qemu_img("compare", "-f", "raw", "-F", format, source, output)
    killed(sources, output, 9 * MiB, output_format=format)
    with pytest.raises(UsageError, match="begun with another source"):
        convert(sources[::-1], output, output_format=format)


def test_an_export_goes_on(source: Path, tmp_path: Path) -> None:
    socket, journal = tmp_path / "socket", str(tmp_path / "journal")
    case: dict[str, Any] = {"output_format": "raw", "existing": True}
    with nbdkit(socket, "memory", str(SIZE)):
        with pytest.raises(UsageError, match=r"no folder of its own: say where the journal is to be"):
            convert(source, uri(socket), **case)
        for moment in (SIZE // 3, SIZE * 3 // 4):
            killed(source, uri(socket), moment, resume=journal, **case)
            assert os.path.exists(journal)
        seen: list[int] = []
        convert(source, uri(socket), lambda done, total: seen.append(done), resume=journal, **case)
        assert next(done for done in seen if done) >= SIZE // 2
        assert not os.path.exists(journal)
        qemu_img("compare", "-f", "raw", "-F", "raw", source, uri(socket))


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


@pytest.mark.parametrize("journal", [[], ["=journal"]], ids=["beside", "named"])
def test_an_upload_is_refused_before_anything_is_sent(source: Path, journal: list[str]) -> None:
    done = diskmill("convert", "-f", "raw", f"--resume{''.join(journal)}", source, "s3://bucket/key", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "diskmill: 's3://bucket/key': what protocol 's3' was left with unfinished cannot be gone on with\n"
    )


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
