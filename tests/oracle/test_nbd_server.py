"""``diskmill serve`` against clients of others: libnbd's tools, qemu's, fio; and against our own."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from diskmill import open as open_disk
from diskmill import serve as export_disk
from diskmill.contract.extents import Kind
from diskmill.errors import DiskmillError, UsageError
from diskmill_nbd.ahead import Job, Readers
from diskmill_nbd.authorization import authorization
from diskmill_nbd.client import Client, Settings, list_exports
from diskmill_nbd.export import PIECE, Export
from diskmill_nbd.location import parse_location
from diskmill_nbd.tls import Credentials
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from nbd_servers import make_certificates, nbdkit, qemu_nbd, serve, uri
from tools import assert_clean, assert_identical, diskmill, qemu_img, qemu_io, run, tool

MiB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk of 8 MiB, with data, zeros, holes, and an odd end."""
    path = tmp_path / "disk.raw"
    random.seed(14)
    with path.open("wb") as file:
        file.truncate(8 * MiB + 512)
        for at in (0, 3 * MiB + 4096, 7 * MiB):
            file.seek(at)
            file.write(random.randbytes(300_032) + bytes(5000))
    return path


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "sock"


FORMATS = {
    "raw": ("raw", ()),
    "qcow2": ("qcow2", ()),
    "compressed qcow2": ("qcow2", ("-c", "-o", "compression_type=zstd")),
    "small clusters": ("qcow2", ("-o", "cluster_size=4k")),
    "vmdk": ("vmdk", ("-o", "subformat=streamOptimized")),
    "vhdx": ("vhdx", ()),
}


@pytest.fixture(params=FORMATS)
def image(request: pytest.FixtureRequest, disk: Path, tmp_path: Path) -> tuple[Path, str]:
    """The disk in a format."""
    format, options = FORMATS[request.param]
    path = tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", format, *options, disk, path)
    return path, format


def test_images_of_every_kind_read_through_every_client(image: tuple[Path, str], disk: Path, tmp_path: Path) -> None:
    path, format = image
    with export_disk(str(path), format=format) as server:
        out = tmp_path / "out.raw"
        run(tool("nbdcopy"), server.uri, out)
        size = disk.stat().st_size
        assert out.read_bytes()[:size] == disk.read_bytes()
        qemu_img("compare", "-f", "raw", "-F", "raw", disk, server.uri)
        assert diskmill("compare", server.uri, disk).returncode == 0
        told = json.loads(run(tool("nbdinfo"), "--json", server.uri).stdout)["exports"][0]
        assert told["export-size"] >= size
        assert told["is_read_only"] and told["can_multi_conn"] and told["can_df"]
        mapped = json.loads(run(tool("nbdinfo"), "--map", "--json", server.uri).stdout)
        assert sum(one["length"] for one in mapped) == told["export-size"]
        content = disk.read_bytes()
        for one in mapped:
            if one["type"] == 3:
                assert not any(content[one["offset"] : one["offset"] + one["length"]])
        assert sum(one["length"] for one in mapped if one["type"] == 0) < 4 * MiB


_PYTHON = """
import sys, nbd, random
h = nbd.NBD()
h.add_meta_context("base:allocation")
if sys.argv[2] == "simple":
    h.set_request_structured_replies(False)
h.connect_uri(sys.argv[1])
size = h.get_size()
model = bytearray(open(sys.argv[3], "rb").read())
rng = random.Random(7)
for _ in range(150):
    length = rng.choice((1, 512, 4097, 65536, 300001))
    offset = rng.randrange(size - length)
    what = rng.choice("rrrwzt")
    if what == "r":
        if h.can_df() and rng.random() < .5:
            got = h.pread_structured(length, offset, lambda *chunk: None, nbd.CMD_FLAG_DF)
        else:
            got = h.pread(length, offset)
        assert got == model[offset:offset + length], (offset, length)
    elif what == "w":
        data = rng.randbytes(length)
        h.pwrite(data, offset, nbd.CMD_FLAG_FUA if rng.random() < .2 else 0)
        model[offset:offset + length] = data
    elif what == "z":
        h.zero(length, offset, nbd.CMD_FLAG_NO_HOLE if rng.random() < .5 else 0)
        model[offset:offset + length] = bytes(length)
    elif what == "t":
        h.cache(length, offset)
h.flush()
for bad in (lambda: h.pread(512, size - 1), lambda: h.pwrite(b"x", size), lambda: h.zero(size, 1)):
    h.set_strict_mode(0)
    try:
        bad()
    except nbd.Error as error:
        assert error.errno in ("EINVAL", "ENOSPC"), error
    else:
        raise SystemExit("no error")
assert h.pread(512, 0) == model[:512]
h.shutdown()
open(sys.argv[3], "wb").write(model)
"""


