"""What is remembered of the installed drivers from one start to the next, and when it is not believed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tools import run

PROGRAM = """
import sys
from diskmill.opening.discovery import installed
found = [f"{one.name}={one.value}" for one in installed() if one.group == "diskmill.format"]
print(*sorted(found), "searched" if "stevedore" in sys.modules else "remembered")
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def start(cache: Path, *folders: Path) -> list[str]:
    """What another process finds: drivers, and whether it searched."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return run(sys.executable, "-c", PROGRAM, env=environment).stdout.split()


def remembered(cache: Path) -> Path:
    (file,) = (cache / "diskmill").iterdir()
    return file


def install(folder: Path, name: str, *lines: str) -> Path:
    """What an installer leaves of a distribution that brings format drivers."""
    metadata = folder / f"{name}-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("\n".join(["[diskmill.format]", *lines, ""]))
    return metadata / "entry_points.txt"


def test_the_second_start_does_not_search(cache: Path) -> None:
    first, second = start(cache), start(cache)
    assert first[-1] == "searched"
    assert second[-1] == "remembered"
    assert first[:-1] == second[:-1]
    assert "raw=diskmill.formats.raw:driver" in first
    assert remembered(cache).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mask", [0, 0o077, 0o277])
def test_new_folders_are_for_their_user_alone(tmp_path: Path, mask: int) -> None:
    cache = tmp_path / "one" / "two"
    old = os.umask(mask)
    try:
        assert start(cache)[-1] == "searched"
    finally:
        os.umask(old)
    for folder in (tmp_path / "one", cache, cache / "diskmill"):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert start(cache)[-1] == "remembered"


def test_old_files_go_when_one_is_written(cache: Path, tmp_path: Path) -> None:
    start(cache)
    mine = remembered(cache)
    others = [mine.with_name(f"entry-points-{number:08x}") for number in range(30)]
    others.append(mine.with_name("entry-points-00000000.123"))  # of a start that was killed
    for age, file in enumerate([mine, *others], 1):
        file.write_bytes(mine.read_bytes())
        os.utime(file, (1_700_000_000 - age, 1_700_000_000 - age))
    strange = mine.with_name("something-else")
    strange.touch()
    os.utime(strange, (0, 0))
    assert start(cache)[-1] == "remembered"
    assert len(list(mine.parent.iterdir())) == 33  # nothing is removed, nor looked for, where nothing is written
    assert start(cache, tmp_path)[-1] == "searched"
    left = set(mine.parent.iterdir()) - {strange, mine, *others}
    assert len(left) == 1  # the new one
    assert set(mine.parent.iterdir()) == {strange, mine, *others[:18], *left}
    assert start(cache, tmp_path)[-1] == start(cache)[-1] == "remembered"


def test_what_is_installed_or_removed_is_seen_at_once(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    folder.mkdir()
    before = start(cache, folder)[:-1]
    listed = install(folder, "strange", "strange = strange:driver")
    assert start(cache, folder)[:-1] == sorted([*before, "strange=strange:driver"])
    assert start(cache, folder)[-1] == "remembered"
    listed.unlink()
    assert start(cache, folder)[:-1] == before


def test_a_list_that_is_written_anew_in_its_place_is_seen(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    install(folder, "strange", "strange = strange:driver")
    assert "strange=strange:driver" in start(cache, folder)
    install(folder, "strange", "other = strange:driver")
    found = start(cache, folder)
    assert "other=strange:driver" in found
    assert "strange=strange:driver" not in found


def test_another_module_path_is_another_answer(cache: Path, tmp_path: Path) -> None:
    install(tmp_path / "packages", "strange", "strange = strange:driver")
    assert "strange=strange:driver" not in start(cache)
    assert "strange=strange:driver" in start(cache, tmp_path / "packages")
    assert "strange=strange:driver" not in start(cache)


@pytest.mark.parametrize("how", ["others may write it", "a link", "a folder", "damaged", "cut", "empty", "endless"])
def test_a_file_that_another_could_have_written_or_that_is_damaged_is_not_believed(cache: Path, how: str) -> None:
    expected = start(cache)[:-1]
    file = remembered(cache)
    text = file.read_text()
    evil = text.replace("diskmill.formats.raw:driver", "evil:driver")
    assert evil != text
    if how == "damaged":
        file.write_text(text.replace("\t", " "))
    elif how == "cut":
        file.write_text(text[: len(text) // 3])
    elif how == "empty":
        file.write_text("")
    else:
        file.unlink()
    if how == "others may write it":
        file.write_text(evil)
        file.chmod(0o666)
    elif how == "a link":
        (cache / "evil").write_text(evil)
        file.symlink_to(cache / "evil")
    elif how == "a folder":
        file.mkdir()
    elif how == "endless":
        os.mkfifo(file)
    found = start(cache)
    assert found == [*expected, "searched"]


def test_nothing_else_is_remembered(cache: Path) -> None:
    """What stevedore would keep is not looked at: anybody may have written it."""
    start(cache)
    assert [one.name for one in cache.iterdir()] == ["diskmill"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_nothing_is_left_in_another_users_folder(cache: Path) -> None:
    home = cache.parent
    os.chown(home, 12345, 12345)
    assert start(cache)[-1] == start(cache)[-1] == "searched"
    assert not cache.exists()


@pytest.mark.parametrize(
    "folder",
    ["'/nowhere/caf\\udce9'", "__import__('pathlib').Path('/nowhere')"],
    ids=["not UTF-8", "no string"],
)
def test_a_module_path_with_strange_folders(cache: Path, folder: str) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    program = f"import sys\nsys.path.append({folder})\n{PROGRAM}"
    starts = [run(sys.executable, "-c", program, env=environment).stdout.split() for _ in range(2)]
    assert [words[-1] for words in starts] == ["searched", "remembered"]
    assert "raw=diskmill.formats.raw:driver" in starts[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_another_users_file_is_not_believed(cache: Path) -> None:
    expected = start(cache)[:-1]
    file = remembered(cache)
    file.write_text(file.read_text().replace("diskmill.formats.raw:driver", "evil:driver"))
    os.chown(file, 12345, 12345)
    assert start(cache) == [*expected, "searched"]


@pytest.mark.parametrize("cache_home", ["/proc/nowhere", "relative", "/dev/null"])
def test_without_a_place_to_remember_it_searches(cache_home: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": cache_home}
    for _ in range(2):
        words = run(sys.executable, "-c", PROGRAM, env=environment, cwd=tmp_path).stdout.split()
        assert "raw=diskmill.formats.raw:driver" in words
        assert words[-1] == "searched"
    assert not (tmp_path / cache_home / "diskmill").exists()
