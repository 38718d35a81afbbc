"""What the library takes and gives beyond reading and writing: names, arguments, errors, file objects."""

from __future__ import annotations

import errno
import io
import pickle
import tarfile
from copy import copy
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill import errors
from diskmill.sizes import MiB
from tools import diskmill as run_diskmill


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    diskmill.create(path, 4 * MiB, format="qcow2")
    return path


def test_a_path_goes_wherever_a_name_does(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, over, copy = tmp_path / "disk.raw", tmp_path / "over.qcow2", tmp_path / "copy.raw"
    diskmill.convert(disk, raw)  # one name, where several could be
    diskmill.convert([disk, raw], tmp_path / "two.raw")
    diskmill.create(over, format="qcow2", backing=disk, backing_format="qcow2")
    assert diskmill.compare(disk, raw).identical
    assert diskmill.info(over).backing_filename == str(disk)
    assert [one.format for one in diskmill.info_chain(over)] == ["qcow2", "qcow2"]
    assert list(diskmill.map(over))
    assert diskmill.measure(disk, output_format="qcow2").required
    assert diskmill.check(disk).corruptions == 0
    assert diskmill.resize(raw, 8 * MiB, format="raw") == 8 * MiB
    assert diskmill.snapshot(disk) == []
    diskmill.bitmap(disk, "b", [("add", "")])
    diskmill.amend(disk, {"lazy_refcounts": "on"})
    diskmill.dd(raw, copy, format="raw", output_format="raw")
    diskmill.bench(raw, count=1, format="raw")
    diskmill.commit(over)
    diskmill.rebase(over, raw, backing_format="raw", unsafe=True)
    monkeypatch.chdir(tmp_path)
    odd = Path("nbd:odd.raw")  # a path is a file's, whatever it looks like
    diskmill.create(odd, MiB)
    with diskmill.open(odd, "raw") as image:
        assert image.size == MiB


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda disk: diskmill.create(disk, 1.5, format="qcow2"), ["size", "1.5"]),
        (lambda disk: diskmill.create(disk, "large", format="qcow2"), ["size", "large"]),
        (lambda disk: diskmill.create(disk, True, format="qcow2"), ["size", "True"]),
        (lambda disk: diskmill.convert(disk, f"{disk}.raw", threads=0), ["threads", "1 to 16"]),
        (lambda disk: diskmill.convert(disk, f"{disk}.raw", rate=-1), ["rate", "-1"]),
        (lambda disk: diskmill.convert(3, f"{disk}.raw"), ["name"]),
        (lambda disk: diskmill.open(3), ["a file object", "int"]),
        (lambda disk: diskmill.open(disk, trust="nobody"), ["trust", "nobody"]),
        (lambda disk: diskmill.open(disk, context=diskmill.Context(trust="nobody")), ["trust", "nobody"]),  # type: ignore[arg-type]
        (lambda disk: diskmill.Context(secrets={"s": "text"}), ["secret 's'", "bytes"]),  # type: ignore[dict-item]
        (lambda disk: diskmill.Context(cache="fast"), ["cache", "fast"]),
    ],
)
def test_a_bad_argument_is_one_clear_error(disk: Path, call: Any, words: list[str]) -> None:
    with pytest.raises(diskmill.UsageError) as caught:
        call(disk)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_what_can_be_meant_works(tmp_path: Path) -> None:
    path = tmp_path / "disk.luks"
    options = {"key-secret": "s", "iter-time": 10}
    diskmill.create(path, 1e6, format="luks", options=options, context=diskmill.Context(secrets={"s": b"p\xc3\xa4ss"}))
    node = {"driver": "luks", "key-secret": "s", "file": {"driver": "file", "filename": str(path)}}
    for trust in ("nothing", "anything", "folder", str(tmp_path), ["folder", str(tmp_path)], diskmill.NOTHING):
        with diskmill.open(node, trust=trust, secrets={"s": "päss"}) as image:
            assert image.size == 1_000_448  # a million, in whole sectors