@pytest.mark.parametrize("replies", ["structured", "simple"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_libnbd_reads_and_writes(replies: str, format: str, disk: Path, sock: Path, tmp_path: Path) -> None:
    tool("/usr/lib/python3/dist-packages/nbd.py")
    path = tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", format, disk, path)
    with serve(sock, "--writable", "-f", format, path):
        run("/usr/bin/python3", "-c", _PYTHON, uri(sock), replies, disk)
    assert_identical(disk, path, formats=("raw", format))
    if format == "qcow2":
        assert_clean(path)


_MANY = """
import sys, nbd, random
uri, path, low, high, leave = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "leave"
h = nbd.NBD()
h.connect_uri(uri)
model, rng, at, asked = open(path, "rb").read(), random.Random(3), 0, []
while at < len(model):
    length = min(rng.choice((512, 4096, 70000, 262144, 300032)), len(model) - at)
    if rng.random() < .9:
        buffer = nbd.Buffer(length)
        asked.append((at, length, buffer, h.aio_pread(buffer, at)))
    else:
        h.aio_cache(length, at)
    at += length
if leave:
    sys.exit()
for at, length, buffer, cookie in asked:
    while True:
        try:
            if h.aio_command_completed(cookie):
                assert not (at < high and at + length > low), ("no error", at, length)
                assert buffer.to_bytearray() == model[at : at + length], (at, length)
                break
        except nbd.Error as error:
            assert at < high and at + length > low and error.errno == "EIO", (at, length, error)
            break
        h.poll(-1)
h.shutdown()
"""


@pytest.mark.parametrize("cluster", [512, 65536])
def test_requests_of_compressed_data_that_come_together(cluster: int, tmp_path: Path) -> None:
    """What is decoded before its turn is what was asked for: zeros too short for a chunk, failures, and no more than
    one client's trouble where it leaves.
    """
    tool("/usr/lib/python3/dist-packages/nbd.py")
    disk, path = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    chance = random.Random(5)
    words = [chance.randbytes(64) for _ in range(50)]
    blocks = (bytes(512) if chance.random() < 0.2 else b"".join(chance.choices(words, k=8)) for _ in range(6144))
    disk.write_bytes(b"".join(blocks))
    options = ("-c", "-o", f"compression_type=zstd,cluster_size={cluster}")
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, disk, path)
    with open_disk(str(path), "qcow2") as image:
        extent = next(one for one in image.extents(MiB, image.size - MiB) if one.kind is Kind.ENCODED)
    with path.open("r+b") as file:
        file.seek(extent.offset)
        file.write(b"\xff" * 16)
    damaged = (str(extent.start), str(extent.end))
    with export_disk(str(path), format="qcow2") as server:
        for manner in ("stay", "leave", "stay"):
            run("/usr/bin/python3", "-c", _MANY, server.uri, disk, *damaged, manner)


def test_buffers_that_clients_share_are_bounded_and_come_back() -> None:
    """A client that leaves amid its requests takes none with it, and one whose buffer is being filled lends it to
    nobody else.
    """
    readers, began, goes_on = Readers(), threading.Event(), threading.Event()

    class Slow(Export):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            began.set()
            goes_on.wait(20)

    try:
        readers.count = 1
        jobs = []
        while (memory := readers.lend()) is not None:
            jobs.append(Job(Slow(), 0, 512, memory))
        assert len(jobs) * PIECE <= 16 * MiB
        readers.put(jobs)
        assert began.wait(20)
        readers.take_back(*jobs)
        again = []
        while (memory := readers.lend()) is not None:
            again.append(memory)
        assert len(again) == len(jobs)
        assert all(memory is not jobs[0].memory for memory in again)
    finally:
        goes_on.set()
        readers.close()


def test_qemu_and_nbdcopy_and_fio_write(disk: Path, sock: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, str(disk.stat().st_size))
    with serve(sock, "-w", path):
        run(tool("nbdcopy"), disk, uri(sock))
    assert_identical(disk, path, formats=("raw", "qcow2"))
    with serve(sock, "-w", path):
        qemu_io(uri(sock), "write -P 9 1M 1M", "write -z -u 2M 1M", "discard 3M 1M", "flush", "write -f -P 8 4M 64k",
                "read -P 9 1M 1M", "read -P 0 2M 1M", format="raw")  # fmt: skip
        qemu_img("convert", "-n", "-f", "raw", "-O", "raw", disk, uri(sock))
    assert_identical(disk, path, formats=("raw", "qcow2"))
    with serve(sock, "-w", path):
        run(tool("fio"), "--name=x", "--ioengine=nbd", f"--uri={uri(sock)}", "--rw=randrw", "--bs=4k", "--size=4M",
            "--iodepth=8", "--verify=crc32c", "--verify_backlog=16", cwd=tmp_path)  # fmt: skip
    assert_clean(path)


def test_readers_are_not_let_write(disk: Path, sock: Path) -> None:
    before = disk.read_bytes()
    with serve(sock, disk):
        assert qemu_io(uri(sock), "write 0 512", format="raw", check=False).returncode
        assert diskmill("convert", "-n", "-O", "raw", disk, uri(sock), check=False).returncode == 1
    assert disk.read_bytes() == before


def test_what_is_written_to_a_temporary_export_is_forgotten(disk: Path, sock: Path) -> None:
    before = disk.read_bytes()
    with serve(sock, "-s", "-f", "raw", disk):
        qemu_io(uri(sock), "write -P 3 0 1M", "flush", "read -P 3 0 1M", format="raw")
        qemu_io(uri(sock), "read -P 3 0 1M", format="raw")
    assert disk.read_bytes() == before


def test_several_exports_have_names_sizes_descriptions_and_contexts(disk: Path, sock: Path, tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("convert", "-O", "qcow2", disk, base)
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    qemu_img("bitmap", "--add", top, "b0")
    qemu_io(top, "write -P 2 2M 128k", format="qcow2")
    with serve(sock, "-A", "-B", "b0", "-x", "ü", "-D", "the disk", top):
        found = json.loads(run(tool("nbdinfo"), "--list", "--json", uri(sock)).stdout)["exports"]
        assert [(one["export-name"], one["description"]) for one in found] == [("ü", "the disk")]
        assert set(found[0]["contexts"]) == {"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"}
        name = f"nbd+unix:///%C3%BC?socket={sock}"
        maps = {
            context: json.loads(run(tool("nbdinfo"), "--json", f"--map={context}", name).stdout)
            for context in ("qemu:allocation-depth", "qemu:dirty-bitmap:b0")
        }
        told = run(sys.executable, "-m", "diskmill_cli", "serve", "-L", "-k", sock).stdout
        theirs = run(tool("qemu-nbd"), "-L", "-k", sock).stdout
    with qemu_nbd(sock, "-A", "-B", "b0", "-r", "-x", "ü", "-f", "qcow2", top):
        for context, ours in maps.items():
            assert ours == json.loads(run(tool("nbdinfo"), "--json", f"--map={context}", name).stdout), context
    assert [line for line in told.splitlines() if "opt block" not in line] == [
        line for line in theirs.splitlines() if "opt block" not in line
    ]
    with serve(sock, base, disk):
        found = list_exports(parse_location(uri(sock)))
    assert [(one.name, one.size) for one, _ in found] == [
        ("base.qcow2", disk.stat().st_size),
        ("disk.raw", disk.stat().st_size),
    ]


def test_snapshots_and_windows(disk: Path, sock: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", disk, path)
    qemu_img("snapshot", "-c", "before", path)
    qemu_io(path, "write -P 1 0 2M", format="qcow2")
    with serve(sock, "-l", "before", path):
        qemu_img("compare", "-f", "raw", "-F", "raw", disk, uri(sock))
    with serve(sock, "-o", "1M", disk):
        run(tool("nbdcopy"), uri(sock), tmp_path / "tail.raw")
    assert (tmp_path / "tail.raw").read_bytes() == disk.read_bytes()[MiB:]


@pytest.mark.parametrize("label", ["mbr", "gpt"])
def test_partitions(label: str, sock: Path, tmp_path: Path) -> None:
    """nbdkit lays them out: with MBR, the fourth and later ones are logical, from number 5 on."""
    image, out = tmp_path / "disk.qcow2", tmp_path / "out.raw"
    files = [tmp_path / f"p{number}" for number in range(5)]
    for number, file in enumerate(files):
        file.write_bytes(random.Random(number).randbytes(65536 * (number + 1)))
    with nbdkit(sock, "partitioning", *files, f"partition-type={label}"):
        qemu_img("convert", "-O", "qcow2", uri(sock), image)
    for number, file in zip((1, 2, 3, 5, 6) if label == "mbr" else (1, 2, 3, 4, 5), files, strict=True):
        diskmill("serve", "-P", str(number), image, "--", tool("nbdcopy"), "{uri}", out)
        assert out.read_bytes() == file.read_bytes(), number
    for number in ("7", "4") if label == "mbr" else ("6", "200"):
        missing = diskmill("serve", "-P", number, image, "--", "true", check=False)
        assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)


def test_a_disk_that_becomes_longer_is_seen_by_those_who_come_then(disk: Path, sock: Path) -> None:
    before = disk.stat().st_size
    with serve(sock, "-f", "raw", disk):
        first = Client(parse_location(uri(sock)))
        with disk.open("ab") as file:
            file.write(b"x" * MiB)
        second = Client(parse_location(uri(sock)))
        buffer = bytearray(MiB)
        second.read_into(before, buffer)
        first.read_into(0, bytearray(MiB))
        sizes = first.size, second.size
        first.close()
        second.close()
    assert sizes == (before, before + MiB)
    assert buffer == b"x" * MiB


@pytest.mark.parametrize(("compat", "fast"), [("1.1", True), ("0.10", False)])
def test_fast_zeroing_is_fast_or_refused(compat: str, fast: bool, sock: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"compat={compat}", path, "4M")
    qemu_io(path, "write -P 1 0 4M", format="qcow2")
    with serve(sock, "-w", path):
        client = Client(parse_location(uri(sock)), writable=True)
        with pytest.raises(DiskmillError, match="fast"):
            client.zero(1000, 70_000, fast=True)
        for hole in (True, False):
            if fast:
                client.zero(MiB * hole, MiB, hole=hole, fast=True)
            elif not hole:
                with pytest.raises(DiskmillError, match="fast"):
                    client.zero(0, MiB, hole=hole, fast=True)
        client.close()
    assert_clean(path)
    qemu_io(path, *(("read -P 0 0 2M", "read -P 1 2M 2M") if fast else ("read -P 1 0 4M",)), format="qcow2")


def test_lists_say_who_may_come_in(tmp_path: Path) -> None:
    name = (("C", "GB"), ("O", "Example, Ltd"), ("CN", "laptop"))
    path = tmp_path / "list.json"
    rules = [{"match": "*CN=laptop*", "policy": "allow", "format": "glob"}]
    path.write_text(json.dumps({"policy": "deny", "rules": rules}))
    cases = (
        ({"qom-type": "authz-simple", "identity": r"CN=laptop,O=Example\, Ltd,C=GB"}, True),
        ({"qom-type": "authz-simple", "identity": "CN=laptop"}, False),
        ({"qom-type": "authz-list"}, False),
        ({"qom-type": "authz-list", "policy": "allow"}, True),
        ({"qom-type": "authz-list", "rules.0.match": "CN=lap*,*C=GB", "rules.0.policy": "allow",
          "rules.0.format": "glob"}, True),
        ({"qom-type": "authz-list", "policy": "allow", "rules.0.match": "*CN=l*", "rules.0.policy": "deny",
          "rules.0.format": "glob"}, False),
        ({"qom-type": "authz-list-file", "filename": str(path)}, True),
    )  # fmt: skip
    for properties, expected in cases:
        assert authorization(properties)(name) is expected, properties
    stranger = (("CN", "x,O=Example"),)
    assert not authorization({"qom-type": "authz-simple", "identity": "CN=x,O=Example"})(stranger)
    for wrong in (
        {"qom-type": "authz-pam"},
        {"qom-type": "authz-list", "policy": "maybe"},
        {"qom-type": "authz-list", "rules.1.match": "x"},
        {"qom-type": "authz-list", "rules.0.match": "x"},
    ):
        with pytest.raises(UsageError):
            authorization(wrong)


def test_tls_and_who_may_come_in(disk: Path, sock: Path, tmp_path: Path) -> None:
    folder, other = make_certificates(tmp_path / "pki"), make_certificates(tmp_path / "other")
    creds = f"tls-creds-x509,id=t,endpoint=server,dir={folder},verify-peer=on"
    words = ("--object", creds, "--tls-creds", "t", "--object")
    client = f"tls-creds-x509,id=c,endpoint=client,dir={folder}"
    target = f"driver=nbd,server.type=unix,server.path={sock},tls-creds=c,tls-hostname=localhost"
    with serve(sock, *words, "authz-simple,id=a,identity=CN=tester", "--tls-authz", "a", disk):
        qemu_img("compare", "--object", client, "--image-opts", f"driver=raw,file.{target.replace(',', ',file.')}",
                 f"driver=raw,file.driver=file,file.filename={disk}")  # fmt: skip
        diskmill("compare", "--object", client, "--image-opts", target, f"driver=file,filename={disk}")
        assert run(tool("nbdinfo"), uri(sock), check=False).returncode
        with pytest.raises(Exception, match=r"TLS|connection|certificate"):
            Client(parse_location(uri(sock)), Settings(credentials=Credentials(str(other)), tls_hostname="localhost"))
    with (
        serve(sock, *words, "authz-simple,id=a,identity=CN=somebody", "--tls-authz", "a", disk),
        pytest.raises(Exception, match=r"TLS|connection"),
    ):
        Client(parse_location(uri(sock)), Settings(credentials=Credentials(str(folder)), tls_hostname="localhost"))


def test_a_command_runs_while_it_serves_and_gives_its_status(disk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    diskmill("serve", disk, "--", tool("nbdcopy"), "{uri}", out)
    assert out.read_bytes() == disk.read_bytes()
    assert diskmill("serve", disk, "--", "sh", "-c", "test -S $0 && exit 7", "{socket}", check=False).returncode == 7
    assert diskmill("serve", disk, "--exit-with", "sh -c 'test -S {socket} && exit 7'", check=False).returncode == 7
    missing = diskmill("serve", disk, "--", "/no/such/program", check=False)
    assert missing.returncode == 1
    assert len(missing.stderr.splitlines()) == 1


def test_it_ends_with_the_last_client_and_takes_its_socket_away(disk: Path, sock: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    diskmill("serve", "--fork", "--pid-file", pid, "-k", sock, disk)
    number = int(pid.read_text())
    run(tool("nbdinfo"), "--size", uri(sock))
    end = time.monotonic() + 10
    while sock.exists() or pid.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    while Path(f"/proc/{number}").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_systemd_gives_it_its_socket(disk: Path, sock: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
        listener.listen()
        script = 'exec 3<&0; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" serve "$1"'
        server = subprocess.Popen(
            ["/bin/bash", "-c", script, Path(sys.executable).with_name("diskmill"), disk], stdin=listener.fileno()
        )
    try:
        assert run(tool("nbdinfo"), "--size", uri(sock)).stdout.strip() == str(disk.stat().st_size)
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.wait()


def test_terminating_it_flushes_and_leaves_a_clean_image(sock: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "8M")
    with serve(sock, "-w", path) as server:
        client = Client(parse_location(uri(sock)), writable=True)
        client.write(MiB, b"kept" * 1000)
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        client.close()
    assert not sock.exists()
    assert_clean(path)
    qemu_io(path, "read -P 0x6b 1M 1", format="qcow2")


def test_clients_beyond_the_limit_wait_their_turn(disk: Path) -> None:
    with export_disk(str(disk), max_clients=1) as server:
        server.server.handshake_limit = 1
        first = Client(parse_location(server.uri))
        with pytest.raises(Exception, match="as many clients"):
            Client(parse_location(server.uri))
        first.close()
        Client(parse_location(server.uri)).close()


def test_clients_that_stall_lie_or_vanish_cost_the_others_nothing(sock: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "64M")
    with serve(sock, "-w", "--handshake-limit", "2", "-e", "40", path) as server:
        held: list[socket.socket] = []
        for index in range(60):  # amid the handshake, as far as they get
            one = socket.socket(socket.AF_UNIX)
            one.connect(str(sock))
            one.sendall(b"\0\0\0\3IHAVEOPT"[: index % 12])
            held.append(one)
        good = Client(parse_location(uri(sock)), Settings(timeout=20), writable=True)
        header = bytes.fromhex("25609513") + bytes(3)
        for index in range(20):
            one = raw_client(sock)
            if index % 4 == 0:  # a write whose data does not come
                one.sendall(header + b"\1" + bytes(8) + bytes(8) + (MiB).to_bytes(4, "big") + b"x" * 70_000)
            elif index % 4 == 1:  # reads whose replies are not taken
                for _ in range(30):
                    one.sendall(header + b"\0" + bytes(16) + (MiB).to_bytes(4, "big"))
            elif index % 4 == 2:  # a length beyond all limits
                one.sendall(header + b"\1" + bytes(16) + b"\xff\xff\xff\xff")
            else:
                one.close()
                continue
            held.append(one)
        data = random.Random(1).randbytes(4 * MiB)
        began = time.monotonic()
        good.write(8 * MiB, data)
        good.flush()
        buffer = bytearray(len(data))
        good.read_into(8 * MiB, buffer)
        assert buffer == data
        assert time.monotonic() - began < 15
        good.close()
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0])
        assert peak < 128 * 1024
        for one in held:
            one.close()
    assert_clean(path)


def raw_client(sock: Path) -> socket.socket:
    """A connection in its transmission phase, without structured replies."""
    one = socket.socket(socket.AF_UNIX)
    one.connect(str(sock))
    one.settimeout(20)
    one.recv(18, socket.MSG_WAITALL)
    one.sendall(b"\0\0\0\3" + b"IHAVEOPT" + b"\0\0\0\1" + b"\0\0\0\0")
    assert len(one.recv(10, socket.MSG_WAITALL)) == 10
    return one


def test_a_file_that_becomes_shorter_is_an_error_and_not_zeros(disk: Path, tmp_path: Path) -> None:
    with export_disk(str(disk), format="raw") as server:
        client = Client(parse_location(server.uri))
        os.truncate(disk, MiB)
        with pytest.raises(Exception, match=r"read at offset|ends"):
            client.read_into(7 * MiB, bytearray(200_000))
        client.close()


class TwoClients(RuleBasedStateMachine):
    """Random requests of two clients of one qcow2 export, against a model."""

    SIZE = 2 * MiB + 512

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "disk.qcow2"
        base = Path(self.folder.name) / "base.raw"
        self.model = bytearray(random.Random(5).randbytes(MiB) + bytes(self.SIZE - MiB))
        base.write_bytes(self.model)
        qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", self.path)
        self.serving: Any = export_disk(str(self.path), format="qcow2", writable=True)
        self.serving.start()
        location = parse_location(self.serving.uri)
        self.clients = [Client(location, writable=True) for _ in range(2)]

    ranges = st.tuples(st.integers(0, SIZE - 1), st.sampled_from((1, 512, 4096, 65536, 200_000))).map(
        lambda pair: (pair[0], min(pair[1], TwoClients.SIZE - pair[0]))
    )

    @rule(who=st.integers(0, 1), where=ranges, seed=st.integers(0, 255), fua=st.booleans())
    def write(self, who: int, where: tuple[int, int], seed: int, fua: bool) -> None:
        offset, length = where
        data = random.Random(seed).randbytes(length)
        self.clients[who].write(offset, data, fua=fua)
        self.model[offset : offset + length] = data

    @rule(who=st.integers(0, 1), where=ranges, hole=st.booleans())
    def zero(self, who: int, where: tuple[int, int], hole: bool) -> None:
        offset, length = where
        self.clients[who].zero(offset, length, hole=hole)
        self.model[offset : offset + length] = bytes(length)

    @rule(who=st.integers(0, 1), where=ranges)
    def trim_and_write(self, who: int, where: tuple[int, int]) -> None:
        offset, length = where
        self.clients[who].trim(offset, length)
        self.clients[1 - who].write(offset, b"\7" * length)
        self.model[offset : offset + length] = b"\7" * length

    @rule(who=st.integers(0, 1))
    def flush(self, who: int) -> None:
        self.clients[who].flush()

    @rule(who=st.integers(0, 1), where=ranges)
    def read(self, who: int, where: tuple[int, int]) -> None:
        offset, length = where
        buffer = bytearray(length)
        self.clients[who].read_into(offset, buffer)
        assert buffer == self.model[offset : offset + length]

    def teardown(self) -> None:
        if not hasattr(self, "serving"):
            return
        for client in self.clients:
            client.close()
        self.serving.close()
        assert_clean(self.path)
        raw = Path(self.folder.name) / "model.raw"
        raw.write_bytes(self.model)
        assert_identical(raw, self.path, formats=("raw", "qcow2"))
        self.folder.cleanup()


TwoClients.TestCase.settings = settings(max_examples=12, stateful_step_count=25)
TestTwoClients = TwoClients.TestCase


def test_an_incremental_backup_end_to_end(sock: Path, tmp_path: Path) -> None:
    """Only what changed is read, into a thin image on the full backup; what is restored is the guest's disk."""
    guest, full, thin = tmp_path / "guest.qcow2", tmp_path / "full.qcow2", tmp_path / "thin.qcow2"
    qemu_img("create", "-f", "qcow2", guest, "32M")
    qemu_io(guest, "write -P 1 0 8M", format="qcow2")
    with qemu_nbd(sock, "-r", "-f", "qcow2", guest):
        diskmill("convert", "-O", "qcow2", uri(sock), full)
    qemu_img("bitmap", "--add", guest, "since")
    qemu_io(guest, "write -P 2 1M 192k", "write -z 4M 64k", "write -P 3 20M 64k", format="qcow2")
    qemu_img("create", "-f", "qcow2", "-b", full, "-F", "qcow2", thin)
    context = "qemu:dirty-bitmap:since"
    read = 0
    import diskmill as library

    with (
        qemu_nbd(sock, "-r", "-B", "since", "-f", "qcow2", guest),
        library.open(str(thin), "qcow2", writable=True) as target,
    ):
        client = Client(parse_location(uri(sock)), Settings(contexts=("base:allocation", context)))
        at = 0
        for length, flags in client.statuses(context, 0, client.size):
            if flags & 1:
                buffer = bytearray(length)
                client.read_into(at, buffer)
                target.write(at, buffer)
                read += length
            at += length
        client.close()
    assert at == 32 * MiB
    assert read == 320 * 1024
    assert_identical(guest, thin, formats=("qcow2", "qcow2"))
    assert_clean(thin)
