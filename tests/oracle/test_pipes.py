"""Images that come through standard input and go through standard output."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import diskmill
import pytest
from diskmill.sizes import KiB, MiB
from tools import qemu_img, qemu_io

COMMAND = Path(sys.executable).with_name("diskmill")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk whose data has a hole of more than a copy's first stretch, and ends in an odd sector."""
    file = tmp_path / "disk.raw"
    with file.open("wb") as out:
        out.write(os.urandom(MiB))
        out.seek(70 * MiB)
        out.write(os.urandom(5 * MiB + 512))
    return file


def piped(image: Path, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    with subprocess.Popen(["cat", image], stdout=subprocess.PIPE) as cat:
        return subprocess.run([COMMAND, "convert", *words], stdin=cat.stdout, capture_output=True)


def test_a_raw_disk_of_unknown_size_becomes_any_image_that_grows(raw: Path, tmp_path: Path) -> None:
    for format in ("raw", "qcow2"):
        out = tmp_path / f"out.{format}"
        done = piped(raw, "-f", "raw", "-O", format, "-", out)
        assert done.returncode == 0, done.stderr
        qemu_img("compare", "-f", "raw", "-F", format, raw, out)
        with diskmill.open(out, format) as image:
            assert image.size == raw.stat().st_size
    qemu_img("check", tmp_path / "out.qcow2")


@pytest.mark.parametrize(
    ("node", "skipped"),
    [
        ("offset=512,file.driver=pipe,file.filename=pipe:-", 512),
        ("file.driver=retry,file.file.filename=pipe:-,file.file.driver=pipe", 0),
    ],
    ids=["window", "filter"],
)
def test_the_rest_of_what_has_no_size_and_what_a_filter_lets_through(
    node: str, skipped: int, raw: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = piped(raw, "--image-opts", f"driver=raw,{node}", "-O", "raw", out)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == raw.read_bytes()[skipped:]


def test_what_has_no_size_is_no_base(raw: Path, tmp_path: Path) -> None:
    node = f"driver=qcow2,file.filename={tmp_path / 'top'},backing.driver=raw,backing.file.filename=pipe:-"
    diskmill.create(tmp_path / "top", MiB, format="qcow2")
    done = piped(raw, "--image-opts", f"{node},backing.file.driver=pipe", "-O", "raw", tmp_path / "out")
    assert done.returncode == 1 and b"nobody knows the size" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", ["1", "2"])
def test_luks_through_a_pipe(version: str, raw: Path, tmp_path: Path) -> None:
    """Also one whose payload is cut: a header alone is no disk."""
    password, disk, out = tmp_path / "password", tmp_path / "disk.luks", tmp_path / "out.raw"
    password.write_text("secret")
    secret = ("--object", f"secret,id=it,file={password}")
    options = f"version={version},key-secret=it,iter-time=10"
    made = subprocess.run([COMMAND, "convert", *secret, "-f", "raw", "-O", "luks", "-o", options, raw, disk])
    assert made.returncode == 0
    node = (*secret, "--image-opts", "driver=luks,key-secret=it,file.driver=pipe,file.filename=pipe:-")
    done = piped(disk, *node, "-O", "raw", out)
    assert done.returncode == 0, done.stderr
    size = raw.stat().st_size  # version 2 has sectors of 4 KiB
    assert out.read_bytes()[:size] == raw.read_bytes() and out.stat().st_size - size < 4096
    payload = disk.stat().st_size - out.stat().st_size
    for cut in (payload - 1, payload // 2, 592):
        os.truncate(disk, cut)
        done = piped(disk, *node, "-O", "raw", tmp_path / "none")
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done.stderr
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "cluster_size=16k")], ids=["plain", "compressed", "small"])
def test_qcow2_through_both_pipes_is_whole_or_refused(raw: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, image)
    done = piped(image, "-O", "raw", "-", "-")
    assert done.returncode == 0, done.stderr
    assert done.stdout == raw.read_bytes()


