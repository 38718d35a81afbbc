"""RBD, over a real cluster: what we write there qemu-img and rbd read, and the other way round."""

from __future__ import annotations

import ctypes
import errno
import json
import subprocess
import sys
import time
from pathlib import Path

import diskmill
import pytest
from ceph_cluster import CephCluster
from diskmill.errors import StorageError
from diskmill_rbd import c_librbd
from samples import MiB, scattered_file
from tools import diskmill as command
from tools import diskmill_json, qemu_img, qemu_img_json

SIZE = 12 * MiB
pytestmark = pytest.mark.timeout(180)


def test_an_image_there_is_read_and_made_as_qemu_img_does(ceph_cluster: CephCluster, tmp_path: Path) -> None:
    source = scattered_file(tmp_path / "source", SIZE, seed=8, pieces=20)
    for format in ("raw", "qcow2", "vmdk"):
        ours, theirs = (ceph_cluster.url(f"{name}-{format}") for name in ("ours", "theirs"))
        command("convert", "-f", "raw", "-O", format, source, ours)
        qemu_img("compare", "-f", "raw", "-F", format, source, ours)
        command("compare", "-f", "raw", "-F", format, source, ours)
        if format != "vmdk":
            qemu_img("convert", "-f", "raw", "-O", format, source, theirs)
            command("compare", "-f", format, "-F", format, theirs, ours)
        back = tmp_path / f"back-{format}"
        command("convert", "-f", format, "-O", "raw", ours, back)
        assert back.read_bytes() == source.read_bytes()
    ceph_cluster.rbd("export", "rbd/ours-raw", tmp_path / "exported")
    assert (tmp_path / "exported").read_bytes() == source.read_bytes()
    assert not [name for name in ceph_cluster.images() if name.startswith(".diskmill")]


def test_holes_are_told_and_snapshots_and_namespaces_are_read(ceph_cluster: CephCluster, tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(b"1" * MiB + bytes(7 * MiB) + b"2" * MiB)
    (tmp_path / "second").write_bytes(b"3" * 9 * MiB)
    name = ceph_cluster.url("holes")
    command("convert", "-f", "raw", "-O", "raw", tmp_path / "first", name)
    mapped = [(one["start"], one["length"]) for one in diskmill_json("map", "-f", "raw", name) if one["data"]]
    assert mapped == [(0, MiB), (8 * MiB, MiB)]
    ceph_cluster.rbd("snap", "create", "rbd/holes@before")
    command("convert", "-n", "-f", "raw", "-O", "raw", tmp_path / "second", name)
    for image, held in (("holes", "second"), ("holes@before", "first")):
        command("compare", "-f", "raw", "-F", "raw", ceph_cluster.url(image), tmp_path / held)
        qemu_img("compare", "-f", "raw", "-F", "raw", ceph_cluster.url(image), tmp_path / held)
    refused = command("convert", "-n", "-O", "raw", tmp_path / "first", ceph_cluster.url("holes@before"), check=False)
    assert refused.returncode == 1
    assert "a snapshot is only read" in refused.stderr
    ceph_cluster.rbd("namespace", "create", "rbd/inner")
    inner = ceph_cluster.url("inner/disk")
    command("convert", "-f", "raw", "-O", "raw", tmp_path / "first", inner)
    qemu_img("compare", "-f", "raw", "-F", "raw", inner, tmp_path / "first")
    file = {"driver": "rbd", "pool": "rbd", "namespace": "inner", "image": "disk", "conf": str(ceph_cluster.conf)}
    named = f"json:{json.dumps({'driver': 'raw', 'file': file})}"
    command("compare", "-F", "raw", named, tmp_path / "first")
    assert "disk" not in ceph_cluster.images()


def test_commands_that_change_an_image_there(ceph_cluster: CephCluster) -> None:
    answers: dict[str, list[object]] = {}
    for name, program, told in (("c-ours", command, diskmill_json), ("c-theirs", qemu_img, qemu_img_json)):
        disk = ceph_cluster.url(name)
        program("create", "-q", "-f", "raw", disk, "4M")
        program("resize", "-q", "-f", "raw", disk, "8M")
        top = ceph_cluster.url(f"{name}-top")
        program("create", "-q", "-f", "qcow2", top, "8M")
        program("snapshot", "-c", "s", top)
        program("bitmap", "--add", top, "b")
        shown = told("info", top)
        answers[name] = [
            told("info", "-f", "raw", disk)["virtual-size"],
            shown["virtual-size"],
            len(shown["snapshots"]),
            program("check", top).stdout.splitlines()[0],
        ]
    assert answers["c-ours"] == answers["c-theirs"]
    refused = command("create", "-f", "raw", ceph_cluster.url("c-ours"), "1M", check=False)
    assert refused.returncode == 1
    assert "File exists" in refused.stderr


def test_what_an_image_names_is_judged(ceph_cluster: CephCluster, tmp_path: Path) -> None:
    base, top = ceph_cluster.url("g-base"), ceph_cluster.url("g-top")
    command("create", "-q", "-f", "raw", base, "1M")
    local = tmp_path / "top"
    for name in (base, "rbd:rbd/g-base"):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", local, "1M")
        refused = command("convert", "-O", "raw", local, tmp_path / "out", check=False)
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()
    # even where its pool is trusted, a configuration file is nothing that an image chooses
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw", local, "1M")
    words = ("convert", "--trust", ceph_cluster.url(""), "-O", "raw", local, tmp_path / "out")
    assert command(*words, check=False).returncode == 1
    command("create", "-q", "-u", "-f", "qcow2", "-b", "g-base", "-F", "raw", top, "1M")
    command("convert", "-O", "raw", top, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == bytes(MiB)


def test_a_killed_conversion_leaves_nothing_under_the_name(ceph_cluster: CephCluster, tmp_path: Path) -> None:
    source = scattered_file(tmp_path / "source", SIZE, seed=9, pieces=40)
    name = ceph_cluster.url("killed")
    words = ("convert", "-r", "1M", "-f", "raw", "-O", "raw", source, name)
    with subprocess.Popen(
        [Path(sys.executable).with_name("diskmill"), *map(str, words)], stdin=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 15
            while not any(one.startswith(".diskmill") for one in ceph_cluster.images()):
                assert process.poll() is None
                assert time.monotonic() < deadline
        finally:
            process.kill()
    assert process.returncode == -9
    assert "killed" not in ceph_cluster.images()
    command("convert", "-f", "raw", "-O", "raw", source, name, timeout=30)
    command("compare", "-f", "raw", "-F", "raw", source, name, timeout=30)


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    words = "driver=raw,file.driver=rbd,file.pool=rbd,file.image=x,file.server.0.host=127.0.0.1,file.server.0.port=1"
    refused = command("info", "--image-opts", f"{words},file.timeout=1", check=False, timeout=30)
    assert refused.returncode == 1
    assert "does not answer" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(errno.ENOENT, "no such library")

    c_librbd.functions.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    try:
        with pytest.raises(StorageError, match="librados2"):
            diskmill.open("rbd:rbd/disk")
    finally:
        c_librbd.functions.cache_clear()
