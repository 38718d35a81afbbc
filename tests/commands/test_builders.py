"""Builders of images, backup programs and test drivers out of Debian, on the drop-in: whole, or by the very code of
theirs that calls qemu-img. What they make is looked at with qemu-img itself.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from callers import Dropin
from tools import assert_clean, assert_identical, qemu_img, qemu_img_json, qemu_io, run, tool

MiB = 1 << 20
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def dropin(tmp_path_factory: pytest.TempPathFactory) -> Dropin:
    return Dropin(tmp_path_factory.mktemp("dropin"))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk of 8 MiB with data in two places."""
    path = tmp_path / "disk.raw"
    qemu_img("create", "-q", "-f", "raw", path, "8M")
    qemu_io(path, "write -P 7 1M 1M", "write -P 9 7M 64k", format="raw")
    return path


def python(dropin: Dropin, program: str, *words: object, cwd: Path) -> str:
    """Run *program* with the distribution's Python, which has the caller's modules."""
    return run(PYTHON, "-c", textwrap.dedent(program), *map(str, words), env=dropin.env, cwd=cwd).stdout


def test_kiwi_makes_disks_of_other_formats(dropin: Dropin, tmp_path: Path) -> None:
    """SUSE's builder of appliances: its class for each format, with the description of an appliance."""
    assert tool("/usr/lib/python3/dist-packages/kiwi/storage/subformat/base.py")
    (tmp_path / "config.xml").write_text(
        """<?xml version="1.0" encoding="utf-8"?>
        <image schemaversion="7.4" name="box"><description type="system"><author>a</author><contact>c</contact>
        <specification>s</specification></description><preferences><version>1.0.0</version>
        <packagemanager>apt</packagemanager><type image="oem" filesystem="ext4"/></preferences>
        <repository type="apt-deb"><source path="dir:///none"/></repository>
        <packages type="bootstrap"><package name="base"/></packages></image>"""
    )
    program = """
        import sys
        from kiwi.xml_description import XMLDescription
        from kiwi.xml_state import XMLState
        from kiwi.storage.subformat import DiskFormat
        folder = sys.argv[1]
        state = XMLState(XMLDescription(folder + "/config.xml").load(), [], "oem")
        for format in sys.argv[2:]:
            made = DiskFormat.new(format, state, folder, folder)
            with open(made.diskname, "wb") as raw:
                raw.write(bytes(1 << 20) + bytes([7]) * (1 << 20))
            made.resize_raw_disk(8 << 20)
            made.create_image_format()
            print("made", made.diskname, made.get_target_file_path_for_format(made.image_format))
    """
    formats = {"qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx", "vhd-fixed": "vpc"}
    printed = python(dropin, program, tmp_path, *formats, cwd=tmp_path).splitlines()
    for format, line in zip(formats.values(), [one for one in printed if one.startswith("made ")], strict=True):
        _, raw, path = line.split()
        assert Path(raw).stat().st_size == 8 * MiB
        assert qemu_img("compare", "-f", "raw", "-F", format, raw, path).returncode == 0  # a VHD ends behind the disk
    assert [line.split()[0] for line in dropin.calls()].count("resize") == len(formats)


def test_autopkgtest_lays_an_overlay_over_its_testbed(dropin: Dropin, tmp_path: Path, disk: Path) -> None:
    base = tmp_path / "testbed.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, base)
    assert tool("/usr/share/autopkgtest/lib/autopkgtest_qemu.py")
    program = """
        import sys
        sys.path.insert(0, "/usr/share/autopkgtest/lib")
        from autopkgtest_qemu import Qemu, QemuImage
        image = QemuImage(sys.argv[1])
        machine = Qemu.__new__(Qemu)
        machine.overlay_dir, machine.workdir = None, sys.argv[2]
        print(image.format, machine.prepare_overlay(image))
    """
    format, overlay = python(dropin, program, base, tmp_path, cwd=tmp_path).split()
    assert format == "qcow2"
    assert qemu_img_json("info", overlay)["full-backing-filename"] == str(base)
    assert_identical(disk, overlay, formats=("raw", "qcow2"))
    assert [line.split()[0] for line in dropin.calls()] == ["info", "create"]


