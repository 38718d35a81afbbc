"""iSCSI, over a real target: each command does there what it does here, and qemu-img, by the same target, agrees."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import StorageError
from diskmill_iscsi import c_libiscsi
from iscsi_target import NAME, IscsiTarget
from samples import MiB, scattered_file
from tools import diskmill as command
from tools import qemu_img, stopped

SIZE = 6 * MiB


@pytest.fixture
def lun(iscsi_target: IscsiTarget, tmp_path: Path) -> Iterator[Path]:
    """A thin LUN of 16 MiB: its file is beside the test's others."""
    path = tmp_path / "lun"
    with path.open("wb") as file:
        file.truncate(16 * MiB)
    return path


@pytest.mark.parametrize("format", ["raw", "qcow2", "vhdx"])
def test_an_image_there_is_read_and_made_as_qemu_img_does(
    iscsi_target: IscsiTarget, tmp_path: Path, lun: Path, format: str
) -> None:
    source = scattered_file(tmp_path / "source", SIZE, seed=8, pieces=20)
    (tmp_path / "old").write_bytes(b"\xff" * 16 * MiB)  # of what was there nothing turns up
    theirs, ours = (iscsi_target.lun(path, thin_provisioning=1) for path in (lun, tmp_path / "old"))

    def named(lun: int) -> str:
        file = {"driver": "iscsi", "transport": "tcp", "portal": iscsi_target.portal, "target": NAME, "lun": str(lun)}
        window = {"size": SIZE} if format == "raw" else {}
        return f"json:{json.dumps({'driver': format, **window, 'file': file})}"

    qemu_img("convert", "-f", "raw", "-O", format, source, iscsi_target.url(theirs) if format == "raw" else lun)
    os.truncate(lun, 16 * MiB)
    command("convert", "-m", "4", "-f", "raw", "-O", format, source, iscsi_target.url(ours))
    qemu_img("compare", named(theirs), named(ours))
    command("compare", named(theirs), named(ours))
    command("convert", "-O", "raw", named(theirs), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_commands_that_change_an_image_there(iscsi_target: IscsiTarget, tmp_path: Path) -> None:
    answers: dict[str, list[str]] = {}
    for name, tool in (("ours", command), ("theirs", qemu_img)):
        urls = []
        for level in ("base", "top"):
            path = tmp_path / f"{name}-{level}"
            with path.open("wb") as file:
                file.truncate(16 * MiB)
            urls.append(iscsi_target.url(iscsi_target.lun(path)))
        base, top = urls
        tool("create", "-q", "-f", "qcow2", base, "4M")
        tool("resize", "-q", base, "8M")
        tool("create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", "qcow2", top, "8M")
        trust = ("--trust", base) if tool is command else ()
        tool("bitmap", "--add", top, "b", *trust)
        tool("snapshot", "-c", "s", top, *trust)
        tool("rebase", "-q", "-b", "", top, *trust)
        told = json.loads(tool("info", "--output=json", top).stdout)
        shown = (told["virtual-size"], told["format"], "backing-filename" in told, len(told["snapshots"]))
        mapped = json.loads(tool("map", "--output=json", top).stdout)
        guest = [(one["start"], one["length"], one["zero"]) for one in mapped]
        measured = json.loads(tool("measure", "--output=json", "-O", "qcow2", top).stdout)["required"]
        answers[name] = [str(shown), str(guest), str(measured), tool("check", top).stdout.splitlines()[0]]
    assert answers["ours"] == answers["theirs"]


def test_a_thin_lun_stays_thin(iscsi_target: IscsiTarget, tmp_path: Path, lun: Path) -> None:
    """By what the target says of its blocks, and by the space that its file takes."""
    source = scattered_file(tmp_path / "source", 16 * MiB, seed=5, pieces=6)
    there = iscsi_target.url(iscsi_target.lun(lun, thin_provisioning=1))
    found = json.loads(command("convert", "-n", "--target-zero=auto", "--output=json", source, there).stdout)
    assert found["target-zero"] == {"zeros": True, "by": "status"}
    assert lun.read_bytes() == source.read_bytes()
    assert lun.stat().st_blocks <= source.stat().st_blocks + 64
    ours, theirs = (json.loads(tool("map", "--output=json", there).stdout) for tool in (command, qemu_img))
    keys = ("start", "length", "zero", "data")
    assert [[one[key] for key in keys] for one in ours] == [[one[key] for key in keys] for one in theirs]
    with diskmill.open(there, writable=True) as disk:
        disk.zero(0, 16 * MiB)
    assert lun.read_bytes() == bytes(16 * MiB)
    assert lun.stat().st_blocks == 0
    lun.write_bytes(b"\xff" * 16 * MiB)
    found = json.loads(command("convert", "-n", "--target-zero=auto", "--output=json", source, there).stdout)
    assert found["target-zero"] == {"zeros": False, "by": "reading", "data": 0}
    assert lun.read_bytes() == source.read_bytes()


def test_blocks_are_written_whole(iscsi_target: IscsiTarget, tmp_path: Path, lun: Path) -> None:
    there = iscsi_target.url(iscsi_target.lun(lun, "--blocksize", "4096"))
    expected = bytearray(16 * MiB)
    with diskmill.open(there, format="raw", writable=True) as disk:
        for offset, length in ((1, 5), (4095, 2), (8192, 4096), (12000, 9000), (16 * MiB - 7, 7), (100000, 3 * MiB)):
            data = os.urandom(length)
            disk.write(offset, data)
            expected[offset : offset + length] = data
        disk.zero(8000, 5000)
        expected[8000:13000] = bytes(5000)
        assert disk.read(0, 16 * MiB) == expected
        with pytest.raises(StorageError, match="too few"):
            disk.file.write(16 * MiB - 1, b"12")
    assert lun.read_bytes() == expected


def test_a_write_protected_lun_is_only_read(iscsi_target: IscsiTarget, lun: Path) -> None:
    there = iscsi_target.url(iscsi_target.lun(lun, readonly=1))
    command("info", there)
    for tool in (command, qemu_img):
        refused = tool("convert", "-n", "-f", "raw", "-O", "raw", lun, there, check=False)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
        assert "write" in refused.stderr and "protected" in refused.stderr


def test_who_logs_in_is_named_by_the_url_by_options_or_by_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(MiB))
    with IscsiTarget(tmp_path, login=("me", "geheimgeheim")) as target:
        lun = target.lun(path)
        secret = ("--object", "secret,id=s,data=geheimgeheim")
        words = f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={target.portal},file.target={NAME}"
        words += f",file.lun={lun},file.user=me,file.password-secret=s,file.header-digest=crc32c"
        words += ",file.initiator-name=iqn.2026-11.test:us,file.timeout=20"
        environment = {"LIBISCSI_CHAP_USERNAME": "me", "LIBISCSI_CHAP_PASSWORD": "geheimgeheim"}
        for tool in (command, qemu_img):
            tool("info", target.url(lun, "me%geheimgeheim@"))
            tool("info", *secret, "--image-opts", words)
            tool("info", target.url(lun), env=environment)
            for login in ("me%falschfalsch@", ""):
                refused = tool("info", target.url(lun, login), check=False)
                assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1), login
                assert tool is qemu_img or "falsch" not in refused.stderr
        shown = command("info", target.url(lun, "me%geheimgeheim@")).stdout
        assert "geheim" not in shown


