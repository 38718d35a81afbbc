"""NFS, over a real server: each command does there what it does here, and qemu-img, by the same server, agrees."""

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
from diskmill_nfs import c_libnfs
from nfs_server import NfsServer
from samples import MiB, scattered_file
from tools import diskmill as command
from tools import qemu_img, stopped

SIZE = 6 * MiB


@pytest.fixture(autouse=True)
def _inside(nfs_server: NfsServer) -> Iterator[None]:
    with nfs_server.network.inside():
        yield


@pytest.fixture
def share(nfs_server: NfsServer, tmp_path: Path) -> Path:
    folder = nfs_server.share / tmp_path.name
    folder.mkdir()
    return folder


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vhdx", "vdi", "luks"])
def test_an_image_there_is_read_and_made_as_qemu_img_does(nfs_server: NfsServer, share: Path, format: str) -> None:
    secret = ("--object", "secret,id=s,data=letmein")
    words = ("-o", "key-secret=s,iter-time=10") if format == "luks" else ()
    source = scattered_file(share / "source", SIZE, seed=8, pieces=20)
    ours, theirs, back = (nfs_server.url(share / name) for name in ("ours", "theirs", "back"))

    def named(name: str) -> str:
        file = {"driver": "nfs", "server": {"type": "inet", "host": "127.0.0.1"}, "path": str(share / name)}
        key = {"key-secret": "s"} if format == "luks" else {}
        return f"json:{json.dumps({'driver': format, **key, 'file': file})}"

    qemu_img("convert", *secret, "-f", "raw", "-O", format, *words, nfs_server.url(source), theirs)
    command("convert", *secret, "-m", "4", "-f", "raw", "-O", format, *words, nfs_server.url(source), ours)
    command("compare", *secret, named("theirs"), named("ours"))
    qemu_img("compare", *secret, named("theirs"), named("ours"))
    command("convert", *secret, "-n", "-O", "raw", named("theirs"), back, check=False)  # there is none: nothing is made
    assert not (share / "back").exists()
    command("convert", *secret, "-O", "raw", named("theirs"), back)
    assert (share / "back").read_bytes() == source.read_bytes()
    assert not list(share.glob(".diskmill*"))


def test_commands_that_change_an_image_there(nfs_server: NfsServer, share: Path) -> None:
    answers: dict[str, list[str]] = {}
    for name, tool in (("ours", command), ("theirs", qemu_img)):
        base, top = (nfs_server.url(share / f"{name}-{level}") for level in ("base", "top"))
        tool("create", "-q", "-f", "qcow2", base, "4M")
        tool("resize", "-q", base, "8M")
        tool("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        tool("bitmap", "--add", top, "b")
        tool("snapshot", "-c", "s", top)
        if tool is command:  # qemu-img says "Cannot open a read-only mount as read-write"; nothing is in the overlay
            tool("commit", "-q", top)
        tool("rebase", "-q", "-b", "", top)
        told = json.loads(tool("info", "--output=json", top).stdout)
        shown = (told["virtual-size"], told["format"], "backing-filename" in told, len(told["snapshots"]))
        mapped = json.loads(tool("map", "--output=json", top).stdout)
        guest = [(one["start"], one["length"], one["zero"]) for one in mapped]
        answers[name] = [str(shown), str(guest), tool("check", top).stdout.splitlines()[0]]
    assert answers["ours"] == answers["theirs"]


def test_what_is_there_stays_until_the_new_output_is_whole(nfs_server: NfsServer, share: Path, tmp_path: Path) -> None:
    (share / "disk").write_bytes(b"old")
    os.chmod(share / "disk", 0o640)
    os.chown(share / "disk", 1234, 4321)
    disk, link = nfs_server.url(share / "disk"), nfs_server.url(share / "link")
    command("convert", "-f", "qcow2", "-O", "raw", disk, disk, check=False)
    assert (share / "disk").read_bytes() == b"old"
    (tmp_path / "new").write_bytes(b"n" * 1024)
    command("convert", "-f", "raw", "-O", "raw", tmp_path / "new", disk)
    found = (share / "disk").stat()
    assert (found.st_size, found.st_mode & 0o777, found.st_uid, found.st_gid) == (1024, 0o640, 1234, 4321)
    (share / "link").symlink_to("disk")
    refused = command("convert", "-f", "raw", "-O", "raw", tmp_path / "new", link, check=False)
    assert refused.returncode == 1
    assert "symbolic link" in refused.stderr
    assert (share / "link").is_symlink()


def test_an_image_there_opens_no_link_and_no_folder_below(nfs_server: NfsServer, share: Path) -> None:
    (share / "below").mkdir()
    qemu_img("create", "-q", "-f", "raw", share / "below" / "base", "1M")
    (share / "link").symlink_to("below/base")
    for name in ("link", "below/base", "../base"):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", share / "top", "1M")
        refused = command("convert", "-O", "raw", nfs_server.url(share / "top"), share / "out", check=False)
        assert refused.returncode == 1, name
        assert len(refused.stderr.splitlines()) == 1
        assert not (share / "out").exists()


def test_the_user_and_group_are_those_that_are_named(nfs_server: NfsServer, share: Path) -> None:
    os.chmod(share, 0o777)
    command("create", "-q", "-f", "raw", nfs_server.url(share / "theirs", "?uid=1234&gid=4321"), "1M")
    assert ((share / "theirs").stat().st_uid, (share / "theirs").stat().st_gid) == (1234, 4321)
    os.chmod(share / "theirs", 0o600)
    refused = command("info", nfs_server.url(share / "theirs", "?uid=77&gid=77"), check=False)
    assert refused.returncode == 1
    assert "ermission denied" in refused.stderr
    words = f"driver=raw,file.driver=nfs,file.server.type=inet,file.server.host=127.0.0.1,file.path={share}/theirs"
    command("info", "--image-opts", f"{words},file.user=1234,file.readahead-size=65536")


def test_a_server_that_stops_answering_is_one_error(tmp_path: Path) -> None:
    with NfsServer(tmp_path) as server, server.network.inside():
        (server.share / "disk").write_bytes(bytes(MiB))
        words = {"driver": "raw", "file.driver": "nfs", "file.filename": server.url(server.share / "disk")}
        with diskmill.open(f"json:{json.dumps({**words, 'file.timeout': 1})}") as disk:
            pid = int((tmp_path / "pid").read_text())
            with stopped(pid), pytest.raises(StorageError, match="read at offset 0"):
                disk.read(0, 512)


def test_a_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(errno.ENOENT, "no such library")

    c_libnfs.library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    try:
        with pytest.raises(StorageError, match="libnfs13"):
            diskmill.open("nfs://127.0.0.1/share/disk")
    finally:
        c_libnfs.library.cache_clear()
