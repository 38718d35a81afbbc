"""A command that refuses has changed nothing: every command that works in place, refused for every cause known ahead.

Each case makes its images with qemu-img, says what to run, and a word of the refusal; not a byte of any file in the
folder may be another afterwards, nor may there be another file.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.errors import StorageError
from diskmill.opening.context import Context
from diskmill.opening.gate import ANYTHING
from diskmill.sizes import GiB, KiB, MiB
from diskmill.storages.file.storage import FileStorage
from tools import assert_identical, qemu_img, qemu_io, tool
from tools import diskmill as run_diskmill

Run = Callable[[Context], object]
Case = Callable[[Path], tuple[str, Run]]
CASES: dict[str, Case] = {}


def case(make: Case) -> Case:
    CASES[make.__name__] = make
    return make


def image(folder: Path, name: str, format: str, size: int | str, *options: str, data: str = "write -P 5 4k 8k") -> str:
    qemu_img("create", "-q", "-f", format, *options, name, str(size), cwd=folder)
    if data:
        qemu_io(name, data, format=format, cwd=folder)
    return str(folder / name)


def overlay(folder: Path, name: str, base: str, kind: str, size: int | str, *, format: str = "qcow2") -> str:
    return image(folder, name, format, size, "-b", base, "-F", kind, data="write -P 9 64k 64k")


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


# -- commit ----------------------------------------------------------------------------------------------------------


def commit(path: str, **options: Any) -> Run:
    return lambda context: diskmill.commit(path, context=context, **options)


@case
def commit_into_a_vmdk_that_has_changed(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "vmdk", 807936)
    over = overlay(folder, "over", "base", "vmdk", "2M", format="vmdk")
    qemu_io("base", "write -q -P 165 786432 21504", format="vmdk", cwd=folder)
    return "has changed", commit(over, format="vmdk")


@case
def commit_through_a_vmdk_that_has_changed(folder: Path) -> tuple[str, Run]:
    """What is wrong is between: qcow2 on VMDK on VMDK on VMDK."""
    image(folder, "a", "vmdk", "1M")
    overlay(folder, "b", "a", "vmdk", "1M", format="vmdk")
    overlay(folder, "c", "b", "vmdk", "1M", format="vmdk")
    top = overlay(folder, "top", "c", "vmdk", "2M")
    qemu_io("b", "write -q -P 165 512k 4k", format="vmdk", cwd=folder)
    return "has changed", commit(top, format="qcow2", base=str(folder / "a"))


@case
def commit_into_a_format_that_cannot_grow(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "qcow", "1M")
    return "cannot resize", commit(overlay(folder, "over", "base", "qcow", "2M"))


@case
def commit_into_an_image_that_can_only_be_read(folder: Path) -> tuple[str, Run]:
    image(folder, "raw", "raw", "1M")
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "raw", "base", cwd=folder)
    return "", commit(overlay(folder, "over", "base", "vmdk", "2M"))


@case
def commit_into_an_old_qcow2_with_snapshots(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "qcow2", "1M", "-o", "compat=0.10")
    qemu_img("snapshot", "-c", "s", "base", cwd=folder)
    return "cannot be resized", commit(overlay(folder, "over", "base", "qcow2", "2M"))


@case
def commit_of_more_than_the_base_can_have(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "vpc", "8M")
    return "", commit(overlay(folder, "over", "base", "vpc", "3T"))


@case
def commit_of_an_image_whose_tables_are_damaged(folder: Path) -> tuple[str, Run]:
    """The damage comes after data that could be committed."""
    image(folder, "base", "raw", "64M")
    over = image(folder, "over", "qcow2", "64M", "-b", "base", "-F", "raw", "-o", "cluster_size=4k")
    qemu_io("over", "write -P 1 0 64k", "write -P 2 40M 64k", format="qcow2", cwd=folder)
    data = bytearray((folder / "over").read_bytes())
    (l1,) = struct.unpack_from(">Q", data, 40)
    struct.pack_into(">Q", data, l1 + 8 * 20, 1 << 63 | 1 << 40)  # the L2 table of 40M
    (folder / "over").write_bytes(data)
    return "", commit(over, format="qcow2")


@case
def commit_into_a_base_with_a_bitmap_that_is_void(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "qcow2", "1M")
    with_bitmap(folder / "base", void=True)
    return "inconsistent", commit(overlay(folder, "over", "base", "qcow2", "2M"))


@case
def commit_into_an_image_that_is_not_in_the_chain(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "raw", "1M")
    other = image(folder, "other", "raw", "1M")
    return "in the backing chain of", commit(overlay(folder, "over", "base", "raw", "2M"), base=other)


# -- rebase ----------------------------------------------------------------------------------------------------------


def rebase(path: str, backing: str, format: str = "raw", **options: Any) -> Run:
    return lambda context: diskmill.rebase(path, backing, backing_format=format, context=context, **options)


def two_bases(folder: Path) -> None:
    image(folder, "base", "raw", "1M")
    image(folder, "new", "raw", "1M", data="write -P 7 0 1M")


@case
def rebase_qcow2_to_a_name_that_is_too_long(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    return "longer", rebase(overlay(folder, "over", "base", "raw", "1M"), "./" * 600 + "new")


@case
def rebase_qcow2_to_a_name_that_its_header_has_no_room_for(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    over = image(folder, "over", "qcow2", "1M", "-b", "base", "-F", "raw", "-o", "cluster_size=512")
    return "", rebase(over, "./" * 240 + "new")


@case
def rebase_qed_to_a_name_that_is_too_long(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    over = image(folder, "over", "qed", "1M", "-b", "./" * 400 + "base", "-F", "raw", "-o", "cluster_size=4096")
    return "no room", rebase(over, "./" * 1700 + "new")


@case
def rebase_of_a_format_that_cannot(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    return "cannot change", rebase(overlay(folder, "over", "base", "raw", "1M", format="qcow"), "new")


@case
def rebase_vmdk(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "vmdk", "1M")
    image(folder, "new", "vmdk", "1M", data="write -P 7 0 1M")
    return "cannot change", rebase(overlay(folder, "over", "base", "vmdk", "1M", format="vmdk"), "new", "vmdk")


@case
def rebase_to_nothing_that_is_there(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    return "", rebase(overlay(folder, "over", "base", "raw", "1M"), "nothere")


@case
def rebase_to_an_unknown_format(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    return "nope", rebase(overlay(folder, "over", "base", "raw", "1M"), "new", "nope")


@case
def rebase_onto_itself(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    return "lock", rebase(overlay(folder, "over", "base", "raw", "1M"), "over", "qcow2")


@case
def rebase_a_raw_data_file(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    over = image(folder, "over", "qcow2", "1M", "-o", "data_file=data,data_file_raw=on")
    return "data_file_raw", rebase(over, "new")


@case
def rebase_away_from_a_vmdk_that_has_changed(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "vmdk", "1M")
    overlay(folder, "mid", "base", "vmdk", "1M", format="vmdk")
    over = overlay(folder, "over", "mid", "vmdk", "1M")
    image(folder, "new", "raw", "1M", data="write -P 7 0 1M")
    qemu_io("base", "write -q -P 165 512k 4k", format="vmdk", cwd=folder)
    return "has changed", rebase(over, "new")


@case
def rebase_compressed_of_a_format_that_cannot(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    over = overlay(folder, "over", "base", "raw", "1M", format="qed")
    return "compression", rebase(over, "new", compress=True)


# -- resize ----------------------------------------------------------------------------------------------------------


def resize(path: str, size: int, **options: Any) -> Run:
    return lambda context: diskmill.resize(path, size, context=context, **options)


def _resize_cases() -> None:
    def add(name: str, make: Case) -> None:
        make.__name__ = name
        case(make)

    def too_large(format: str, size: int) -> Case:
        return lambda folder: ("", resize(image(folder, "disk", format, "8M"), size, format=format))

    for format, size in (("vpc", 3 << 40), ("vhdx", 65 << 40), ("vdi", 1 << 52), ("parallels", 1 << 60)):
        add(f"resize_{format}_to_more_than_it_can_have", too_large(format, size))
    add("resize_qed_to_more_than_it_can_have", too_large("qed", 65 << 40))
    add("resize_vmdk_to_more_than_it_can_have", too_large("vmdk", 1 << 60))

    def smaller(format: str) -> Case:
        return lambda folder: (
            "cannot shrink",
            resize(image(folder, "disk", format, "8M"), MiB, shrink=True, format=format),
        )

    for format in ("qed", "vmdk", "vpc", "vdi", "vhdx", "parallels"):
        add(f"resize_{format}_to_less", smaller(format))

    def preallocated(format: str) -> Case:
        return lambda folder: (
            "preallocation",
            resize(image(folder, "disk", format, "8M"), 16 * MiB, preallocation="metadata", format=format),
        )

    for format in ("raw", "qed", "vpc", "vhdx", "parallels"):
        add(f"resize_{format}_with_a_preallocation_that_it_lacks", preallocated(format))


_resize_cases()


@case
def resize_qcow2_with_a_bitmap_to_more_than_its_l1_can_have(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M", "-o", "cluster_size=512")
    with_bitmap(folder / "disk")
    return "too large", resize(path, 300 * GiB)


@case
def resize_qcow2_to_what_makes_its_bitmap_too_large(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    qemu_img("bitmap", "--add", "-g", "512", path, "fine")
    return "too fine", resize(path, 3 << 40)


@case
def resize_to_less_unasked(folder: Path) -> tuple[str, Run]:
    return "smaller", resize(image(folder, "disk", "qcow2", "8M"), MiB)


@case
def resize_a_raw_image_to_less_with_preallocation(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "raw", "8M")
    return "growing", resize(path, MiB, shrink=True, preallocation="full", format="raw")


# -- amend -----------------------------------------------------------------------------------------------------------


def amend(path: str, options: dict[str, str], **more: Any) -> Run:
    return lambda context: diskmill.amend(path, options, context=context, **more)


@case
def amend_to_an_older_version_and_more_than_its_l1_can_have(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M", "-o", "cluster_size=512")
    return "too large", amend(path, {"compat": "0.10", "size": "300G"})


@case
def amend_to_a_newer_version_and_more_than_its_l1_can_have(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M", "-o", "cluster_size=512,compat=0.10")
    return "too large", amend(path, {"compat": "1.1", "size": "300G", "lazy_refcounts": "on"})


@case
def amend_the_size_with_a_bitmap_that_is_void(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    with_bitmap(folder / "disk", void=True)
    return "inconsistent", amend(path, {"size": "2M", "lazy_refcounts": "on"})


@case
def amend_a_refcount_that_does_not_fit(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    for name in "abcd":
        qemu_img("snapshot", "-c", name, path)
    return "", amend(path, {"refcount_bits": "1", "lazy_refcounts": "on"})


@case
def amend_to_an_older_version_with_bitmaps(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    with_bitmap(folder / "disk")
    return "bitmaps", amend(path, {"compat": "0.10"})


@case
def amend_key_slots_that_are_not_there(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    return "", amend(path, {"encrypt.state": "inactive", "lazy_refcounts": "on"})


@case
def amend_a_format_that_cannot(folder: Path) -> tuple[str, Run]:
    return "amendment", amend(image(folder, "disk", "qed", "1M"), {"size": "2M"})


# -- snapshot --------------------------------------------------------------------------------------------------------


def snapshot(path: str, action: str, name: str) -> Run:
    return lambda context: diskmill.snapshot(path, action, name, context=context)


@case
def snapshot_that_is_not_there(folder: Path) -> tuple[str, Run]:
    return "", snapshot(image(folder, "disk", "qcow2", "1M"), "apply", "nothere")


@case
def snapshot_deleted_that_is_not_there(folder: Path) -> tuple[str, Run]:
    return "", snapshot(image(folder, "disk", "qcow2", "1M"), "delete", "nothere")


@case
def snapshot_of_a_format_that_has_none(folder: Path) -> tuple[str, Run]:
    return "snapshots", snapshot(image(folder, "disk", "qed", "1M"), "create", "s")


@case
def snapshot_of_an_external_data_file(folder: Path) -> tuple[str, Run]:
    return "external", snapshot(image(folder, "disk", "qcow2", "1M", "-o", "data_file=data"), "create", "s")


@case
def snapshot_applied_under_bitmaps(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    qemu_img("snapshot", "-c", "s", path)
    with_bitmap(folder / "disk")
    return "bitmaps", snapshot(path, "apply", "s")


@case
def snapshot_more_than_its_refcounts_can_count(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M", "-o", "refcount_bits=1")
    return "", snapshot(path, "create", "s")


# -- bitmap ----------------------------------------------------------------------------------------------------------


def with_bitmap(path: Path, *, void: bool = False) -> None:
    """A bitmap in it; *void*: as a writer leaves it that never ended."""
    qemu_img("bitmap", "--add", path, "b")
    if void:
        data = bytearray(path.read_bytes())
        at = data.index(struct.pack(">I", 0x23852875)) + 8 + 16  # of the header extension: bitmap_directory_offset
        (directory,) = struct.unpack_from(">Q", data, at)
        data[directory + 15] |= 1  # in_use
        path.write_bytes(data)


def bitmap(path: str, *actions: tuple[str, str], **options: Any) -> Run:
    return lambda context: diskmill.bitmap(path, "b", actions, context=context, **options)


@case
def bitmap_added_and_then_merged_with_none(folder: Path) -> tuple[str, Run]:
    return "not found", bitmap(image(folder, "disk", "qcow2", "1M"), ("add", ""), ("merge", "nothere"))


@case
def bitmap_cleared_and_then_added_again(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    with_bitmap(folder / "disk")
    qemu_io("disk", "write 0 64k", format="qcow2", cwd=folder)
    return "already exists", bitmap(path, ("clear", ""), ("add", ""))


@case
def bitmap_replaced_by_one_that_cannot_be(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    with_bitmap(folder / "disk")
    return "power of 2", bitmap(path, ("remove", ""), ("add", ""), granularity=3000)


@case
def bitmap_disabled_and_merged_with_another_size(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    with_bitmap(folder / "disk")
    other = image(folder, "other", "qcow2", "2M")
    with_bitmap(folder / "other")
    return "different sizes", bitmap(path, ("disable", ""), ("merge", "b"), source=other)


@case
def bitmap_of_nothing(folder: Path) -> tuple[str, Run]:
    return "0 bytes", bitmap(image(folder, "disk", "qcow2", 0, data=""), ("add", ""))


@case
def bitmap_of_version_2(folder: Path) -> tuple[str, Run]:
    return "version 2", bitmap(image(folder, "disk", "qcow2", "1M", "-o", "compat=0.10"), ("add", ""))


# -- convert into an image that exists -------------------------------------------------------------------------------


def convert(source: str, output: str, format: str, **options: Any) -> Run:
    return lambda context: diskmill.convert(
        [source], output, output_format=format, existing=True, context=context, **options
    )


@case
def convert_into_an_image_that_is_too_small(folder: Path) -> tuple[str, Run]:
    return "holds", convert(image(folder, "disk", "qcow2", "2M"), image(folder, "out", "qcow2", "1M"), "qcow2")


@case
def convert_from_a_vmdk_whose_parent_has_changed(folder: Path) -> tuple[str, Run]:
    image(folder, "base", "vmdk", "1M")
    over = overlay(folder, "over", "base", "vmdk", "2M", format="vmdk")
    qemu_io("base", "write -q -P 165 512k 4k", format="vmdk", cwd=folder)
    return "has changed", convert(over, image(folder, "out", "qcow2", "2M"), "qcow2")


@case
def convert_compressed_into_a_format_that_cannot(folder: Path) -> tuple[str, Run]:
    source, out = image(folder, "disk", "qcow2", "1M"), image(folder, "out", "vdi", "1M")
    return "compression", convert(source, out, "vdi", compress=True)


@case
def convert_onto_a_backing_image_that_it_lacks(folder: Path) -> tuple[str, Run]:
    two_bases(folder)
    out = image(folder, "out", "qcow2", "1M")
    return "backing", convert(overlay(folder, "over", "base", "raw", "1M"), out, "qcow2", backing="base")


@case
def convert_bitmaps_that_are_there_already(folder: Path) -> tuple[str, Run]:
    source, out = image(folder, "disk", "qcow2", "1M"), image(folder, "out", "qcow2", "1M")
    qemu_img("bitmap", "--add", source, "a")
    with_bitmap(folder / "disk")
    with_bitmap(folder / "out")
    return "already exists", convert(source, out, "qcow2", bitmaps=True)


@case
def convert_bitmaps_to_version_2(folder: Path) -> tuple[str, Run]:
    source, out = image(folder, "disk", "qcow2", "1M"), image(folder, "out", "qcow2", "1M", "-o", "compat=0.10")
    with_bitmap(folder / "disk")
    return "version 2", convert(source, out, "qcow2", bitmaps=True)


# -- check -r --------------------------------------------------------------------------------------------------------


@case
def check_a_format_that_cannot_be_repaired(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "raw", "8M")
    return "check", lambda context: diskmill.check(path, format="raw", repair="all", context=context)


@case
def check_of_what_a_repair_would_give_up(folder: Path) -> tuple[str, Run]:
    path = image(folder, "disk", "qcow2", "1M")
    os.truncate(path, os.path.getsize(path) - 64 * KiB)
    return "", lambda context: diskmill.check(path, repair="all", context=context)


# -- the walk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_refuses_has_changed_nothing(name: str, tmp_path: Path) -> None:
    word, act = CASES[name](tmp_path)
    before = contents(tmp_path)
    with pytest.raises(diskmill.DiskmillError) as caught:
        act(Context(trust=ANYTHING, warn=lambda text: None))
    assert contents(tmp_path) == before
    assert word in str(caught.value)


def test_space_that_cannot_be_had_leaves_the_size_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path, "disk", "raw", MiB)
    before = contents(tmp_path)

    def full(*arguments: object) -> None:
        raise StorageError("No space left on device", file=path)

    monkeypatch.setattr(FileStorage, "allocate", full)
    with pytest.raises(StorageError):
        diskmill.resize(path, 2 * MiB, preallocation="falloc", format="raw")
    assert contents(tmp_path) == before


@contextmanager
def held(path: Path, format: str) -> Iterator[None]:
    """Another program has the image open for writing."""
    words = [tool("qemu-io"), "-f", format, str(path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdout.read(8)  # the prompt: it is open
        yield
    finally:
        process.stdin.close()
        process.stdout.read()
        process.stdout.close()
        process.wait(10)


@pytest.mark.parametrize(
    ("command", "other"),
    [("commit", "base"), ("commit", "mid"), ("rebase", "base"), ("rebase", "mid"), ("rebase", "new")],
)
def test_a_lock_anywhere_in_the_chain_is_found_first(command: str, other: str, tmp_path: Path) -> None:
    image(tmp_path, "base", "qcow2", "1M")
    image(tmp_path, "new", "qcow2", "1M", data="write -P 7 0 1M")
    overlay(tmp_path, "mid", "base", "qcow2", "2M")
    over = overlay(tmp_path, "over", "mid", "qcow2", "3M")
    act = commit(over, base=str(tmp_path / "base")) if command == "commit" else rebase(over, "new", "qcow2")
    with held(tmp_path / other, "qcow2"):
        before = contents(tmp_path)
        with pytest.raises(diskmill.DiskmillError, match="lock"):
            act(Context())
        assert contents(tmp_path) == before


def test_a_target_that_is_said_to_be_zeros_and_is_not_is_refused(tmp_path: Path) -> None:
    source, mapped, file, zeroed, far = (tmp_path / name for name in ("source", "mapped", "file", "zeroed", "far"))
    source.write_bytes(b"HELLO" + bytes(4 * MiB - 5))
    for path in (mapped, zeroed, far):
        qemu_img("create", "-q", "-f", "qcow2", path, "4M" if path != far else "64M")
    qemu_io(mapped, "write -P 0x55 1M 1M", format="qcow2")
    qemu_io(zeroed, "write -P 0 1M 1M", "write -z 3M 64k", format="qcow2")
    qemu_io(far, "write -P 0 0 32M", "write -P 1 32M 64k", format="qcow2")
    file.write_bytes(bytes(MiB - 1) + b"x" + bytes(3 * MiB))
    before = {path: path.read_bytes() for path in (mapped, file, far)}
    for path, format in ((mapped, "qcow2"), (file, "raw"), (far, "qcow2")):
        command = ("convert", "-n", "--target-is-zero", "-f", "raw", "-O", format)
        sources = (source,) if path != far else (source,) * 16
        refused = run_diskmill(*command, *sources, path, check=False)
        assert refused.returncode == 1, path
        assert "does not read as zeros" in refused.stderr
        assert path.read_bytes() == before[path]
    run_diskmill("convert", "-n", "--target-is-zero", "-f", "raw", "-O", "qcow2", source, zeroed)
    assert_identical(source, zeroed, formats=("raw", "qcow2"))