@pytest.mark.parametrize("words", [("-c",), ("-o", "cluster_size=4k")], ids=["compressed", "small"])
@pytest.mark.parametrize("writer", [COMMAND, "qemu-img"], ids=["ours", "theirs"])
def test_tables_come_before_their_clusters(writer: str | Path, words: tuple[str, ...], tmp_path: Path) -> None:
    """More data than is kept for reading backwards, by tables that lie between."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(os.urandom(48 * MiB))
    subprocess.run([writer, "convert", "-f", "raw", "-O", "qcow2", *words, raw, image], check=True)
    done = piped(image, "-O", "raw", "-", "-")
    assert done.returncode == 0, done.stderr
    assert done.stdout == raw.read_bytes()
    with image.open("rb") as file:  # which a shell has opened: no pipe at all
        done = subprocess.run([COMMAND, "convert", "-O", "qcow2", "-", "-"], stdin=file, capture_output=True)
        assert done.returncode == 0, done.stderr
    copy = tmp_path / "copy.qcow2"
    copy.write_bytes(done.stdout)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, copy)
    qemu_img("check", "-f", "qcow2", image)


@pytest.mark.parametrize("size", [0, 1, 512, 3000, 65536 + 512])
def test_a_small_disk_from_a_pipe(size: int, tmp_path: Path) -> None:
    raw, out = tmp_path / "disk.raw", tmp_path / "out.qcow2"
    raw.write_bytes(os.urandom(size))
    assert piped(raw, "-f", "raw", "-O", "qcow2", "-", out).returncode == 0
    qemu_img("compare", "-s" if not size % 512 else "-q", "-f", "raw", "-F", "qcow2", raw, out)


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize(
    ("format", "options"),
    [("vmdk", "subformat=streamOptimized"), ("vpc", "subformat=fixed,force_size=on"), ("raw", "")],
)
def test_formats_that_are_written_forward_go_into_a_pipe(
    format: str, options: str, data: bool, raw: Path, tmp_path: Path
) -> None:
    if not data:
        raw.write_bytes(b"")
        os.truncate(raw, 10 * MiB)
    else:  # over the borders of tables
        with raw.open("r+b") as file:
            file.seek(28 * MiB)
            file.write(os.urandom(8 * MiB))
    words = () if format == "raw" else ("-o", options)
    done = subprocess.run([COMMAND, "convert", "-f", "raw", "-O", format, *words, raw, "-"], capture_output=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    out.write_bytes(done.stdout)
    qemu_img("compare", "-f", "raw", "-F", format, raw, out)


def test_qcow2_is_laid_out_before_its_first_byte(tmp_path: Path) -> None:
    """Random disks, of several formats, by every width of refcounts and size of clusters: as QEMU reads and checks."""
    chance = random.Random(16)
    for number in range(24):
        source, out = tmp_path / f"disk{number}", tmp_path / f"out{number}"
        format = chance.choice(["raw", "qcow2", "vmdk", "vdi"])
        size = chance.choice([0, 512, 65536, 3 * MiB + 512, 70 * MiB, 5 << 30]) if format != "vmdk" else 70 * MiB
        qemu_img("create", "-q", "-f", format, source, str(size))
        writes = []
        for _ in range(chance.randrange(6) if size else 0):
            at = chance.randrange(0, size, 512)
            length = min(chance.choice([512, 4096, 65536, 300 * 512, 3 * MiB]), size - at)
            writes.append(f"write -P {chance.choice([0, 1, 2])} {at} {length}")
        if writes:
            qemu_io(source, *writes, format=format)
        bits, cluster = chance.choice([1, 2, 4, 8, 16, 32, 64]), chance.choice(["512", "4k", "64k", "2M"])
        options = f"refcount_bits={bits},cluster_size={cluster}"
        words = [COMMAND, "convert", "-f", format, "-O", "qcow2", "-o", options, source, "-"]
        done = subprocess.run(words, capture_output=True)
        assert done.returncode == 0, done.stderr
        out.write_bytes(done.stdout)
        qemu_img("compare", "-f", format, "-F", "qcow2", source, out)
        qemu_img("check", "-f", "qcow2", out)
        assert subprocess.run([COMMAND, "check", "-q", out]).returncode == 0
        out.unlink()
        source.unlink()


@pytest.mark.parametrize("words", [("-c",), ("-o", "preallocation=metadata"), ("-o", "extended_l2=on")], ids=str)
def test_qcow2_that_cannot_be_laid_out_says_so_before_a_byte(words: tuple[str, ...], raw: Path) -> None:
    done = subprocess.run([COMMAND, "convert", "-f", "raw", "-O", "qcow2", *words, raw, "-"], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"--spool" in done.stderr
    done = piped(raw, "-f", "raw", "-O", "qcow2", "-", "-")
    assert (done.returncode, done.stdout) == (1, b"")


def test_results_do_not_go_where_the_image_does(raw: Path) -> None:
    words = (COMMAND, "convert", "-f", "raw", "-O", "raw", raw, "-")
    done = subprocess.run([*words, "--output=json"], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    done = subprocess.run([*words, "--digest"], capture_output=True)
    assert done.stdout == raw.read_bytes() and done.stderr.strip().decode() == diskmill.digest(raw, format="raw")


def test_what_one_pass_cannot_do_is_refused_before_a_byte_and_done_with_a_spool(raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.vdi"
    qemu_img("convert", "-f", "raw", "-O", "vdi", raw, image)
    for words in (("-O", "raw"), ("-f", "raw", "-O", "qcow2")):
        done = piped(image, *words, "-", "-")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"--spool" in done.stderr
    spools = tmp_path / "spools"
    spools.mkdir()
    done = piped(image, f"--spool={spools}", "-O", "qcow2", "-", "-")
    assert done.returncode == 0, done.stderr
    (tmp_path / "back.qcow2").write_bytes(done.stdout)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, tmp_path / "back.qcow2")
    assert not list(spools.iterdir())


def test_metadata_behind_data_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", image, "200M")
    subprocess.run(["qemu-io", "-c", "write 150M 40M", "-c", "write 0 40M", image], check=True, capture_output=True)
    with image.open("r+b") as file:  # the L1 table goes to the end
        head = file.read(KiB)
        at = int.from_bytes(head[40:48], "big")
        file.seek(at)
        table = file.read(64 * KiB)
        end = file.seek(0, 2)
        file.write(table)
        file.seek(40)
        file.write(end.to_bytes(8, "big"))
    done = piped(image, "-O", "raw", "-", tmp_path / "out.raw")
    assert done.returncode == 1
    assert b"cannot be read backwards" in done.stderr and b"--spool" in done.stderr
    assert not (tmp_path / "out.raw").exists()


def test_a_reader_that_goes_away_is_one_line(raw: Path) -> None:
    with subprocess.Popen(
        [COMMAND, "convert", "-f", "raw", "-O", "raw", raw, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read().count(b"\n") <= 1
    assert process.returncode != 0


@pytest.mark.parametrize("packer", ["gzip", "xz", "bzip2", "zstd", "lz4"])
def test_compressed_files_are_read_as_what_is_inside(packer: str, raw: Path, tmp_path: Path) -> None:
    image, packed = tmp_path / "disk.qcow2", tmp_path / "packed"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    data = subprocess.run([packer, "-1c", image], check=True, capture_output=True).stdout
    packed.write_bytes(data)
    out = tmp_path / "out.raw"
    subprocess.run([COMMAND, "convert", "-O", "raw", packed, out], check=True)
    assert out.read_bytes() == raw.read_bytes()
    assert piped(packed, "-O", "raw", "-", "-").stdout == raw.read_bytes()
    packed.write_bytes(data[: len(data) // 2])
    out.unlink()
    done = subprocess.run([COMMAND, "convert", "-O", "raw", packed, out], capture_output=True)
    assert done.returncode == 1 and f"{packer} data breaks off".encode() in done.stderr
    assert not out.exists()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    packed.write_bytes(flipped)
    done = subprocess.run([COMMAND, "convert", "-O", "raw", packed, out], capture_output=True)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1) and f"{packer} data cannot be".encode() in done.stderr
    assert not out.exists()


def test_a_dictionary_that_needs_too_much_memory_is_refused(raw: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out.raw"
    for words in (["xz", "--lzma2=dict=256MiB", "-c"], ["zstd", "-q", "--long=28", "-c"]):
        packed.write_bytes(subprocess.run([*words], stdin=raw.open("rb"), check=True, capture_output=True).stdout)
        done = subprocess.run([COMMAND, "convert", "-O", "raw", packed, out], capture_output=True)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
        assert b"emory" in done.stderr and not out.exists()