def test_ironic_converts_an_image_within_its_limits(dropin: Dropin, tmp_path: Path, disk: Path) -> None:
    """OpenStack's bare metal: under a limit of memory, which it sets for qemu-img."""
    source = tmp_path / "image.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", disk, source)
    assert tool("/usr/lib/python3/dist-packages/ironic_lib/disk_utils.py")
    program = """
        import os, sys
        from ironic_lib import disk_utils, utils
        execute = utils.execute
        def with_path(*words, env_variables=(), **options):  # it hands down no PATH, so that Debian's would be found
            return execute(*words, env_variables={**dict(env_variables), "PATH": os.environ["PATH"]}, **options)
        utils.execute = with_path
        info = disk_utils.qemu_img_info(sys.argv[1])
        print(info.file_format, info.virtual_size)
        how = dict(cache="directsync", out_of_order=True, sparse_size="0")
        disk_utils.convert_image(sys.argv[1], sys.argv[2], "raw", **how)
    """
    assert python(dropin, program, source, tmp_path / "out.raw", cwd=tmp_path).split() == ["qcow2", str(8 * MiB)]
    assert_identical(disk, tmp_path / "out.raw", formats=("raw", "raw"))
    assert [line.split()[0] for line in dropin.calls()] == ["info", "convert"]


