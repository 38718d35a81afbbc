"""The filter ``blkverify``: holds what a node under test has against a raw copy of the same bytes.

See the QEMU documentation, "Block driver correctness testing with blkverify", for the names and what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.errors import StorageError, UsageError

from .copies import Copies, first_difference

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer
    from diskmill.contract.requests import OpenRequest


class BlkVerify(Copies):
    """*raw* and *test*: each read asks both, and fails where they differ."""

    @property
    def size(self) -> int:  # type: ignore[override]
        """That of the node under test, in bytes."""
        return self.nodes[1].size

    def read_into(self, offset: int, buffer: Buffer) -> None:
        raw, test = self.nodes
        test.read_into(offset, buffer)
        inside = max(min(len(buffer), self.size - offset), 0)
        expected = raw.read(offset, inside)
        if memoryview(buffer)[:inside] != expected:
            at = offset + first_difference(expected, memoryview(buffer)[:inside])
            raise StorageError(f"contents mismatch at offset {at} between '{raw.name}' and it", file=test.name)


class BlkVerifyDriver(FilterDriver):
    """``blkverify``."""

    contract = 1
    name = "blkverify"
    title = "reads two nodes, and fails where they differ"
    children = ("raw", "test")

    def named(self, name: str) -> Mapping[str, Any]:
        """``blkverify:RAW:IMAGE``: RAW is a file's name, and IMAGE that of an image of any format."""
        raw, colon, test = name.removeprefix("blkverify:").partition(":")
        if not colon or not test:
            raise UsageError("blkverify requires raw copy and original image path", file=name)
        return {"raw": raw, "test": {"file": test}}

    @hookimpl
    def open(self, request: OpenRequest) -> BlkVerify:
        """The two nodes, as one."""
        return BlkVerify(self, [request.children["raw"], request.children["test"]])


driver = BlkVerifyDriver()
