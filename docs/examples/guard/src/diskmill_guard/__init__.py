"""Nobody may open what lies in ``/srv/private``, whatever its format and whatever it is called there."""

from __future__ import annotations

from collections.abc import Generator

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.node import Node, Storage
from diskmill.contract.requests import OpenRequest
from diskmill.errors import RefusedError

PRIVATE = "/srv/private"


class Guard:
    @hookimpl(wrapper=True)
    def open(self, request: OpenRequest) -> Generator[None, Node, Node]:
        node = yield
        if isinstance(node, Storage) and node.place is not None and isinstance(node.driver, ProtocolDriver):
            place = node.place.resolved()
            if node.driver.name == "file":
                private = node.driver.place({"filename": PRIVATE}).resolved()
                if place.within(private) or place.identity() != node.identity():
                    node.abandon()
                    raise RefusedError("nobody may open this", file=request.name)
        return node


plugin = Guard()
