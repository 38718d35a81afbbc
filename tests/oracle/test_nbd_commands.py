"""Every command on a qcow2 image inside an NBD export does what it does on a file, and what qemu-img understands."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from nbd_servers import nbdkit, qemu_nbd, uri
from tools import assert_identical, diskmill, diskmill_json, qemu_img, qemu_io

MiB = 1 << 20
ROOM = 32 * MiB


def test_each_command_does_over_nbd_what_it_does_on_a_file(tmp_path: Path) -> None:
    base, local, remote, sock = (tmp_path / name for name in ("base.qcow2", "local", "remote", "sock"))
    qemu_img("create", "-f", "qcow2", base, "4M")
    qemu_io(base, "write -P 1 0 2M", format="qcow2")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", local)
    qemu_io(local, "write -P 2 1M 256k", format="qcow2")
    shutil.copy(local, remote)
    os.truncate(local, ROOM)  # an export does not grow
    os.truncate(remote, ROOM)
    trust = ("--trust", str(tmp_path))
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(1).randbytes(3 * MiB) + bytes(MiB))
    with nbdkit(sock, "file", remote):
        both = (uri(sock), str(local))

        def alike(*words: str) -> None:
            """Run the command on both; `{}` is the image."""
            results = [diskmill(*(word.replace("{}", name) for word in words), check=False) for name in both]
            assert results[0].returncode == results[1].returncode, results
            assert results[0].stdout.replace(both[0], "X") == results[1].stdout.replace(both[1], "X"), words

        for name in both:
            told = diskmill_json("info", *trust, name)
            assert (told["format"], told["virtual-size"]) == ("qcow2", 4 * MiB)
        alike("map", *trust, "--output=json", "{}")
        alike("check", *trust, "{}")
        alike("compare", *trust, "{}", str(base))
        alike("measure", *trust, "-O", "qcow2", "--output=json", "{}")
        alike("snapshot", *trust, "-c", "before", "{}")
        alike("snapshot", *trust, "-d", "before", "{}")
        alike("bitmap", *trust, "--add", "b0", "{}")
        alike("bitmap", *trust, "--remove", "b0", "{}")
        alike("commit", *trust, "-d", "{}")
        alike("rebase", *trust, "-b", "", "{}")
        alike("amend", "-o", "lazy_refcounts=on", "{}")
        alike("amend", "-o", "lazy_refcounts=off", "{}")
        alike("resize", "{}", "+1M")
        alike("convert", "-O", "raw", "{}", str(tmp_path / "out.raw"))
        alike("dd", "if={}", f"of={tmp_path / 'dd.raw'}", "bs=64k", "count=8", "skip=12")
        assert "drivers" in diskmill("drivers", "--help").stdout
        assert "nbd" in diskmill("drivers").stdout
        assert diskmill("bench", "-c", "20", "-w", "--pattern", "2", uri(sock)).returncode == 0
        for name in both:
            diskmill("create", "-f", "qcow2", name, "8M")
            diskmill("convert", "-O", "qcow2", raw, name)
        qemu_img("compare", "-f", "qcow2", "-F", "raw", both[0], raw)
        qemu_img("check", "-f", "qcow2", both[0])
        too_large = diskmill("convert", "-O", "raw", "--", raw, uri(sock), check=False)
        assert too_large.returncode == 0
        refused = diskmill("create", "-f", "raw", uri(sock), "64M", check=False)
        assert refused.returncode == 1
        assert "too few" in refused.stderr


def test_what_an_export_held_before_shows_nowhere_in_a_new_image(tmp_path: Path) -> None:
    remote, sock, raw = tmp_path / "remote", tmp_path / "sock", tmp_path / "disk.raw"
    raw.write_bytes(b"a" * 70_000 + bytes(2 * MiB) + b"b" * 512)
    for format in ("raw", "qcow2", "vmdk", "vdi"):
        remote.write_bytes(b"\xee" * (8 * MiB))
        with nbdkit(sock, "file", remote):
            diskmill("convert", "-O", format, raw, uri(sock))
            if format == "raw":
                assert remote.read_bytes()[: raw.stat().st_size] == raw.read_bytes()
            else:
                qemu_img("compare", "-f", format, "-F", "raw", uri(sock), raw)


def test_a_failed_output_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    remote, sock, raw = tmp_path / "remote", tmp_path / "sock", tmp_path / "disk.raw"
    raw.write_bytes(random.Random(1).randbytes(4 * MiB))
    qemu_img("convert", "-O", "qcow2", raw, remote)
    os.truncate(remote, 3 * MiB)
    with nbdkit(sock, "file", remote):
        failed = diskmill("convert", "-O", "qcow2", raw, uri(sock), check=False)
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1
    assert not any(remote.read_bytes()[:65536])


def test_an_export_as_backing_file_of_a_local_image(tmp_path: Path) -> None:
    base, sock, top = tmp_path / "base.raw", tmp_path / "sock", tmp_path / "top.qcow2"
    base.write_bytes(random.Random(2).randbytes(2 * MiB))
    with nbdkit(sock, "-r", "file", base):
        qemu_img("create", "-f", "qcow2", "-b", uri(sock), "-F", "raw", top)
        qemu_io(top, "write -P 3 0 64k", format="qcow2")
        refused = diskmill("compare", top, base, check=False)
        assert refused.returncode == 2
        assert "not trusted" in refused.stderr
        diskmill("convert", "--trust", "anything", "-O", "raw", top, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == bytes([3]) * 65536 + base.read_bytes()[65536:]


def test_a_server_killed_while_it_is_written_and_started_again_loses_nothing(tmp_path: Path) -> None:
    image, sock, raw = tmp_path / "disk.qcow2", tmp_path / "sock", tmp_path / "disk.raw"
    raw.write_bytes(random.Random(3).randbytes(24 * MiB))
    qemu_img("create", "-f", "qcow2", image, "24M")
    patience = "file.reconnect-delay=30,file.open-timeout=30"
    target = f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={sock},{patience}"
    result: list[Any] = []

    def copy() -> None:
        words = ("convert", "-n", "-r", "12M", "--target-image-opts", "-f", "raw")
        result.append(diskmill(*words, raw, target, check=False))

    thread = threading.Thread(target=copy)
    for _ in range(2):
        with qemu_nbd(sock, "-f", "qcow2", image) as server:
            if not thread.is_alive():
                thread.start()
            time.sleep(1.2)
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
    with qemu_nbd(sock, "-f", "qcow2", image):
        thread.join()
    assert result[0].returncode == 0, result[0].stderr
    assert_identical(raw, image, formats=("raw", "qcow2"))
