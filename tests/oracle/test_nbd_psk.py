"""NBD over TLS with pre-shared keys, against nbdkit and libnbd; and what cannot be had here: an AF_VSOCK address."""

from __future__ import annotations

import random
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from diskmill.errors import SecretError, StorageError
from diskmill_nbd.client import Client
from diskmill_nbd.location import parse_location
from diskmill_nbd.serving import Exported, Serving
from diskmill_nbd.tls import Credentials, client_context, server_context
from diskmill_nbd.transport import connect
from nbd_servers import nbdkit
from psk import keyed  # noqa: F401  a fixture
from tools import run, tool

MiB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(14).randbytes(MiB))
    return path


def key_file(path: Path, *users: str) -> Path:
    path.write_text("# user:key\n" + "".join(f"{user}:{secrets.token_hex(32)}\n" for user in users))
    return path


def named(user: str, sock: Path, keys: Path) -> str:
    return f"nbds+unix://{user}@/?socket={sock}&tls-psk-file={keys}"


@pytest.mark.usefixtures("keyed")
def test_a_client_with_a_key_that_nbdkit_knows(disk: Path, tmp_path: Path) -> None:
    sock, keys = tmp_path / "sock", key_file(tmp_path / "keys.psk", "alice", "bob")
    other = key_file(tmp_path / "other.psk", "alice", "mallory")
    with nbdkit(sock, "--tls=require", f"--tls-psk={keys}", "file", disk):
        for user in ("alice", "bob"):
            client, buffer = Client(parse_location(named(user, sock, keys))), bytearray(MiB)
            client.read_into(0, buffer)
            client.close()
            assert buffer == disk.read_bytes()
        for user, file in (("alice", other), ("mallory", other)):
            with pytest.raises(StorageError, match="TLS"):
                Client(parse_location(named(user, sock, file)))
        with pytest.raises(SecretError, match="no key for user 'carol'"):
            Client(parse_location(named("carol", sock, keys)))


@pytest.mark.usefixtures("keyed")
def test_a_server_whose_keys_libnbd_has(disk: Path, tmp_path: Path) -> None:
    sock, out = tmp_path / "sock", tmp_path / "out.raw"
    keys, other = key_file(tmp_path / "keys.psk", "alice"), key_file(tmp_path / "other.psk", "alice", "mallory")
    with Serving([Exported(str(disk))], unix=str(sock), credentials=Credentials(psk_file=str(keys))):
        run(tool("nbdcopy"), named("alice", sock, keys), out)
        for user in ("alice", "mallory"):
            assert run(tool("nbdinfo"), named(user, sock, other), check=False).returncode
        assert run(tool("nbdinfo"), f"nbd+unix:///?socket={sock}", check=False).returncode
    assert out.read_bytes() == disk.read_bytes()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="ssl has pre-shared keys")
def test_a_python_without_them_says_so(tmp_path: Path) -> None:
    keys = key_file(tmp_path / "keys.psk", "qemu")
    for make in (client_context, server_context):
        with pytest.raises(SecretError, match=r"pre-shared keys need Python 3\.13 or later"):
            make(Credentials(psk_file=str(keys)))


def test_a_vsock_is_told_its_machine_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines without a loopback vsock have nobody to connect to: what the kernel is asked is looked at."""
    asked: list[Any] = []

    class Recorded(socket.socket):
        def connect(self, address: Any) -> None:
            asked.append((self.family, address))

    monkeypatch.setattr(socket, "socket", Recorded)
    for name in ("nbd+vsock://2:10810/disk", "nbd+vsock://2/disk"):
        connect(parse_location(name), 5).close()
    assert asked == [(socket.AF_VSOCK, (2, 10810)), (socket.AF_VSOCK, (2, 10809))]
