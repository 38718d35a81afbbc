"""The NBD client against servers of others: nbdkit with its filters, qemu-nbd."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import diskmill as library
import pytest
from diskmill.errors import DiskmillError, StorageError
from diskmill.opening.graph import storage_of
from diskmill_nbd import c_nbd as c
from diskmill_nbd.client import Client, Settings, list_exports
from diskmill_nbd.location import from_options, parse_location
from diskmill_nbd.storage import NbdStorage
from diskmill_nbd.tls import Credentials
from diskmill_nbd.transport import Transport
from nbd_servers import make_certificates, nbdkit, qemu_nbd, uri
from tools import assert_identical, diskmill, diskmill_json, qemu_img, qemu_img_json, qemu_io

MiB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk of 8 MiB, with data, holes, and an odd end."""
    path = tmp_path / "disk.raw"
    random.seed(14)
    with path.open("wb") as file:
        file.truncate(8 * MiB)
        for at in (0, 3 * MiB + 4096, 7 * MiB):
            file.seek(at)
            file.write(random.randbytes(300_032))
    return path


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "sock"


def connect(sock: Path, export: str = "", **settings: Any) -> Client:
    writable = settings.pop("writable", False)
    return Client(parse_location(uri(sock, export)), Settings(**settings), writable=writable)


SERVERS = {
    "file": (),
    "no structured replies": ("--no-sr",),
    "no multi-conn": ("--filter=multi-conn", "multi-conn-mode=disable"),
    "blocks of 4 KiB": ("--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error"),
    "requests of 64 KiB": (
        "--filter=blocksize-policy",
        "blocksize-preferred=4096",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
    ),
    "no zeroing": ("--filter=nozero",),
    "no extents": ("--filter=noextents",),
    "FUA by flushes": ("--filter=fua", "fuamode=emulate"),
}


def in_pieces(offset: int, buffer: bytearray, rng: random.Random) -> list[tuple[int, memoryview]]:
    """Parts of *buffer*, which begins at *offset*, in any order."""
    cuts = sorted({0, len(buffer), *(rng.randrange(len(buffer)) for _ in range(rng.randrange(4)))})
    pieces = [(offset + low, memoryview(buffer)[low:high]) for low, high in pairwise(cuts)]
    rng.shuffle(pieces)
    return pieces


@pytest.mark.parametrize("words", SERVERS.values(), ids=SERVERS)
def test_random_requests_of_two_threads_read_as_a_model_says(words: tuple[str, ...], disk: Path, sock: Path) -> None:
    model = bytearray(disk.read_bytes())
    filters = [word for word in words if word.startswith("-")]
    parameters = [word for word in words if not word.startswith("-")]
    with nbdkit(sock, *filters, "file", disk, *parameters), connect_closed(sock, writable=True) as client:

        def work(seed: int, low: int, high: int) -> None:
            rng = random.Random(seed)
            for _ in range(60):
                length = rng.choice((1, 511, 512, 5000, 65536, 300_000, 1_500_000))
                offset = rng.randrange(low, high - length)
                action = rng.choice("rrwwzf")
                if action == "r":
                    buffer = bytearray(length)
                    client.read_pieces(in_pieces(offset, buffer, rng))
                    assert buffer == model[offset : offset + length]
                elif action == "w":
                    data = bytearray(rng.randbytes(length))
                    client.write_pieces(in_pieces(offset, data, rng), fua=rng.random() < 0.2)
                    model[offset : offset + length] = data
                elif action == "z":
                    client.zero(offset, length, hole=rng.random() < 0.5)
                    model[offset : offset + length] = bytes(length)
                else:
                    client.flush()

        failures: list[BaseException] = []

        def guarded(*arguments: int) -> None:
            try:
                work(*arguments)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(n, n * 4 * MiB, (n + 1) * 4 * MiB)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        client.flush()
    assert disk.read_bytes() == model


class connect_closed:
    """A client that is closed in the end."""

    def __init__(self, sock: Path, export: str = "", **settings: Any) -> None:
        self.client = connect(sock, export, **settings)

    def __enter__(self) -> Client:
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()


def test_the_oldest_handshake_is_understood(disk: Path, sock: Path, tmp_path: Path) -> None:
    with nbdkit(sock, "-o", "file", disk):
        diskmill("convert", "-O", "raw", uri(sock), tmp_path / "out.raw")
        assert diskmill("info", uri(sock, "name"), check=False).returncode == 1
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()


