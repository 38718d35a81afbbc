"""A plugin that sees whatever image is opened. FILL IN: what it forbids, counts or notes."""

from __future__ import annotations

from collections.abc import Generator

from diskmill.contract.drivers import hookimpl
from diskmill.contract.node import Node
from diskmill.contract.requests import OpenRequest
from diskmill.errors import RefusedError


class Sample:
    """Wraps hooks of all drivers; which there are stands in ``diskmill.contract.hookspecs``."""

    @hookimpl(wrapper=True)
    def open(self, request: OpenRequest) -> Generator[None, Node, Node]:
        if request.name.endswith(".forbidden"):  # FILL IN
            raise RefusedError("sample lets nobody open this", file=request.name)
        return (yield)


driver = Sample()