@pytest.mark.parametrize(
    "name",
    [
        "iscsi://127.0.0.1:1/iqn.none:x/1",
        "iscsi://me%geheim@127.0.0.1/iqn.none:x",
        "iscsi://me%geheim@127.0.0.1/iqn.none:x/one",
        "iscsi://%geheim@127.0.0.1/iqn.none:x/1",
        "iscsi://me%geheim@127.0.0.1:99999/iqn.none:x/1",
        "iscsi://127.0.0.1/iqn%20x/1",
        "iscsi:127.0.0.1",
    ],
)
def test_what_is_no_lun_is_one_line(name: str) -> None:
    refused = command("info", name, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "geheim" not in refused.stderr
    assert qemu_img("info", name, check=False).returncode == 1


def test_an_image_names_no_lun_that_is_not_trusted(iscsi_target: IscsiTarget, tmp_path: Path, lun: Path) -> None:
    base = iscsi_target.url(iscsi_target.lun(lun))
    for name in (base, base.replace("iscsi://", "iscsi://me%geheim@")):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", tmp_path / "top", "1M")
        for words in ((), ("--trust", base)):
            done = command("convert", *words, "-O", "raw", tmp_path / "top", tmp_path / "out", check=False)
            assert done.returncode == (0 if words and name == base else 1), (name, words)


def test_a_target_that_stops_answering_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MiB))
    with IscsiTarget(tmp_path) as target:
        words = {"driver": "raw", "file.driver": "iscsi", "file.filename": target.url(target.lun(tmp_path / "disk"))}
        assert target.process is not None
        with diskmill.open(f"json:{json.dumps({**words, 'file.timeout': 1})}") as disk:
            disk.read(0, 512)
            with stopped(target.process.pid), pytest.raises(StorageError, match=r"read at offset 512.* 1 s"):
                disk.read(512, 512)
        with diskmill.open(f"json:{json.dumps(words)}", writable=True) as disk:
            disk.write(0, b"x" * 512)
            target.process.kill()
            target.process.wait()
            with pytest.raises(StorageError, match="write at offset 512"):
                disk.write(512, b"x" * 512)
            with pytest.raises(StorageError, match="flush"):
                disk.flush()
            disk.abandon()


def test_a_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(errno.ENOENT, "no such library")

    c_libiscsi.library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    try:
        with pytest.raises(StorageError, match="libiscsi7"):
            diskmill.open("iscsi://127.0.0.1/iqn.none:x/1")
    finally:
        c_libiscsi.library.cache_clear()
