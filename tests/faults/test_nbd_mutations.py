"""Damaged conversations, both ways: a client hears what no server may say, a server what no client may.

A whole conversation is recorded once; then one side plays its part of it, damaged, all at once, and hangs up. The other
must come to an end, within seconds and bounded memory, with nothing but an error of the project's own; and a server
must serve the next client as if nothing had been.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from diskmill.errors import DiskmillError
from diskmill_nbd.client import Client, Settings, list_exports
from diskmill_nbd.location import parse_location
from diskmill_nbd.serving import Exported, Serving
from nbd_servers import nbdkit, qemu_nbd, uri
from tools import assert_clean, qemu_img, qemu_io

MiB = 1 << 20
COUNT = int(os.environ.get("DISKMILL_NBD_MUTANTS", "250"))
"""Damaged copies of each conversation."""
LONGEST = 5.0
CONTEXTS = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0")


def talk(path: Path) -> None:
    """A client's life: everything that it can ask."""
    client = Client(parse_location(uri(path)), Settings(timeout=2, contexts=CONTEXTS, connections=1), writable=True)
    try:
        for context in CONTEXTS:
            if client.has(context):
                list(client.statuses(context, 0, client.size))
        buffer = bytearray(200_000)
        client.read_into(0, buffer)
        client.read_into(max(client.size - 1000, 0), bytearray(1000))
        client.write(65536, buffer[:70_000])
        client.zero(4096, 100_000)
        client.trim(0, 65536)
        client.cache(0, 65536)
        client.read_into(60_000, buffer)
        client.flush()
    finally:
        client.close()


def ask(path: Path) -> None:
    """A client that only wants to know what there is."""
    list_exports(parse_location(uri(path)), Settings(timeout=2))


class Recorder:
    """Stands between a client and the server at *path*, and keeps what both say."""

    def __init__(self, path: Path, server: Path) -> None:
        self.server = server
        self.said = {"client": bytearray(), "server": bytearray()}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            client, _ = self.listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self.server))
            self.threads = [
                threading.Thread(target=self._pump, args=(client, server, "client"), daemon=True),
                threading.Thread(target=self._pump, args=(server, client, "server"), daemon=True),
            ]
            for thread in self.threads:
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, who: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                self.said[who] += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def done(self) -> None:
        for thread in self.threads:
            thread.join(10)
        self.listener.close()


def damaged(data: bytes, seed: int) -> Iterator[bytes]:
    """Copies of *data* with a few bytes changed, cut, repeated, or numbers replaced by such as break things."""
    rng = random.Random(seed)
    numbers = [value.to_bytes(size, "big") for size in (2, 4, 8) for value in
               (0, 1, 2**15, 2**(8 * size - 1), 2**(8 * size) - 1, min(2**26, 2**(8 * size) - 1))]  # fmt: skip
    head = min(len(data), 1200)  # the handshake is short, and most of the rest is data
    for _ in range(COUNT):
        copy = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(min(head, len(copy)) if rng.random() < 0.7 else len(copy))
            way = rng.randrange(6)
            if way == 0:
                copy[at] ^= 1 << rng.randrange(8)
            elif way == 1:
                copy[at] = rng.randrange(256)
            elif way == 2:
                number = rng.choice(numbers)
                copy[at : at + len(number)] = number
            elif way == 3 and len(copy) > 40:
                del copy[at : at + rng.choice((1, 4, 8, 20))]
            elif way == 4:
                copy[at:at] = copy[max(at - 20, 0) : at]
            else:
                del copy[at + 1 :]
        yield bytes(copy)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nbd") / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "2M")
    qemu_io(path, "write -P 1 0 200k", "write -P 2 1M 100k", format="qcow2")
    return path


def server_of(kind: str, path: Path, image: Path) -> object:
    if kind == "qemu":
        return qemu_nbd(path, "-A", "-f", "qcow2", image)
    if kind == "nbdkit":
        return nbdkit(path, "--no-sr", "memory", "2M")
    one = Exported(str(image), format="qcow2", writable=True, depth=True)
    return Serving([one], unix=str(path))


@pytest.mark.parametrize("script", [talk, ask], ids=["talk", "list"])
@pytest.mark.parametrize("kind", ["qemu", "nbdkit", "ours"])
def test_what_a_server_says_is_believed_no_further_than_it_makes_sense(
    kind: str, script: object, image: Path, tmp_path: Path
) -> None:
    server, between, false = tmp_path / "server", tmp_path / "between", tmp_path / "false"
    with server_of(kind, server, image):  # type: ignore[attr-defined]
        recorder = Recorder(between, server)
        script(between)  # type: ignore[operator]
        recorder.done()
    said = bytes(recorder.said["server"])
    assert len(said) > 100
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(false))
    listener.listen()
    mutants = damaged(said, 1)
    failed = 0

    def play(mutant: bytes) -> None:
        peer, _ = listener.accept()
        with peer, suppress(OSError):
            peer.settimeout(LONGEST)
            sender = threading.Thread(target=lambda: suppressed_send(peer, mutant), daemon=True)
            sender.start()
            while peer.recv(1 << 20):
                pass
            sender.join()

    tracemalloc.start()
    try:
        for number, mutant in enumerate(mutants):
            player = threading.Thread(target=play, args=(mutant,), daemon=True)
            player.start()
            began = time.monotonic()
            failure: DiskmillError | None = None
            try:
                script(false)  # type: ignore[operator]
            except DiskmillError as error:
                failure = error
            failed += failure is not None
            assert "\n" not in str(failure)
            assert time.monotonic() - began < LONGEST, number
            player.join()
        assert tracemalloc.get_traced_memory()[1] < 100 * MiB
    finally:
        tracemalloc.stop()
        listener.close()
    assert failed > COUNT / 4


def suppressed_send(peer: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("kind", ["ours", "qemu", "nbdkit"])
def test_what_a_client_says_costs_the_server_nothing(kind: str, image: Path, tmp_path: Path) -> None:
    server, between, ours = tmp_path / "server", tmp_path / "between", tmp_path / "ours"
    with server_of(kind, server, image):  # type: ignore[attr-defined]
        recorder = Recorder(between, server)
        talk(between)
        recorder.done()
    said = bytes(recorder.said["client"])
    warnings: list[str] = []
    one = Exported(str(image), format="qcow2", writable=True, depth=True)
    with Serving([one], unix=str(ours), warn=warnings.append, handshake_limit=2) as serving:
        tracemalloc.start()
        for mutant in damaged(said, 2):
            began = time.monotonic()
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(LONGEST)
                peer.connect(str(ours))
                sender = threading.Thread(target=suppressed_send, args=(peer, mutant), daemon=True)
                sender.start()
                with suppress(ConnectionError):
                    while peer.recv(1 << 20):
                        pass
                sender.join()
            assert time.monotonic() - began < LONGEST
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 * MiB
        talk(ours)
        end = time.monotonic() + 5
        while serving.server.clients and time.monotonic() < end:
            time.sleep(0.01)
        assert serving.server.clients == 0
    assert not [text for text in warnings if text.startswith("a client was dropped")]
    assert_clean(image)
