"""The filter ``blkdebug``: lets requests to the node below fail, as rules say.

A rule waits for an event, which the format above tells, or which is a request itself. From then on requests that it
concerns fail. See :mod:`diskmill_filters.rules`, and the QEMU documentation, "blkdebug".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.node import Requests
from diskmill.contract.options import Option
from diskmill.errors import StorageError, UsageError
from diskmill.kit.filter import Filter

from .rules import RULE_OPTIONS, Rules, read_config, rules_of

if TYPE_CHECKING:
    from diskmill.contract.extents import Extent
    from diskmill.contract.node import Buffer, Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest

_UNTIL = 1 << 31
"""What QEMU keeps in 32 bits with a sign."""


class BlkDebug(Filter):
    """*file*, with the errors that *rules* inject, in requests of at most *largest* bytes (0: any)."""

    def __init__(self, driver: BlkDebugDriver, file: Node, rules: Rules, *, align: int, largest: int) -> None:
        super().__init__(driver, file)
        self._rules = rules
        self._largest = largest
        if align or largest:
            self.requests = Requests(align=max(align, self.requests.align), largest=largest)

    def event(self, name: str) -> None:
        self._rules.happen(name)
        super().event(name)

    def _judge(self, io_type: str, offset: int, length: int) -> None:
        number = self._rules.judge(io_type, offset, length)
        if number:
            raise StorageError(os.strerror(number), file=self.name, errno=number)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, end) of the requests that one becomes."""
        step = self._largest or length or 1
        for at in range(offset, offset + length, step) if length else (offset,):
            yield at, min(at + step, offset + length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._judge("block-status", offset, length)
        yield from super().extents(offset, length)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        for at, end in self._pieces(offset, len(view)):
            self._judge("read", at, end - at)
            self.file.read_into(at, view[at - offset : end - offset])

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        for at, end in self._pieces(offset, len(view)):
            self.event("pwritev")
            self._judge("write", at, end - at)
            self.file.write(at, view[at - offset : end - offset])
            self.event("pwritev_done")

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        self.write(offset, b"".join(buffers))

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.event("pwritev_zero")
        self._judge("write-zeroes", offset, length)
        super().zero(offset, length, unmap=unmap)
        self.event("pwritev_done")

    def discard(self, offset: int, length: int) -> None:
        self._judge("discard", offset, length)
        super().discard(offset, length)

    def flush(self) -> None:
        self._flushing()
        super().flush()

    def barrier(self) -> None:
        self._flushing()
        super().barrier()

    def _flushing(self) -> None:
        self.event("flush_to_os")
        self.event("flush_to_disk")
        self._judge("flush", 0, self.size)


class BlkDebugDriver(FilterDriver):
    """``blkdebug``."""

    contract = 1
    name = "blkdebug"
    title = "lets requests fail, by rules"
    children = ("image",)
    options = (
        Option("config", "str", "a file with rules", when=("open",)),
        *RULE_OPTIONS,
        Option("align", "size", "bytes that requests should be multiples of", default=0, when=("open",)),
        Option("max-transfer", "size", "the most bytes of a request; 0: any", default=0, when=("open",)),
        Option("opt-write-zero", "size", "bytes of zeros that are best written together", default=0, when=("open",)),
        Option("max-write-zero", "size", "the most bytes of zeros in a request", default=0, when=("open",)),
        Option("opt-discard", "size", "bytes that are best discarded together", default=0, when=("open",)),
        Option("max-discard", "size", "the most bytes that are discarded at once", default=0, when=("open",)),
        Option("take-child-perms.*", "str", "without effect: permissions of QEMU's nodes", when=("open",)),
        Option("unshare-child-perms.*", "str", "without effect: permissions of QEMU's nodes", when=("open",)),
    )

    def named(self, name: str) -> Mapping[str, Any]:
        """``blkdebug:CONFIG:IMAGE``; CONFIG may be empty, and IMAGE is a file's name."""
        config, colon, image = name.removeprefix("blkdebug:").partition(":")
        if not colon or not image:
            raise UsageError("blkdebug requires both config file and image path", file=name)
        return {"image": image, **({"config": config} if config else {})}

    @hookimpl
    def open(self, request: OpenRequest) -> BlkDebug:
        """The node below, with what the rules do to it."""
        options, file = request.options, request.below()
        align = int(options["align"])
        if align and (align & (align - 1) or align >= _UNTIL):
            raise UsageError(f"cannot meet constraints with align {align}: a power of two is needed", file=request.name)
        for name in ("max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"):
            value = int(options[name])
            if value % max(align, 1) or value >= _UNTIL:
                raise UsageError(f"cannot meet constraints with {name} {value}", file=request.name)
        rules = read_config(str(options["config"])) if "config" in options else []
        rules += rules_of(options)
        return BlkDebug(self, file, Rules(rules), align=align, largest=int(options["max-transfer"]))


driver = BlkDebugDriver()
