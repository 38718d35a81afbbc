"""``convert --deterministic``: the same disk makes the same file, in every format."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import diskmill as api
import pytest
from diskmill.errors import UsageError
from samples import MiB, scattered_file
from tools import diskmill, qemu_img

SECRET = api.Context(secrets={"key": b"key"})
ENCRYPTED = ("luks",)
FORMATS = sorted(
    driver.name
    for driver in api.list_drivers()
    if driver.kind == "format" and "create" in driver.capabilities and driver.name not in ENCRYPTED
)
OTHERS = [
    ("qcow2", {}, True),
    ("qcow2", {"extended_l2": True}, False),
    ("vmdk", {"subformat": "streamOptimized"}, False),
    ("vmdk", {"subformat": "twoGbMaxExtentSparse"}, False),
    ("vpc", {"subformat": "fixed"}, False),
    ("vdi", {"preallocation": "metadata"}, False),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One disk, in two formats."""
    folder = tmp_path_factory.mktemp("sources")
    raw = scattered_file(folder / "disk.raw", 6 * MiB, seed=5, pieces=60)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", raw, folder / "disk.qcow2")
    return [raw, folder / "disk.qcow2"]


def made(folder: Path, source: Path, format: str, **options: object) -> dict[str, bytes]:
    """The files of what *source* is converted into, by their names."""
    folder.mkdir()
    api.convert([source], folder / f"disk.{format}", output_format=format, deterministic=True, **options)  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("format", "options", "compress"), [*((name, {}, False) for name in FORMATS), *OTHERS])
def test_whatever_made_it(
    sources: list[Path], tmp_path: Path, format: str, options: dict[str, object], compress: bool
) -> None:
    one = made(tmp_path / "one", sources[0], format, options=options, compress=compress, threads=1)
    other = made(tmp_path / "other", sources[1], format, options=options, compress=compress, threads=4)
    assert one == other


def test_ids_are_the_disks_and_times_are_given(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tmp_path / "first", sources[0], "vpc")["disk.vpc"]
    with sources[0].open("rb") as file:
        (tmp_path / "other.raw").write_bytes(b"another" + file.read()[7:])
    other = made(tmp_path / "other", tmp_path / "other.raw", "vpc")["disk.vpc"]
    assert first[68:84] != other[68:84]  # the footer's unique id: two disks are two
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    dated = made(tmp_path / "dated", sources[0], "vpc")["disk.vpc"]
    assert int.from_bytes(dated[24:28], "big") == 1_700_000_000 - 946_684_800  # seconds from 2000 on
    assert dated[68:84] == first[68:84]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "now")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is a number of seconds"):
        made(tmp_path / "never", sources[0], "vpc")


def test_keys_are_random_all_the_same(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its key is random"):
        made(
            tmp_path / "locked",
            sources[0],
            "luks",
            options={"key-secret": "key"},
            context=SECRET,
            target_context=SECRET,
        )
    assert list((tmp_path / "locked").iterdir()) == []


def test_the_command_takes_a_text_for_what_comes_once(sources: list[Path], tmp_path: Path) -> None:
    found = set()
    for name in ("one", "other"):
        out, fifo = tmp_path / name, tmp_path / f"{name}.fifo"
        os.mkfifo(fifo)
        writer = threading.Thread(target=lambda to=fifo: to.write_bytes(sources[0].read_bytes()))
        writer.start()
        diskmill("convert", "--deterministic=disk 7", "-f", "raw", "-O", "vdi", "--spool", f"pipe:{fifo}", out)
        writer.join()
        found.add(out.read_bytes())
    assert len(found) == 1
    assert "--deterministic does not go with -W" in diskmill(
        "convert", "--deterministic", "-W", sources[0], tmp_path / "never", check=False
    ).stderr  # fmt: skip