def test_every_way_to_name_an_export_leads_there(disk: Path, sock: Path, tmp_path: Path) -> None:
    json = f'json:{{"driver": "nbd", "server": {{"type": "unix", "path": "{sock}"}}, "export": "a b/ü"}}'
    with qemu_nbd(sock, "-f", "raw", "-r", "-x", "a b/ü", disk):
        for name in (uri(sock, "a%20b/%C3%BC"), f"nbd:unix:{sock}:exportname=a b/ü", json):
            assert diskmill_json("info", name)["virtual-size"] == 8 * MiB
        options = f"driver=nbd,server.type=unix,server.path={sock},export=a b/ü"
        diskmill("convert", "--image-opts", "-O", "raw", f"driver=raw,file.{options.replace(',', ',file.')}", "out.raw",
                 cwd=tmp_path)  # fmt: skip
        refused = diskmill("info", uri(sock, "other"), check=False)
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1
        assert "no such export" in refused.stderr or "not present" in refused.stderr
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nbd://host", "nbd://host/"),
        ("nbd://host:99/x%2Fy", "nbd://host:99/x/y"),
        ("nbds://user:password@[::1]:7/e?tls-certificates=/secret", "nbds://[::1]:7/e"),
        ("nbd+unix:///e?socket=/a%20b", "nbd+unix:///e?socket=/a%20b"),
        ("nbd+vsock://2:7/e", "nbd+vsock://2:7/e"),
        ("nbd:host:99:exportname=a:b", "nbd://host:99/a%3Ab"),
        ("nbd:[::1]:99", "nbd://[::1]:99/"),
        ("nbd:unix:/s:exportname=", "nbd+unix:///?socket=/s"),
    ],
)
def test_names_are_shown_as_uris_without_secrets(name: str, expected: str) -> None:
    location = parse_location(name)
    assert location.uri == expected
    assert parse_location(location.uri).uri == expected


@pytest.mark.parametrize(
    "name",
    ["nbd:", "nbd:host", "nbd:unix:", "nbd://host:70000", "nbd+unix:///x", "nbd+unix://h/x?socket=/s", "nbd://h?x=1",
     "nbd://h/%00", "nbd+vsock://name", "nbd://[::1", "http://x"],
)  # fmt: skip
def test_names_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(DiskmillError):
        parse_location(name)


def test_options_that_contradict_each_other_are_refused() -> None:
    for options in ({}, {"server.type": "unix"}, {"server.type": "unix", "path": "/s", "host": "h"},
                    {"server.type": "fd"}, {"server.type": "inet", "server.path": "/s"}):  # fmt: skip
        with pytest.raises(DiskmillError):
            from_options(options)


