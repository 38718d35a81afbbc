"""The kit's suites of storages over our own protocols, and over the twin of files, alone and under a filter."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from diskmill.contract.requests import CreateRequest
from diskmill.errors import StorageError
from diskmill.opening.context import Context
from diskmill.opening.creation import create_image
from diskmill.opening.registry import Registry
from diskmill_testkit.sources import *  # noqa: F403
from diskmill_testkit.sources import HELD, Open, opens
from diskmill_testkit.sources import test_what_a_protocol_opened_for_reading_is_not_changed as is_not_changed
from diskmill_testkit.storages import *  # noqa: F403
from diskmill_testkit.storages import Make, makes
from http_servers import faulty
from hypothesis import given
from hypothesis import strategies as st
from nbd_servers import nbdkit, uri
from nfs_server import NfsServer
from ssh_server import SshServer
from twins import Content, MemoryDriver


def over(*names: str) -> list[str]:
    return [f"{filter}{name}" for filter in ("", "pass-") for name in names]


@pytest.fixture(params=[*over("file", "memory", "twin", "ssh"), "nfs"])
def make(
    request: pytest.FixtureRequest, tmp_path: Path, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Makes new storage by a word, or opens what is there."""
    monkeypatch.setenv("DISKMILL_SSH", ssh_server.command)
    protocol = request.param.removeprefix("pass-")
    registry = Registry()
    if protocol == "nfs":
        server: NfsServer = request.getfixturevalue("nfs_server")
        folder = server.share / tmp_path.name
        folder.mkdir()
        with server.network.inside():
            yield from makes(registry, lambda word: server.url(folder / word), filtered=False)
        return
    if protocol == "twin":
        registry.add(MemoryDriver())

    def located(word: str) -> str:
        path = tmp_path / word
        memory = f"memory:{tmp_path.name}-{word}"
        return {"file": str(path), "memory": memory, "twin": memory, "ssh": ssh_server.url(path)}[protocol]

    yield from makes(registry, located, filtered=protocol != request.param)


@given(
    operations=st.lists(
        st.tuples(st.sampled_from(["write", "zero", "unmap", "truncate"]), st.integers(0, 20000), st.integers(0, 9000)),
        max_size=20,
    )
)
def test_the_twin_does_as_a_file_does(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int, int]]
) -> None:
    registry = Registry()
    registry.add(MemoryDriver())
    context = Context(registry=registry, cache="unsafe")
    folder = tmp_path_factory.getbasetemp()
    file = registry.call(registry.protocol("file"), "create", request=CreateRequest(str(folder / "twin"), context, 0))
    twin = registry.call(registry.protocol("memory"), "create", request=CreateRequest("memory:twin", context, 0))
    try:
        for number, (what, offset, length) in enumerate(operations):
            for storage in (file, twin):
                if what == "write":
                    storage.write(offset, bytes([number + 1]) * length)
                elif what == "truncate":
                    storage.truncate(offset)
                else:
                    storage.zero(offset, length, unmap=what == "unmap")
            assert file.size == twin.size
        assert file.read(0, 30000) == twin.read(0, 30000)
    finally:
        file.close()


def test_images_are_made_on_storage_of_any_protocol() -> None:
    memory = MemoryDriver()
    registry = Registry()
    registry.add(memory)
    with create_image("memory:disk", "raw", 1000, {}, context=Context(registry=registry)) as image:
        image.write(0, b"abc")
        assert not memory.files
        image.settle()
    assert bytes(memory.files["disk"]) == b"abc" + bytes(1021)


# -- what is only read: every protocol, by itself and under a filter ------------------------------------------------


@pytest.fixture(params=[*over("file", "memory", "twin", "ssh", "nbd", "http"), "nfs"])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens what holds ``HELD`` for reading."""
    monkeypatch.setenv("DISKMILL_SSH", ssh_server.command)
    protocol = request.param.removeprefix("pass-")
    path, sock = tmp_path / "held", tmp_path / "sock"
    path.write_bytes(HELD)
    registry = Registry()
    memory = f"memory:{tmp_path.name}-held"
    names = {"file": str(path), "memory": memory, "twin": "memory:held", "ssh": ssh_server.url(path), "nbd": uri(sock)}
    with ExitStack() as stack:
        if protocol == "nfs":
            server: NfsServer = request.getfixturevalue("nfs_server")
            there = server.share / tmp_path.name
            there.write_bytes(HELD)
            names["nfs"] = server.url(there)
            stack.enter_context(server.network.inside())
        if protocol == "twin":
            twin = MemoryDriver()
            twin.files["held"] = Content(HELD)
            registry.add(twin)
        if protocol == "memory":
            with create_image(memory, "raw", len(HELD), {}, context=Context(registry=registry)) as image:
                image.write(0, HELD)
                image.settle()
        if protocol == "nbd":
            stack.enter_context(nbdkit(sock, "-r", "file", path))
        if protocol == "http":
            for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
                monkeypatch.delenv(name)
            names["http"] = stack.enter_context(faulty(HELD, lambda number, first, length: None)).url
        if protocol == "pipe":
            names["pipe"] = f"pipe:{tmp_path / 'fifo'}"
            os.mkfifo(tmp_path / "fifo")

            def feed() -> None:
                with suppress(BrokenPipeError):  # not all of it need be read
                    (tmp_path / "fifo").write_bytes(HELD)

            feeder = threading.Thread(target=feed, daemon=True)
            feeder.start()
            stack.callback(feeder.join, 10)
        yield from opens(registry, names[protocol], filtered=protocol != request.param)


@pytest.mark.parametrize("opened", over("pipe"), indirect=True)
def test_what_comes_once_is_not_changed(opened: Open) -> None:
    is_not_changed(opened)


@pytest.mark.parametrize("opened", over("pipe"), indirect=True)
def test_what_comes_once_is_read_forward(opened: Open) -> None:
    storage = opened()
    assert storage.forward
    assert storage.read_some(0, 1000) == storage.read_some(0, 1000) == HELD[:1000]  # the head is kept
    found = bytearray()
    while part := storage.read_some(len(found), 70_000):
        found += part
    assert found == HELD
    with suppress(StorageError):  # it is gone, or still the same
        assert storage.read_some(100_000, 10) == HELD[100_000:100_010]
