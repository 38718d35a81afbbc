"""The filter ``quorum``: several copies of the same bytes, of which enough must agree.

See ``BlockdevOptionsQuorum`` in QEMU's ``qapi/block-core.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.node import Node
from diskmill.contract.options import Option
from diskmill.errors import StorageError, UsageError

from .copies import Copies, first_difference

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer, ReadBuffer
    from diskmill.contract.requests import OpenRequest


class Quorum(Copies):
    """*nodes*, of which *threshold* must agree on what is read, and take what is written.

    :param fifo: read from the first that can be read, without a vote.
    :param strict: two nodes, where no difference is put up with (``blkverify``).
    :param rewrite: put right what was outvoted.
    """

    def __init__(
        self,
        driver: QuorumDriver,
        nodes: Sequence[Node],
        threshold: int,
        *,
        fifo: bool,
        strict: bool,
        rewrite: bool,
    ) -> None:
        super().__init__(driver, nodes)
        self._threshold = threshold
        self._fifo, self._strict, self._rewrite = fifo, strict, rewrite

    def read_into(self, offset: int, buffer: Buffer) -> None:
        if self._fifo:
            self._read_first(offset, buffer)
            return
        versions: dict[bytes, list[Node]] = {}
        error: StorageError | None = None
        for node in self.nodes:
            try:
                versions.setdefault(node.read(offset, len(buffer)), []).append(node)
            except StorageError as failed:
                error = failed
        if self._strict and len(versions) > 1:
            one, other = versions
            raise StorageError(f"contents mismatch at offset {offset + first_difference(one, other)}", file=self.name)
        winner = max(versions, key=lambda version: len(versions[version]), default=b"")
        if len(versions.get(winner, ())) < self._threshold:
            if error is not None:
                raise error
            raise StorageError(
                f"fewer than {self._threshold} of {len(self.nodes)} nodes agree on {len(buffer)} bytes at {offset}",
                file=self.name,
            )
        memoryview(buffer)[:] = winner
        if self._rewrite:
            inside = memoryview(winner)[: max(self.size - offset, 0)]
            for version, losers in versions.items():
                for node in losers if version != winner else ():
                    node.write(offset, inside)

    def _read_first(self, offset: int, buffer: Buffer) -> None:
        for node in self.nodes[:-1]:
            try:
                node.read_into(offset, buffer)
            except StorageError:
                continue
            return
        self.nodes[-1].read_into(offset, buffer)

    def _each(self, do: Callable[[Node], None]) -> None:
        """*do* it to all nodes; it may fail for as many as can be outvoted."""
        errors = []
        for node in self.nodes:
            try:
                do(node)
            except StorageError as error:
                errors.append(error)
        if len(self.nodes) - len(errors) < self._threshold:
            raise errors[0]

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._each(lambda node: node.write(offset, data))

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._each(lambda node: node.zero(offset, length, unmap=unmap))

    def flush(self) -> None:
        self._each(lambda node: node.flush())

    def barrier(self) -> None:
        self._each(lambda node: node.barrier())


class QuorumDriver(FilterDriver):
    """``quorum``."""

    contract = 1
    name = "quorum"
    title = "several copies of the same bytes, of which enough must agree"
    children = ("children.*",)
    options = (
        Option("vote-threshold", "int", "how many nodes must agree", default=0, when=("open",)),
        Option("blkverify", "bool", "of two nodes: fail where they differ", default=False, when=("open",)),
        Option("rewrite-corrupted", "bool", "write what won over what lost", default=False, when=("open",)),
        Option(
            "read-pattern",
            "str",
            "let all nodes vote (quorum), or read the first that can be read (fifo)",
            default="quorum",
            choices=("quorum", "fifo"),
            when=("open",),
        ),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> Quorum:
        """The nodes, as one."""
        nodes, options = list(request.children.values()), request.options
        threshold, fifo = int(options["vote-threshold"]), options["read-pattern"] == "fifo"
        strict = bool(options["blkverify"]) and not fifo
        rewrite = bool(options["rewrite-corrupted"]) and not fifo
        if not nodes:
            raise UsageError("a quorum needs one node or more: children.0.…", file=self.name)
        if threshold < 1:
            raise UsageError("the option 'vote-threshold' must be at least 1", file=request.name)
        if threshold > len(nodes):
            raise UsageError(f"threshold may not exceed children count: {threshold} of {len(nodes)}", file=request.name)
        if strict and not len(nodes) == threshold == 2:
            raise UsageError("blkverify=on needs exactly two nodes and vote-threshold=2", file=request.name)
        if strict and rewrite:
            raise UsageError("rewrite-corrupted=on cannot be used with blkverify=on", file=request.name)
        if rewrite and not request.writable:
            raise UsageError("Block node is read-only: rewrite-corrupted=on would write it", file=request.name)
        if len({node.size for node in nodes}) > 1:
            raise UsageError("the nodes of a quorum must be of one size", file=request.name)
        return Quorum(self, nodes, threshold, fifo=fifo, strict=strict, rewrite=rewrite)


driver = QuorumDriver()
