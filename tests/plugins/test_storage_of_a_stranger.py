"""A storage over HTTP as somebody writes it who has read the page and nothing else: in fifty lines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import diskmill
from diskmill.opening.context import Context
from diskmill.opening.registry import Registry
from http_servers import faulty

CODE = """
import http.client
import threading
from urllib.parse import urlsplit

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.node import Requests, Storage
from diskmill.errors import StorageError


class Web(Storage):
    requests = Requests(best=1 << 20, at_once=4)

    def __init__(self, driver, name):
        self.driver, self.name = driver, name
        self.url = urlsplit(name.removeprefix("web:"))
        self.mine = threading.local()
        self.size = int(self.ask({"Range": "bytes=0-0"}).headers["Content-Range"].rpartition("/")[2])

    def ask(self, headers):
        if not hasattr(self.mine, "server"):
            self.mine.server = http.client.HTTPConnection(self.url.netloc, timeout=30)
        try:
            self.mine.server.request("GET", self.url.path, headers=headers)
            answer = self.mine.server.getresponse()
            answer.body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            del self.mine.server
            raise StorageError(f"the server cannot be asked: {error}", file=self.name, transient=True) from None
        if answer.status not in (200, 206):
            raise StorageError(f"the server says {answer.status}", file=self.name, transient=answer.status >= 500)
        return answer

    def read_into(self, offset, buffer):
        view = memoryview(buffer).cast("B")
        inside = max(min(len(view), self.size - offset), 0)
        if inside:
            body = self.ask({"Range": f"bytes={offset}-{offset + inside - 1}"}).body
            if len(body) != inside:
                raise StorageError(f"the server sent {len(body)} bytes, not {inside}", file=self.name)
            view[:inside] = body
        view[inside:] = bytes(len(view) - inside)


class WebDriver(ProtocolDriver):
    contract, name, prefixes = 1, "web", ("web",)

    @hookimpl
    def open(self, request):
        return Web(self, request.name)
"""


def test_it_takes_fifty_lines_and_everything_reads_through_it(tmp_path: Path) -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 50
    names: dict[str, Any] = {}
    exec(CODE, names)
    registry = Registry()
    registry.add(names["WebDriver"]())
    context = Context(registry=registry)
    disk, image = tmp_path / "disk", tmp_path / "disk.qcow2"
    disk.write_bytes(random.Random(1).randbytes(1 << 20) + bytes(1 << 20))
    diskmill.convert([str(disk)], str(image), output_format="qcow2", compress=True)
    with faulty(image.read_bytes(), lambda number, first, length: None) as server:
        name = f"web:{server.url}"
        assert diskmill.info(name, context=context).format == "qcow2"
        assert diskmill.compare(name, str(disk), context=context).identical
        assert not diskmill.check(name, context=context).findings
        with diskmill.open(name, context=context) as opened:
            assert opened.read(1000, 5000) == disk.read_bytes()[1000:6000]
