"""An output that is not finished never bears the output's name."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from diskmill.contract.requests import CreateRequest, OpenRequest
from diskmill.errors import LockedError, StorageError
from diskmill.opening.context import CACHE_MODES, Context
from diskmill.storages.file import driver, inheritance, output
from diskmill.storages.file.storage import FileStorage
from tools import tool


@pytest.fixture(params=["nameless", "named"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways: on file systems that have nameless files, and on those that have not."""
    if request.param == "named":
        monkeypatch.setattr(output, "_unnamed", lambda folder, flags: None)
    return str(request.param)


def create(path: Path, cache: str = "writeback") -> FileStorage:
    return driver.create(CreateRequest(str(path), Context(cache=cache), 0))


@pytest.mark.parametrize("cache", CACHE_MODES)
def test_the_name_comes_last(tmp_path: Path, kind: str, cache: str) -> None:
    path = tmp_path / "out"
    storage = create(path, cache)
    storage.write(0, b"whole")
    assert not path.exists()
    assert len(os.listdir(tmp_path)) == (kind == "named")
    storage.settle()
    assert path.read_bytes().rstrip(b"\0") == b"whole"
    storage.close()
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("leave", ["close", "abandon"])
def test_what_is_not_settled_leaves_nothing_and_the_old_file_alone(tmp_path: Path, kind: str, leave: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    before = path.stat()
    storage = create(path)
    storage.write(0, b"new")
    getattr(storage, leave)()
    getattr(storage, leave)()
    assert path.read_bytes() == b"old"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(tmp_path) == ["out"]


def test_the_new_file_inherits_mode_owner_and_group(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 1234, 2345)
    before = path.stat()
    with create(path) as storage:
        storage.write(0, b"new")
        storage.settle()
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def access(path: Path) -> list[str]:
    done = subprocess.run([tool("getfacl"), "-cpn", path], check=True, capture_output=True, text=True)
    return done.stdout.split()


ACL = "u::rw-,u:1234:rw-,u:1235:---,g::---,g:2345:r--,m::rw-,o::r--"


@pytest.mark.parametrize("there", [True, False], ids=["a list", "no list"])
@pytest.mark.parametrize("default", [True, False], ids=["the folder gives one", "the folder gives none"])
def test_the_new_file_has_the_old_ones_access_control_list_and_no_other(
    tmp_path: Path, kind: str, there: bool, default: bool
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    path.chmod(0o640)
    if there:
        subprocess.run([tool("setfacl"), "--set", ACL, path], check=True)
    before = access(path)
    assert (len(before) > 3) == there
    if default:
        subprocess.run([tool("setfacl"), "-d", "--set", "u::rwx,u:99:rwx,g::rwx,m::rwx,o::rwx", tmp_path], check=True)
    with create(path) as storage:
        storage.write(0, b"new")
        storage.settle()
    assert path.read_bytes() == b"new"
    assert access(path) == before


def test_the_new_file_has_the_old_ones_extended_attributes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    os.setxattr(path, "user.checksum", b"1234")
    path.chmod(0o444)
    with create(path) as storage:
        storage.settle()
    assert os.getxattr(path, "user.checksum") == b"1234"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize("lost", ["user.checksum", inheritance.ACL])
def test_what_the_new_file_could_not_have_is_told_before_anything_is_written(
    tmp_path: Path, kind: str, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    os.setxattr(path, "user.checksum", b"1234")
    subprocess.run([tool("setfacl"), "--set", ACL, path], check=True)
    real = os.setxattr

    def setxattr(file: int, name: str, value: bytes) -> None:
        if name == lost:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        real(file, name, value)

    monkeypatch.setattr(os, "setxattr", setxattr)
    with pytest.raises(StorageError, match=rf"{lost}.*--in-place"):
        create(path)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("acl", "mode"),
    [
        ("u::rw-,g::rw-,o::r--", 0o664),
        ("u::rw-,u:1234:rw-,g::---,m::rw-,o::---", 0o600),  # the mode of the old file says 0660
        ("u::rw-,u:1235:---,g::rw-,m::rw-,o::r--", 0o600),  # who is shut out by name stays so
        ("u::rw-,u:1234:rwx,g::rw-,m::r--,o::r--", 0o644),
        ("u::rw-,g:2345:r--,g::rw-,m::rw-,o::rw-", 0o644),
    ],
)
def test_without_a_list_nobody_gets_more_than_the_list_gave(
    tmp_path: Path, acl: str, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"")
    subprocess.run([tool("setfacl"), "--set", acl, old], check=True)

    def setxattr(file: int, name: str, value: bytes) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "setxattr", setxattr)
    with new.open("wb") as file:
        assert inheritance.inherit(file.fileno(), str(old)) == (
            [inheritance.ACL] if ":12" in acl or ":23" in acl else []
        )
    assert stat.S_IMODE(new.stat().st_mode) == mode


@pytest.mark.parametrize("acl", ["u::rw-,g::rw-,o::r--", "u::rw-,u:1234:rw-,g::rw-,m::rw-,o::r--"])
def test_another_group_gets_no_more_than_others(
    tmp_path: Path, kind: str, acl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    subprocess.run([tool("setfacl"), "--set", acl, path], check=True)

    def fchown(*arguments: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchown", fchown)
    with create(path) as storage:
        storage.settle()
    assert path.stat().st_gid != 2345
    assert "group::r--" in access(path)
    assert [one for one in access(path) if one.startswith("user:1234")] == (["user:1234:rw-"] if "1234" in acl else [])


def test_what_cannot_be_replaced_says_so_at_once_and_offers_to_be_written_into(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    (tmp_path / "other").hardlink_to(path)
    with pytest.raises(StorageError, match=r"2 names \(hard links\).*--in-place"):
        create(path)
    (tmp_path / "other").unlink()
    mounts = iter(("mnt_id: 1", "mnt_id: 2"))
    with monkeypatch.context() as patch:
        patch.setattr(output, "_mount", lambda fd: next(mounts))
        with pytest.raises(StorageError, match=r"mount point.*--in-place"):
            create(path)

    def make(self: object, flags: int) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(output.Output, "_make", make)
    with pytest.raises(StorageError, match=r"Permission denied.*--in-place"):
        create(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_that_is_mounted_is_a_mount_point(tmp_path: Path) -> None:
    """The kernel's own word, as far as a test may mount: what is mounted here differs from its folder."""
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        point = next(line.split()[4] for line in mounts if line.split()[4] == "/proc")
    one, other = os.open(point, os.O_RDONLY), os.open("/", os.O_RDONLY)
    again = os.open("/usr", os.O_RDONLY)
    try:
        assert output._mount(one) != output._mount(other)
        assert output._mount(other) == output._mount(again) is not None
    finally:
        for fd in (one, other, again):
            os.close(fd)


def test_a_name_that_is_taken_can_be_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"

    def refusing() -> FileStorage:
        return driver.create(CreateRequest(str(path), Context(cache="writeback", overwrite="refuse"), 0))

    storage = refusing()
    path.write_bytes(b"somebody's")
    with pytest.raises(StorageError, match="File exists"):
        storage.settle()
    storage.abandon()
    with pytest.raises(StorageError, match="File exists"):
        refusing()
    assert path.read_bytes() == b"somebody's"
    path.unlink()
    with refusing() as storage:
        storage.settle()
    assert os.listdir(tmp_path) == ["out"]


def test_a_new_file_has_the_mode_that_qemu_img_gives(tmp_path: Path, kind: str) -> None:
    old = os.umask(0o027)
    try:
        with create(tmp_path / "out") as storage:
            storage.settle()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize("there", [True, False])
def test_the_file_behind_a_link_is_replaced_not_the_link(tmp_path: Path, kind: str, there: bool) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real", tmp_path / "link"
    if there:
        real.write_bytes(b"old")
    link.symlink_to(real)
    with create(link) as storage:
        storage.write(0, b"new")
        storage.settle()
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert os.listdir(real.parent) == ["real"]


def test_a_file_that_appeared_meanwhile_is_replaced_whole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    storage = create(path)
    storage.write(0, b"new")
    path.write_bytes(b"somebody else's")
    storage.settle()
    storage.close()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_appeared_meanwhile_is_an_error_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    storage = create(path)
    path.mkdir()
    with pytest.raises(StorageError, match=r"out.*give the finished output its name"):
        storage.settle()
    storage.close()
    assert os.listdir(tmp_path) == ["out"]


def test_what_cannot_be_replaced_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"x")
    cases = {
        "pipe": "neither a regular file",
        ".": "Is a directory",
        "new/": "Is a directory",
        "loop": "symbolic links",
        "missing/out": "missing.*No such file",
        "file/out": "Not a directory",
        "x" * 300: "File name too long",
    }
    for name, cause in cases.items():
        with pytest.raises(StorageError, match=cause):
            driver.create(CreateRequest(f"{tmp_path}/{name}", Context(), 0))
    with pytest.raises(StorageError, match="neither a regular file"):
        create(Path("/dev/null"))
    ends = os.pipe()
    with pytest.raises(StorageError, match="neither a regular file"):  # as /dev/stdout may be
        create(Path(f"/proc/self/fd/{ends[1]}"))
    for end in ends:
        os.close(end)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop", "pipe"]


def test_two_outputs_cannot_have_one_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with create(path), pytest.raises(LockedError):
        create(path)


def test_the_old_file_can_be_read_but_not_written_meanwhile(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with create(path):
        with driver.open(OpenRequest(str(path), Context())) as reader:
            assert reader.read(0, 3) == b"old"
        with pytest.raises(LockedError, match="another process"):
            driver.open(OpenRequest(str(path), Context(), writable=True))


def test_an_output_that_is_read_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with driver.open(OpenRequest(str(path), Context())), pytest.raises(LockedError, match='Failed to get "write" lock'):
        create(path)
    assert os.listdir(tmp_path) == ["out"]


def beside(path: Path, like: FileStorage) -> FileStorage:
    """A new file that takes after *like*, and may replace nothing else."""
    return driver.create(CreateRequest(str(path), Context(cache="writeback"), 0, like=like))


@pytest.fixture
def old(tmp_path: Path) -> Iterator[FileStorage]:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 1234, 2345)
    with driver.open(OpenRequest(str(path), Context(cache="writeback"), writable=True)) as storage:
        yield storage


@pytest.fixture(params=[True, False], ids=["hard links", "no hard links"])
def links(request: pytest.FixtureRequest, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a file may have a second name; one without a first name gets it all the same."""
    if kind == "named" and not request.param:

        def link(*arguments: object, **keywords: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)


def test_a_file_beside_another_takes_after_it(tmp_path: Path, links: None, old: FileStorage) -> None:
    with beside(tmp_path / "new", old) as storage:
        storage.write(0, b"new")
        assert not storage.settled
        storage.settle()
        assert storage.settled
        one, other = (tmp_path / "new").stat(), (tmp_path / "old").stat()
        assert (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
        assert (tmp_path / "new").read_bytes() == b"new"
        assert sorted(os.listdir(tmp_path)) == ["new", "old"]
        storage.remove()
        assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("what", ["file", "dangling link"])
def test_a_file_beside_another_replaces_nothing(
    tmp_path: Path, links: None, what: str, when: str, old: FileStorage
) -> None:
    path = tmp_path / "new"
    storage = beside(path, old) if when == "meanwhile" else None
    if what == "file":
        path.write_bytes(b"somebody's")
    else:
        path.symlink_to("nowhere")
    attempt = partial(beside, path, old) if storage is None else storage.settle
    with pytest.raises(StorageError, match="File exists") as caught:
        attempt()
    assert caught.value.errno == errno.EEXIST
    if storage is not None:
        assert not storage.settled
        storage.abandon()
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]
    assert path.is_symlink() or path.read_bytes() == b"somebody's"


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_beside_another_may_take_its_place(tmp_path: Path, kind: str, linked: bool, old: FileStorage) -> None:
    """What is open, and locked, by the very process that replaces it."""
    path, before = tmp_path / "old", (tmp_path / "old").stat()
    if linked:
        path = tmp_path / "link"
        path.symlink_to("old")
    with beside(path, old) as storage:
        storage.write(0, b"new")
        storage.settle()
        with pytest.raises(LockedError):
            driver.open(OpenRequest(str(path), Context(), writable=True))
        with pytest.raises(StorageError, match="another file by now"):
            old.remove()
    after = (tmp_path / "old").stat()
    assert (tmp_path / "old").read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert path.is_symlink() is linked
    assert old.read(0, 3) == b"old"


def test_a_file_that_is_not_the_other_any_more_is_not_replaced(tmp_path: Path, kind: str, old: FileStorage) -> None:
    storage = beside(tmp_path / "old", old)
    (tmp_path / "fresh").write_bytes(b"somebody's")
    (tmp_path / "fresh").rename(tmp_path / "old")
    with pytest.raises(StorageError, match="File exists"):
        storage.settle()
    storage.abandon()
    assert (tmp_path / "old").read_bytes() == b"somebody's"
    assert os.listdir(tmp_path) == ["old"]


def test_nothing_is_left_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    program = (
        "import sys, os\n"
        "from diskmill.opening.context import Context\n"
        "from diskmill.storages.file import driver\n"
        "from diskmill.contract.requests import CreateRequest\n"
        "storage = driver.create(CreateRequest(sys.argv[1], Context(), 0))\n"
        "storage.write(0, b'new' * 100000)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_no_descriptor_leaks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with create(path) as storage:
            storage.settle()
        create(path).abandon()
        with driver.open(OpenRequest(str(path), Context(), writable=True)), pytest.raises(LockedError):
            create(path)
        with pytest.raises(StorageError):
            driver.create(CreateRequest(f"{tmp_path}/missing/out", Context(), 0))
    assert len(os.listdir("/proc/self/fd")) == before


def test_copy_on_write_can_be_declined_where_the_file_system_has_it_or_not(tmp_path: Path) -> None:
    with driver.create(CreateRequest(str(tmp_path / "out"), Context(), 0, options={"nocow": True})) as storage:
        storage.write(0, b"x")
        storage.settle()
    assert (tmp_path / "out").read_bytes() == b"x"
