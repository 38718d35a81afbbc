"""The filter ``sample``, which stands on any storage. FILL IN: what it is for."""

from __future__ import annotations

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.node import ReadBuffer
from diskmill.contract.requests import OpenRequest
from diskmill.kit.filter import Filter


class SampleFilter(Filter):
    """All that is not overridden is passed on."""

    def write(self, offset: int, data: ReadBuffer) -> None:
        super().write(offset, data)  # FILL IN


class SampleDriver(FilterDriver):
    """``sample``: see diskmill's page "Writing a driver"."""

    contract = 1
    name = "sample"
    title = "a sample filter"  # FILL IN

    @hookimpl
    def open(self, request: OpenRequest) -> SampleFilter:
        """Over what ``file`` names."""
        return SampleFilter(self, request.below())


driver = SampleDriver()