def test_every_error_is_at_the_top_and_storage_fails_as_a_system_call_does(tmp_path: Path) -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.DiskmillError):
            assert getattr(diskmill, name) is kind
            assert name in diskmill.__all__
    with pytest.raises(OSError) as caught:  # noqa: PT011
        diskmill.open(tmp_path / "none.raw")
    error = caught.value
    assert isinstance(error, diskmill.StorageError)
    assert (error.errno, error.strerror, error.filename) == (2, "No such file or directory", str(tmp_path / "none.raw"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.errno, str(again)) == (type(error), error.errno, str(error))


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("timed out"), True),
        (OSError(errno.EHOSTUNREACH, "no route"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "none"), False),
    ],
)
def test_a_failure_that_may_pass_says_so(error: OSError, transient: bool) -> None:
    told = diskmill.StorageError.from_os(error, "disk")
    assert told.transient is pickle.loads(pickle.dumps(told)).transient is copy(told).transient is transient
    assert diskmill.LockedError("another process writes it").transient


def test_use_after_close_says_so(disk: Path) -> None:
    image = diskmill.open(disk, writable=True)
    stream = image.open_stream()
    image.close()
    image.close()
    for use in (
        lambda: image.read(0, 512),
        lambda: image.write(0, b"x"),
        lambda: image.zero(0, 512),
        lambda: list(image.extents(0, 512)),
        image.flush,
        lambda: stream.read(1),
    ):
        with pytest.raises(diskmill.ClosedError, match="the image was closed"):
            use()
    assert "closed" in repr(image)


def test_an_image_tells_what_it_is(disk: Path) -> None:
    with diskmill.open(disk) as image:
        assert repr(image) == f"<qcow2 image {str(disk)!r}, 4 MiB>"


def test_streams_are_files(disk: Path) -> None:
    with diskmill.open(disk, writable=True) as image:
        with image.open_stream() as stream:
            assert isinstance(stream, io.BufferedRandom)
            with tarfile.open(fileobj=stream, mode="w") as archive:
                archive.add(__file__, "test.py")
        raw = image.stream()
        assert isinstance(raw, io.RawIOBase)
        assert (raw.name, raw.mode) == (str(disk), "rb+")  # type: ignore[attr-defined]
        raw.close()
        with pytest.raises(ValueError, match="closed"):
            raw.read(1)
    with diskmill.open(disk) as image:
        stream = image.open_stream(buffering=4096)
        assert isinstance(stream, io.BufferedReader)
        assert (stream.name, stream.mode) == (str(disk), "rb")
        with tarfile.open(fileobj=stream) as archive:
            assert archive.getnames() == ["test.py"]
        assert isinstance(image.open_stream(buffering=0), io.RawIOBase)
        assert image.open_stream().seek(0, io.SEEK_END) == 4 * MiB


@pytest.mark.parametrize(
    ("call", "argument", "line", "option"),
    [
        (lambda disk: diskmill.resize(disk, 512), "shrink=True", "resize {} 512", "--shrink"),
        (lambda disk: diskmill.bitmap(disk, "b", []), "add, remove", "bitmap {} b", "--add, --remove"),
        (
            lambda disk: diskmill.convert(disk, "x", target_zero=True),
            "target_zero",
            "convert --target-is-zero {} x",
            "-n",
        ),
        (lambda disk: diskmill.amend(disk, {}), "give options", "amend {}", "(-o)"),
        (
            lambda disk: diskmill.convert([disk, disk], "x", backing="b"),
            "snapshot and backing",
            "convert -B b -F raw {0} {0} x",
            "(-l)",
        ),
    ],
)
def test_messages_name_what_their_reader_gives(disk: Path, call: Any, argument: str, line: str, option: str) -> None:
    with pytest.raises(diskmill.DiskmillError) as caught:
        call(disk)
    assert argument in str(caught.value)
    assert option not in str(caught.value)
    told = run_diskmill(*line.format(disk).split(), check=False)
    assert option in told.stderr
    assert argument not in told.stderr
