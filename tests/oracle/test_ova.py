"""Disks in OVA packages, OVF descriptors and tar archives, against tar, 7z and qemu-img."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import diskmill as api
import pytest
from diskmill.errors import DiskmillError, ImageError, RefusedError, UnsupportedError, UsageError
from samples import MiB, scattered_file
from tools import diskmill, qemu_img, run, tool

SIZE = 6 * MiB
ENVELOPE = """<?xml version="1.0"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<ovf:References>{files}</ovf:References><ovf:DiskSection>{disks}</ovf:DiskSection></ovf:Envelope>"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scattered_file(tmp_path_factory.mktemp("disk") / "disk.raw", SIZE, seed=8, pieces=40)


def streamed(disk: Path, folder: Path) -> bytes:
    """The disk as others put it into packages."""
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, folder / "made.vmdk")
    return (folder / "made.vmdk").read_bytes()


def envelope(*hrefs: str) -> bytes:
    files = "".join(f'<ovf:File ovf:id="f{n}" ovf:href="{href}"/>' for n, href in enumerate(hrefs))
    disks = "".join(f'<ovf:Disk ovf:diskId="d{n}" ovf:fileRef="f{n}"/>' for n in range(len(hrefs)))
    return ENVELOPE.format(files=files, disks=disks).encode()


def packed(path: Path, files: Mapping[str, bytes], *, form: int = tarfile.USTAR_FORMAT, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_package_is_whole_to_others(disk: Path, tmp_path: Path) -> None:
    package = tmp_path / "vm.ova"
    api.convert([disk], package, format="raw", output_format="ova")
    run("tar", "-xf", package, "-C", tmp_path)
    run(tool("7z"), "t", package)
    assert run("tar", "-tf", package).stdout.split() == ["vm.ovf", "vm.mf", "vm-disk1.vmdk"]
    qemu_img("compare", "-f", "raw", "-F", "vmdk", disk, tmp_path / "vm-disk1.vmdk")
    for line in (tmp_path / "vm.mf").read_text().splitlines():
        name, digest = line.removeprefix("SHA256(").split(")= ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert f'ovf:capacity="{SIZE}"' in (tmp_path / "vm.ovf").read_text()
    assert api.compare(disk, package, format_a="raw").identical
    assert api.compare(disk, tmp_path / "vm.ovf", format_a="raw").identical
    assert not api.check(package).findings


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_packages_of_others(disk: Path, tmp_path: Path, form: int) -> None:
    name = "a-long-name" * 12 + ".vmdk" if form != tarfile.USTAR_FORMAT else "d.vmdk"
    data = streamed(disk, tmp_path)
    package = packed(tmp_path / "x.ova", {"x.ovf": envelope(name), name: data}, form=form)
    assert api.compare(disk, package, format_a="raw").identical
    with package.open("rb") as file:
        assert api.compare(disk, file, format_a="raw").identical


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_archives_with_one_disk(disk: Path, tmp_path: Path, suffix: str) -> None:
    archive = packed(
        tmp_path / f"x.tar{suffix}",
        {"readme.txt": b"words", "disk.vmdk": streamed(disk, tmp_path)},
        mode=f"w:{suffix[1:]}",
    )
    api.convert([archive], tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()


def test_several_disks_are_chosen_by_name(disk: Path, tmp_path: Path) -> None:
    other = bytes([7]) * MiB
    package = packed(
        tmp_path / "x.ova",
        {"x.ovf": envelope("one.vmdk", "two.img"), "two.img": other, "one.vmdk": streamed(disk, tmp_path)},
    )
    with pytest.raises(UsageError, match=r"several disks: choose one by disk=NAME: one.vmdk, two.img"):
        api.info(package)
    for chosen, size in (("one.vmdk", SIZE), ("1", SIZE), ("two.img", MiB), ("2", MiB)):
        assert api.info(f"driver=ova,disk={chosen},file.filename={package}", image_opts=True).virtual_size == size
    with pytest.raises(UsageError, match="there is no disk 'three'"):
        api.info(f"driver=ova,disk=three,file.filename={package}", image_opts=True)


def test_the_manifest_tells_what_was_changed(disk: Path, tmp_path: Path) -> None:
    data = streamed(disk, tmp_path)
    for algorithm in ("sha1", "sha256"):
        lines = f"{algorithm.upper()}(d.vmdk)= {hashlib.new(algorithm, data).hexdigest()}\n"
        good = packed(tmp_path / "good.ova", {"d.ovf": envelope("d.vmdk"), "d.mf": lines.encode(), "d.vmdk": data})
        assert not api.check(good).findings
        damaged = bytearray(good.read_bytes())
        damaged[damaged.index(b"KDMV") + 100_000] ^= 1
        (tmp_path / "bad.ova").write_bytes(damaged)
        assert "'d.vmdk' is not what the manifest says" in api.check(tmp_path / "bad.ova").findings[0].text


def test_descriptors_open_nothing_outside_of_their_folder(disk: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.vmdk").write_bytes(streamed(disk, tmp_path))
    for href in ("../secret.vmdk", str(tmp_path / "secret.vmdk"), "/dev/zero"):
        (inside / "x.ovf").write_bytes(envelope(href))
        with pytest.raises(RefusedError):
            api.digest(inside / "x.ovf")
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", inside / "flat.vmdk", "1M")
    package = packed(tmp_path / "x.ova", {"d.vmdk": (inside / "flat.vmdk").read_bytes()})
    with pytest.raises(UnsupportedError, match="stands on other files"):
        api.digest(package)


@pytest.mark.parametrize(
    "xml",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + envelope("d.vmdk").replace(b"d.vmdk", b"&b;"),
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + envelope("d.vmdk").replace(b"d.vmdk", b"&a;"),
        envelope("d.vmdk")[:-20],
        envelope(),
        envelope("d.vmdk").replace(b'fileRef="f0"', b'fileRef="f9"'),
        b"<a>" * 200_000,
    ],
    ids=["entities", "files", "cut", "no disk", "no file", "many tags"],
)
def test_hostile_descriptors(tmp_path: Path, xml: bytes) -> None:
    package = packed(tmp_path / "x.ova", {"x.ovf": xml, "d.vmdk": b"KDMV" + bytes(1000)})
    with pytest.raises(ImageError) as caught:
        api.info(package)
    assert "\n" not in str(caught.value)


def test_damaged_archives_are_refused(disk: Path, tmp_path: Path) -> None:
    good = packed(tmp_path / "x.ova", {"d.vmdk": streamed(disk, tmp_path)}, form=tarfile.PAX_FORMAT).read_bytes()
    bad = tmp_path / "bad.ova"
    for data in (good[: len(good) // 2], good[:124] + b"77777777777\0" + good[136:], good[:600]):
        bad.write_bytes(data)
        with pytest.raises(DiskmillError):
            api.digest(bad, format="ova")
    header = tarfile.TarInfo("./PaxHeaders/x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    bad.write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(ImageError, match="an extended header of 8589934592 bytes"):
        api.info(bad)


def test_the_commands(disk: Path, tmp_path: Path) -> None:
    diskmill("convert", "-f", "raw", "-O", "ova", disk, tmp_path / "x.ova")
    assert "virtual size: 6 MiB" in diskmill("info", tmp_path / "x.ova").stdout
    diskmill("compare", "-f", "raw", disk, tmp_path / "x.ova")
    diskmill("check", tmp_path / "x.ova")