@pytest.mark.parametrize("suffix", ["qcow2", "vdi", "vmdk", "vhdx"])
def test_fai_diskimage_runs_whole(dropin: Dropin, tmp_path: Path, suffix: str) -> None:
    """The script itself; what installs a system into a loop device is a stand-in that writes to the disk."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, body in (
        ("id", "echo 0"),
        ("losetup", 'case "$1" in -P) echo "$4" > loop; echo /dev/loop77;; esac'),
        ("setup-storage", ":"),
        ("vgs", ":"),
        ("fai", 'printf "fai was here" | dd of="$(cat loop)" bs=1M seek=3 conv=notrunc status=none'),
    ):
        (stand_ins / name).write_text(f"#!/bin/sh\n{body}\n")
        (stand_ins / name).chmod(0o755)
    env = {**dropin.env, "PATH": f"{stand_ins}:{dropin.env['PATH']}"}
    words = ("-u", "host", "-S", "8M", "-c", "DEBIAN", "-s", tmp_path, f"disk.{suffix}")
    run(tool("fai-diskimage"), *words, env=env, cwd=tmp_path)
    assert not (tmp_path / "disk.raw").exists()
    qemu_img("convert", "-f", suffix, "-O", "raw", tmp_path / f"disk.{suffix}", tmp_path / "out")
    data = (tmp_path / "out").read_bytes()
    assert len(data) == 8 * MiB and data.find(b"fai was here") == 3 * MiB
    assert [line.split()[0] for line in dropin.calls()] == ["create", "convert"]


def test_mkosi_makes_a_qcow2_image(dropin: Dropin, tmp_path: Path, disk: Path) -> None:
    """It hands over a temporary file that it holds open, and takes what is in there afterwards."""
    assert tool("/usr/lib/python3/dist-packages/mkosi/__init__.py")
    program = """
        import argparse, pathlib, shutil, sys
        import mkosi
        config = argparse.Namespace(
            output_format=mkosi.OutputFormat.gpt_ext4, qcow2=True, output=pathlib.Path(sys.argv[2]) / "image"
        )
        with open(sys.argv[1], "rb") as raw:
            made = mkosi.qcow2_output(config, raw)
        with open(sys.argv[2] + "/kept.qcow2", "wb") as kept:
            shutil.copyfileobj(made, kept)
    """
    python(dropin, program, disk, tmp_path, cwd=tmp_path)
    assert_clean(tmp_path / "kept.qcow2")
    assert_identical(disk, tmp_path / "kept.qcow2", formats=("raw", "qcow2"))
    assert dropin.calls()[-1].startswith("convert -onocow=on -fraw -Oqcow2")


def test_virtnbdbackup_makes_the_image_that_it_restores_into(dropin: Dropin, tmp_path: Path) -> None:
    """With the options that its backup took from `info --output json` of the original."""
    assert tool("/usr/lib/python3/dist-packages/libvirtnbdbackup/qemu/util.py")
    original = tmp_path / "original.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=128k,lazy_refcounts=on", original, "32M")
    program = """
        import json, logging, sys
        from argparse import Namespace
        from importlib.machinery import SourceFileLoader
        from libvirtnbdbackup.qemu import util
        restore = SourceFileLoader("restore", "/usr/bin/virtnbdrestore").load_module()
        helper = util("sda")
        info = helper.info(sys.argv[1])
        with open(sys.argv[2] + "/sda.qcow.json.1", "w") as file:
            file.write(info.out)
        options = restore.getQcowConfig(Namespace(input=sys.argv[2]), {"diskName": "sda"})
        helper.create(sys.argv[2] + "/restored.qcow2", 32 << 20, "qcow2", options)
    """
    python(dropin, program, original, tmp_path, cwd=tmp_path)
    ours, theirs = (qemu_img_json("info", tmp_path / name) for name in ("restored.qcow2", "original.qcow2"))
    assert ours["virtual-size"] == theirs["virtual-size"]
    assert [line.split()[0] for line in dropin.calls()] == ["info", "create"]


def test_diskimage_builder_saves_its_image_compressed(dropin: Dropin, tmp_path: Path, disk: Path) -> None:
    library = Path("/usr/lib/python3/dist-packages/diskimage_builder/lib")
    assert tool(str(library / "img-functions"))
    script = (
        f"source {library}/common-functions; source {library}/img-functions\n"
        f"TMP_IMAGE_PATH={disk} IMAGE_TYPE=qcow2 COMPRESS_IMAGE=true QEMU_IMG_OPTIONS=compat=0.10 DIB_CHECKSUM=1\n"
        f"compress_and_save_image {tmp_path}/saved.qcow2\n"
    )
    run("/bin/bash", "-c", script, env=dropin.env, cwd=tmp_path)
    saved = tmp_path / "saved.qcow2"
    assert qemu_img_json("info", saved)["format-specific"]["data"]["compat"] == "0.10"
    assert qemu_img_json("check", saved)["compressed-clusters"] > 0
    assert_identical(disk, saved, formats=("raw", "qcow2"))
    assert dropin.calls()[-1].startswith("convert -c -f raw -O qcow2 -o compat=0.10")


def test_ganeti_imports_the_disk_of_an_ovf_package(dropin: Dropin, tmp_path: Path, disk: Path) -> None:
    """It finds the format in what `info` prints for people, and converts to raw."""
    source = tmp_path / "disk.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, source)
    assert tool("/usr/share/ganeti/3.0/ganeti/ovf.py")
    program = """
        import json, sys
        sys.path.insert(0, "/usr/share/ganeti/3.0")
        from ganeti import constants, ovf, utils
        constants.QEMUIMG_PATH = sys.argv[1]
        class Temporary:
            Add = staticmethod(lambda path: None)
        converter = ovf.Converter.__new__(ovf.Converter)
        converter.output_dir, converter.temp_file_manager = sys.argv[3], Temporary
        info = converter._GetDiskQemuInfo
        format = info(sys.argv[2], r"file format: (\\S+)")
        extension, path = converter._ConvertDisk("raw", sys.argv[2])
        print(json.dumps([format, extension, path]))
    """
    found = python(dropin, program, dropin.folder / "qemu-img", source, tmp_path, cwd=tmp_path)
    format, extension, path = json.loads(found.splitlines()[-1])
    assert (format, extension) == ("vmdk", ".raw")
    assert_identical(disk, path, formats=("raw", "raw"))
    assert [line.split()[0] for line in dropin.calls()] == ["info", "convert"]