def test_holes_are_neither_read_nor_sent(disk: Path, sock: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with nbdkit(sock, "--filter=log", "file", disk, f"logfile={log}"):
        diskmill("convert", "-O", "raw", uri(sock), tmp_path / "out.raw")
        entries = diskmill_json("map", uri(sock))
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()
    assert entries == [{**one, "offset": one["start"]} for one in qemu_map(disk)]
    reads = [line for line in log.read_text().splitlines() if " Read " in line]
    total = sum(int(line.split("count=")[1].split()[0], 16) for line in reads)
    assert total < 2 * MiB


def qemu_map(path: Path) -> list[dict[str, Any]]:
    return qemu_img_json("map", "-f", "raw", path)


@pytest.mark.parametrize("scheme", ["nbds+unix"])
def test_tls_is_used_where_it_is_asked_for_and_never_left_out(
    scheme: str, disk: Path, sock: Path, tmp_path: Path
) -> None:
    folder = make_certificates(tmp_path / "pki")
    other = make_certificates(tmp_path / "other")
    plain = tmp_path / "plain"
    creds = f"tls-creds-x509,id=t,endpoint=client,dir={folder}"
    tls = ("--tls=require", f"--tls-certificates={folder}", "--tls-verify-peer")
    with nbdkit(sock, *tls, "file", disk), nbdkit(plain, "file", disk):
        options = f"driver=nbd,server.type=unix,server.path={sock},tls-creds=t,tls-hostname=localhost"
        diskmill("convert", "--object", creds, "--image-opts", "-O", "raw", options, tmp_path / "out.raw")
        name = f"{uri(sock, scheme=scheme)}&tls-certificates={folder}"
        with_client = Client(parse_location(name))
        buffer = bytearray(3 * MiB)
        with_client.read_into(2 * MiB, buffer)
        with_client.close()
        for wrong in (
            parse_location(uri(sock)),  # a server that insists on TLS
            parse_location(f"{uri(plain, scheme=scheme)}&tls-certificates={folder}"),  # one that has none
            parse_location(f"{uri(sock, scheme=scheme)}&tls-certificates={other}"),  # a stranger's certificate
            parse_location(f"{uri(sock, scheme=scheme)}&tls-certificates={folder}&tls-hostname=elsewhere"),
        ):
            with pytest.raises(StorageError, match=r"TLS|certificate|handshake"):
                Client(wrong)
        with pytest.raises(DiskmillError, match="no-such"):
            Client(parse_location(uri(sock)), Settings(credentials=Credentials("/no-such")))
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()
    assert buffer == disk.read_bytes()[2 * MiB : 5 * MiB]


def test_dirty_bitmaps_and_allocation_depth_of_qemu_nbd(sock: Path, tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", base, "8M")
    qemu_io(base, "write -P 1 0 1M", format="qcow2")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    qemu_img("bitmap", "--add", top, "b0")
    qemu_io(top, "write -P 2 2M 128k", "write -P 3 5M 64k", format="qcow2")
    qemu_img("bitmap", "--disable", top, "b0")
    with qemu_nbd(sock, "-A", "-B", "b0", "-r", "-f", "qcow2", "-x", "e", top):
        for context in ("qemu:dirty-bitmap:b0", c.ALLOCATION_DEPTH):
            name = f"driver=nbd,server.type=unix,server.path={sock},export=e,x-dirty-bitmap={context}"
            assert diskmill_json("map", "--image-opts", name) == qemu_img_json("map", "--image-opts", name)
            diskmill("compare", "--image-opts", name, f"driver=qcow2,file.filename={top}")
        other, copied = tmp_path / "other.qcow2", tmp_path / "copied.qcow2"
        diskmill("create", "-f", "qcow2", other, "8M")
        diskmill("bitmap", "--add", "--merge", "b0", "-b", uri(sock, "e"), "-F", "raw", other, "b1")
        diskmill("convert", "--bitmaps", "-f", "raw", "-O", "qcow2", uri(sock, "e"), copied)
        missing = diskmill("bitmap", "--merge", "b9", "-b", uri(sock, "e"), "-F", "raw", other, "b1", check=False)
        assert (missing.returncode, "b9" in missing.stderr) == (1, True)
        ((export, names),) = list_exports(parse_location(uri(sock)))
        assert export.name == "e"
        assert set(names) == {c.BASE_ALLOCATION, c.ALLOCATION_DEPTH, c.DIRTY_BITMAP + "b0"}
        with connect_closed(
            sock, "e", contexts=(c.BASE_ALLOCATION, c.ALLOCATION_DEPTH, "qemu:dirty-bitmap:b0")
        ) as client:
            dirty = list(client.statuses("qemu:dirty-bitmap:b0", 0, 8 * MiB))
            depth = list(client.statuses(c.ALLOCATION_DEPTH, 0, 8 * MiB))
            assert sum(length for length, _ in client.statuses(c.BASE_ALLOCATION, 100, 7 * MiB)) == 7 * MiB
        with library.open(uri(sock, "e")) as image:
            storage = storage_of(image)
            assert isinstance(storage, NbdStorage)
            (bitmap,) = storage.bitmaps()
            assert bitmap.name == "b0"
            assert list(bitmap.ranges()) == [(2 * MiB, 128 * 1024), (5 * MiB, 64 * 1024)]
    for image, name in ((other, "b1"), (copied, "b0")):
        context = f"qemu:dirty-bitmap:{name}"
        served = qemu_nbd(sock, "-B", name, "-r", "-f", "qcow2", image)
        with served, connect_closed(sock, contexts=(context,)) as client:
            assert list(client.statuses(context, 0, 8 * MiB)) == dirty
    K = 1024
    assert dirty == [(2048 * K, 0), (128 * K, 1), (2944 * K, 0), (64 * K, 1), (3008 * K, 0)]
    assert depth == [(1024 * K, 2), (1024 * K, 0), (128 * K, 1), (2944 * K, 0), (64 * K, 1), (3008 * K, 0)]


def test_errors_are_errors_or_with_retries_are_overcome(disk: Path, sock: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    name = f"driver=nbd,server.type=unix,server.path={sock}"
    with nbdkit(sock, "--filter=error", "file", disk, "error-pread-rate=100%"):
        failed = diskmill("convert", "--image-opts", "-O", "raw", f"{name},retries=1", out, check=False)
        assert failed.returncode == 1
        assert len(failed.stderr.splitlines()) == 1
        assert "read at offset" in failed.stderr
        assert not out.exists()
    whole = tmp_path / "whole.raw"
    with nbdkit(sock, "pattern", "64M"):
        qemu_img("convert", "-f", "raw", "-O", "raw", uri(sock), whole)
    with nbdkit(sock, "--filter=error", "pattern", "64M", "error-rate=10%"):
        failed = diskmill("convert", "--image-opts", "-O", "raw", name, out, check=False)
        assert (failed.returncode, len(failed.stderr.splitlines()), out.exists()) == (1, 1, False)
        diskmill("convert", "--image-opts", "-O", "raw", f"{name},retries=30", out)
        diskmill("compare", "--image-opts", f"{name},retries=30", f"driver=raw,file.filename={whole}")
    assert out.read_bytes() == whole.read_bytes()


def test_a_stalled_server_is_an_error_after_the_time_limit(disk: Path, sock: Path) -> None:
    with nbdkit(sock, "--filter=delay", "file", disk, "rdelay=30"):
        began = time.monotonic()
        with connect_closed(sock, timeout=1) as client, pytest.raises(StorageError, match="timed out"):
            client.read_into(0, bytearray(512))
        assert time.monotonic() - began < 5


def test_a_server_that_trickles_is_an_error_after_the_time_limit(sock: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(sock))
    listener.listen()

    def trickle() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.sendall(c.GREETING.pack(c.INIT_PASSWD, c.CLISERV_MAGIC) + c.OLDSTYLE.pack(MiB, 1) + bytes(124))
            cookie = peer.recv(c.REQUEST.size, socket.MSG_WAITALL)[8:16]
            peer.sendall(c.SIMPLE_REPLY.pack(c.NBD_SIMPLE_REPLY_MAGIC, 0, int.from_bytes(cookie, "big")))
            for _ in range(200):
                peer.sendall(b"x")
                time.sleep(0.1)

    threading.Thread(target=trickle, daemon=True).start()
    began = time.monotonic()
    with connect_closed(sock, timeout=1) as client, pytest.raises(StorageError, match="timed out"):
        client.read_into(0, bytearray(4096))
    assert time.monotonic() - began < 5
    listener.close()


def test_a_large_reply_over_a_slow_line_is_no_stall() -> None:
    ours, theirs = socket.socketpair()
    said = random.randbytes(3 * MiB // 2)

    def send() -> None:
        for at in range(0, len(said), 300 * 1024):
            theirs.sendall(said[at : at + 300 * 1024])
            time.sleep(0.1)

    threading.Thread(target=send, daemon=True).start()
    got = bytearray(len(said))
    with ours, theirs:
        assert Transport(ours, "slow", 0.3).receive_into(got) == len(said)
    assert got == said


def test_interrupting_a_client_ends_what_waits(disk: Path, sock: Path) -> None:
    with nbdkit(sock, "--filter=delay", "file", disk, "rdelay=30"), connect_closed(sock) as client:
        threading.Timer(0.3, client.interrupt).start()
        began = time.monotonic()
        with pytest.raises(StorageError):
            client.read_into(0, bytearray(512))
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("writing", [False, True], ids=["reading", "writing"])
def test_an_interrupt_ends_a_command_within_a_second(writing: bool, disk: Path, sock: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    delay = "delay-write=30" if writing else "rdelay=30"
    names = (disk, uri(sock)) if writing else (uri(sock), out)
    format = "qcow2" if writing else "raw"
    command = [sys.executable, "-m", "diskmill_cli", "convert", "-f", "raw", "-O", format, *map(str, names)]
    copy = tmp_path / "copy.raw"
    copy.write_bytes(disk.read_bytes())
    with nbdkit(sock, "--filter=delay", "file", copy, delay):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
            while writing and any(copy.read_bytes()[:65536]) and child.poll() is None:
                time.sleep(0.01)  # until it has begun
            time.sleep(1.2)
            assert child.poll() is None
            child.send_signal(signal.SIGINT)
            began = time.monotonic()
            _, told = child.communicate(timeout=20)
        assert time.monotonic() - began < 1
    assert (child.returncode, len(told.splitlines())) == (130, 1)
    assert not out.exists()
    if writing:
        assert not any(copy.read_bytes()[:65536])


def test_a_lost_server_without_reconnecting_is_one_line_and_leaves_nothing(sock: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    with nbdkit(sock, "--filter=delay", "pattern", "64M", "rdelay=50ms") as server:
        threading.Timer(0.5, os.kill, (server.pid, signal.SIGKILL)).start()
        failed = diskmill("convert", "-O", "raw", uri(sock), out, check=False)
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1
    assert not out.exists()


def test_a_server_that_comes_back_is_read_on(sock: Path, tmp_path: Path) -> None:
    out, whole, log = tmp_path / "out.raw", tmp_path / "whole.raw", tmp_path / "log"
    words = ("--filter=log", "--filter=delay", "pattern", "32M", "rdelay=20ms", f"logfile={log}")
    name = f"driver=nbd,server.type=unix,server.path={sock},reconnect-delay=30"
    result: list[Any] = []

    def copy() -> None:
        result.append(diskmill("convert", "--image-opts", "-O", "raw", name, out, check=False))

    thread = threading.Thread(target=copy)
    with nbdkit(sock, *words) as server:
        thread.start()
        while log.read_text().count(" Read ") < 5:
            time.sleep(0.01)
        server.kill()
        server.wait()
    time.sleep(0.3)
    with nbdkit(sock, *words):
        thread.join()
        qemu_img("convert", "-f", "raw", "-O", "raw", uri(sock), whole)
    assert result[0].returncode == 0, result[0].stderr
    assert out.read_bytes() == whole.read_bytes()


def test_what_a_killed_server_had_acknowledged_and_not_kept_is_written_again(sock: Path, tmp_path: Path) -> None:
    """qemu-nbd keeps qcow2's tables in memory: killed, it forgets where it has put what it acknowledged."""
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", image, "16M")
    data = random.Random(3).randbytes(6 * MiB)
    with qemu_nbd(sock, "-f", "qcow2", image) as server:
        client = connect(sock, writable=True, reconnect_delay=20)
        client.write(0, data[: 3 * MiB])
        client.zero(8 * MiB, MiB)
        server.kill()
        server.wait()
    with qemu_nbd(sock, "-f", "qcow2", image):
        client.write(3 * MiB, data[3 * MiB :])
        client.flush()
        client.close()
    raw = tmp_path / "disk.raw"
    qemu_img("convert", "-O", "raw", image, raw)
    assert raw.read_bytes()[: 6 * MiB] == data


def test_convert_into_an_export_overwrites_what_was_there(disk: Path, sock: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"\xaa" * (8 * MiB))
    with nbdkit(sock, "file", target):
        diskmill("convert", "-n", "-O", "raw", disk, uri(sock))
        diskmill("compare", disk, uri(sock))
    assert target.read_bytes() == disk.read_bytes()
    told = tmp_path / "told"
    with nbdkit(sock, "--filter=stats", "memory", "8M", f"statsfile={told}"):
        diskmill("convert", "-n", "-O", "raw", disk, uri(sock))
        diskmill("compare", disk, uri(sock))
    assert "zero:" not in told.read_text()  # its status tells that there is nothing but zeros before
    smaller = tmp_path / "smaller.raw"
    smaller.write_bytes(b"\xaa" * MiB)
    with nbdkit(sock, "file", smaller):
        refused = diskmill("convert", "-n", "-O", "raw", disk, uri(sock), check=False)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1


def test_read_only_exports_are_not_written(disk: Path, sock: Path) -> None:
    before = disk.read_bytes()
    with nbdkit(sock, "-r", "file", disk):
        refused = diskmill("convert", "-n", "-O", "raw", disk, uri(sock), check=False)
    assert "reading only" in refused.stderr
    assert disk.read_bytes() == before


def test_a_qcow2_inside_an_export(disk: Path, sock: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", disk, image)
    with nbdkit(sock, "file", image):
        name = uri(sock)
        assert diskmill_json("info", name)["format"] == "qcow2"
        diskmill("check", name)
        diskmill("compare", name, disk)
        diskmill("measure", "-O", "raw", name)
        diskmill("dd", f"if={name}", f"of={tmp_path / 'dd.raw'}", "bs=1M")
        diskmill("convert", "-O", "qcow2", "-c", name, tmp_path / "out.qcow2")
    assert (tmp_path / "dd.raw").read_bytes() == disk.read_bytes()
    assert_identical(tmp_path / "out.qcow2", disk)
