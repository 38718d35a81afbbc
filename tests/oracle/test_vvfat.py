"""A folder as a FAT disk: fsck.fat finds nothing wrong, and others read from it what is in the folder."""

from __future__ import annotations

import os
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import StorageError
from diskmill_filters import fat
from samples import KiB
from tools import diskmill as command
from tools import qemu_img, run, tool

PARTITION = 63 * 512


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of all lengths, folders, and names that are long, alike, or not of this alphabet."""
    top = tmp_path / "folder"
    deep = top / "A folder with a long name" / "deep"
    deep.mkdir(parents=True)
    (top / "a.txt").write_bytes(b"hi")
    (top / "empty").touch()
    (top / "Ein l\u00e4ngerer N\u00e4m\u00e9.tar.gz").write_bytes(os.urandom(300 * KiB + 7))
    for number in range(150):
        (deep / f"number {number}.text").write_bytes(bytes([number]) * number * 20)
    return top


def contents(top: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in sorted(top.rglob("*"))
    }


def unpacked(disk: Path, to: Path, *, partitioned: bool) -> dict[str, bytes | None]:
    """What 7z finds in the file system on *disk*, with which fsck.fat is content."""
    plain = disk.with_suffix(".plain")
    window = f"driver=raw,offset={PARTITION if partitioned else 0},file.driver=file,file.filename={disk}"
    command("convert", "-O", "raw", "--image-opts", window, plain)
    checked = run(tool("fsck.fat"), "-n", plain).stdout
    assert len(checked.splitlines()) == 2, checked
    run(tool("7z"), "x", "-y", f"-o{to}", plain)
    return contents(to)


@pytest.mark.parametrize("form", ["12:", "16:", "32:", "floppy:", "floppy:16:"])
def test_others_read_what_is_in_the_folder(tmp_path: Path, folder: Path, form: str) -> None:
    size = {}
    for name, of in (("ours", command), ("theirs", qemu_img)):
        if name == "ours" or form == "12:":
            of("convert", "-O", "raw", f"fat:{form}{folder}", tmp_path / name)
            found = unpacked(tmp_path / name, tmp_path / f"{name}-out", partitioned="floppy" not in form)
            assert found == contents(folder)
        shown = of("info", f"fat:{form}{folder}").stdout
        size[name] = [line for line in shown.splitlines() if line.startswith("virtual size")]
    assert size["ours"] == size["theirs"]


def test_nothing_outside_is_shown(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"GEHEIM" * 100)
    (folder / "link").symlink_to(tmp_path / "secret" / "file")
    (folder / "links").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    done = command("convert", "-O", "raw", f"fat:12:{folder}", tmp_path / "out")
    assert "left out" in done.stderr and "and 2 more" in done.stderr
    assert b"GEHEIM" not in (tmp_path / "out").read_bytes()
    over = tmp_path / "over"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", f"fat:{folder}", "-F", "raw", over, "1M")
    for words in ((), ("--trust", str(tmp_path))):
        assert command("convert", *words, "-O", "raw", over, tmp_path / "none", check=False).returncode == 1


def test_a_file_that_changes_meanwhile_is_an_error(folder: Path) -> None:
    with diskmill.open(f"fat:12:{folder}") as disk:
        disk.read(0, 2 << 20)
        (folder / "a.txt").write_bytes(b"ho, ho")
        with pytest.raises(StorageError, match="changed meanwhile"):
            disk.read(0, 2 << 20)


def test_there_are_bounds(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "large").open("wb") as file:
        file.truncate(100 << 20)
    refused = [
        f"fat:12:{folder}", "fat:" + str(tmp_path / "none"), f"fat:rw:{folder}", f"fat:{folder}/a.txt", "fat:",
        f"fat:floppy:32:{folder}",
    ]  # fmt: skip
    for name in refused:
        done = command("info", name, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), name
    monkeypatch.setattr(fat, "MOST_ENTRIES", 100)
    with pytest.raises(StorageError, match="more than 100 files"):
        diskmill.open(f"fat:{folder}")
