"""Apple's sparse images and sparse bundles: what the encoder makes of disks, and what damage does to it.

No tool of Debian's writes or reads them. The encoder's images of one header were held against libmodi by hand.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import diskmill
import pytest
from diskmill.contract.extents import Kind
from diskmill.errors import DiskmillError, ImageError, UnsupportedError
from diskmill.sizes import GiB, KiB, MiB
from encoders import in_memory, sparseimage
from formats import Machine, pattern
from tools import diskmill as command


def disk() -> bytes:
    data = bytearray(3 * MiB + 512)
    data[5000:90000] = pattern(1, 85000)
    data[2 * MiB : 2 * MiB + 3] = b"one"
    data[-512:] = pattern(2, 512)
    return bytes(data)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return sparseimage.bundle(disk(), tmp_path / "disk.sparsebundle")


# -- bundles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "Info.plist"])
def test_a_bundle_is_a_disk(bundle: Path, tmp_path: Path, inside: str) -> None:
    source, out = bundle / inside, tmp_path / "out"
    told = diskmill.info(str(source))
    assert (told.format, told.virtual_size) == ("sparseimage", len(disk()))
    assert told.specific == {"band-size": 64 * KiB, "bands": len(os.listdir(bundle / "bands"))}
    command("convert", "-O", "raw", source, out)
    assert out.read_bytes() == disk()
    command("convert", "-O", "qcow2", source, tmp_path / "qcow2")
    assert diskmill.compare(str(tmp_path / "qcow2"), str(source)).identical
    found = diskmill.check(str(source))
    assert (found.corruptions, found.allocated_clusters) == (0, told.specific["bands"])
    entries = list(diskmill.map(str(source)))
    assert next(entry.filename for entry in entries if entry.data) == str(bundle / "bands" / "0")


def test_a_bundle_that_is_written_is_refused(bundle: Path) -> None:
    with pytest.raises(UnsupportedError, match="only be read"):
        diskmill.resize(str(bundle), GiB)


def test_an_encrypted_bundle_is_refused(tmp_path: Path) -> None:
    encrypted = sparseimage.bundle(disk(), tmp_path / "a.sparsebundle", token=b"encrcdsa" + bytes(500))
    with pytest.raises(UnsupportedError, match="encrypted"):
        diskmill.check(str(encrypted))


def test_bands_pass_the_gate(bundle: Path, tmp_path: Path) -> None:
    (bundle / "bands" / "0").unlink()
    os.symlink("/etc/passwd", bundle / "bands" / "0")
    with pytest.raises(DiskmillError, match="was not opened"):
        diskmill.check(str(bundle))
    (bundle / "bands" / "0").unlink()
    (bundle / "bands" / "0").mkdir()
    with pytest.raises(DiskmillError):
        diskmill.check(str(bundle))


PLIST = (
    "<plist><dict><key>diskimage-bundle-type</key><string>com.apple.diskimage.sparsebundle</string>%s</dict></plist>"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<key>size</key>", "property list"),
        ("<key>size</key><integer>512</integer>", "band-size"),
        ("<key>size</key><integer>-1</integer><key>band-size</key><integer>512</integer>", "'-1'"),
        ("<key>size</key><integer>512</integer><key>band-size</key><integer>0</integer>", "not possible"),
        ("<key>size</key><integer>9</integer><key>band-size</key><integer>١</integer>", "number"),
        (f"<key>size</key><integer>{2**62}</integer><key>band-size</key><integer>1</integer>", "limits files"),
        ("<key>size</key><integer>1", "well-formed"),
        ("<!-- " + "x" * MiB + " -->", "too large"),
    ],
)
def test_property_lists_that_make_no_disk(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "Info.plist").write_text(PLIST % text)
    with pytest.raises(DiskmillError) as caught:
        diskmill.info(str(tmp_path))
    assert words in str(caught.value)


# -- images ------------------------------------------------------------------------------------------------------------


def opened(data: bytes) -> Machine:
    machine = Machine()
    machine.put("disk", data)
    return machine


def test_more_bands_than_the_header_has_places() -> None:
    data = bytes(number % 255 + 1 for number in range(512)) * 2500
    image = in_memory(sparseimage.encode, band=512, seed=2)(data)
    assert image.count(b"sprs\0\0\0") == 3
    machine = opened(image)
    with machine.open("disk", None) as one:
        assert one.read(0, one.size) == data


@pytest.mark.parametrize("size", [MiB, 5 * MiB - 512])
def test_the_low_half_of_the_size_may_stand_alone(size: int) -> None:
    image = bytearray(in_memory(sparseimage.encode)(bytes(size)))
    image[28:36] = bytes(8)
    with opened(bytes(image)).open("disk", None) as one:
        assert one.size == size
        assert [extent.kind for extent in one.extents(0, size)] == [Kind.HOLE]


def test_an_image_that_is_cut_short_is_read_as_far_as_it_goes() -> None:
    data = pattern(1, 3 * 64 * KiB)
    machine = opened(in_memory(sparseimage.encode)(data)[:-1000])
    with machine.open("disk", "sparseimage") as image:
        assert image.read(0, len(data) - 1000) == data[:-1000]
        with pytest.raises(ImageError, match="cut short"):
            image.read(len(data) - 1000, 1)
    found = diskmill.check("memory:disk", context=machine.context)
    assert (found.corruptions, "band 2" in found.findings[0].text) == (1, True)


GOOD = in_memory(sparseimage.encode, band=512)(bytes(range(1, 129)) * 4 * 1100)
NODE = GOOD.index(b"sprs", 4)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (4, struct.pack(">I", 4), "version 4"),
        (8, bytes(4), "no sectors"),
        (28, b"\xff" * 8, "impossible size"),
        (20, struct.pack(">Q", 4096), "not where its bands end"),
        (20, b"\xff" * 8, "not where its bands end"),
        (64, struct.pack(">I", 1101), "behind the end"),
        (64, struct.pack(">I", 2), "there twice"),
        (NODE + 56, struct.pack(">I", 1), "there twice"),
        (NODE, b"none", "there is none"),
        (NODE + 12, struct.pack(">Q", NODE), "not where its bands end"),
    ],
)
def test_what_is_refused(at: int, value: bytes, words: str) -> None:
    with pytest.raises(DiskmillError) as caught, opened(GOOD[:at] + value + GOOD[at + len(value) :]).open("disk", None):
        pass
    assert words in str(caught.value)


def test_a_huge_empty_disk_costs_nothing() -> None:
    head = struct.pack(">4sIIIIQQ28x", b"sprs", 3, 1, 1, 0xFFFFFFFF, 0, 2**53).ljust(4096, b"\0")
    with opened(head).open("disk", None) as image:
        assert len(list(image.extents(0, image.size))) == 1
