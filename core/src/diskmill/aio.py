"""The library for asyncio programs: each function that does work, as a coroutine that runs it in a thread.

>>> await diskmill.aio.convert("a.vmdk", "b.qcow2", output_format="qcow2")       # doctest: +SKIP

Arguments, results and errors are those of the functions of :mod:`diskmill` with the same names. A task that is
cancelled stops the work where the function can be stopped (those with the parameter ``cancel``), and waits until it
has: what was begun is undone, as after any failure, before :class:`asyncio.CancelledError` goes on. Functions that
report progress call ``progress`` from the thread that works.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from .commands.amend import amend as _amend
from .commands.bench import bench as _bench
from .commands.bitmap import bitmap as _bitmap
from .commands.check import check as _check
from .commands.commit import commit as _commit
from .commands.compare import compare as _compare
from .commands.convert import convert as _convert
from .commands.create import create as _create
from .commands.dd import dd as _dd
from .commands.digest import digest as _digest
from .commands.info import info as _info
from .commands.info import info_chain as _info_chain
from .commands.map import map as _map
from .commands.measure import measure as _measure
from .commands.rebase import rebase as _rebase
from .commands.resize import resize as _resize
from .commands.snapshot import snapshot as _snapshot
from .commands.sync import sync as _sync
from .errors import UsageError
from .library import open as _open

if TYPE_CHECKING:
    from types import TracebackType

    from .contract.node import Image, ReadBuffer

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def _in_thread(function: Callable[[], _T], cancel: threading.Event | None = None) -> _T:
    """What *function* returns, computed in a thread; whoever cancels waits until it is done or has been stopped."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if cancel is not None:
            cancel.set()
        while not work.done():  # a second cancellation must not leave a thread behind that still writes
            await asyncio.wait({work}, timeout=None)
        if not work.cancelled():
            work.exception()  # it was retrieved: the cancellation is what the caller hears of
        raise


def _coroutine(function: Callable[_P, _T]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """*function*, as a coroutine that runs it in a thread."""
    stoppable = "cancel" in inspect.signature(function).parameters

    @wraps(function)
    async def call(*arguments: _P.args, **named: _P.kwargs) -> _T:
        if not stoppable:
            return await _in_thread(partial(function, *arguments, **named))
        given = named.get("cancel")
        cancel = given if isinstance(given, threading.Event) else threading.Event()
        named["cancel"] = cancel
        return await _in_thread(partial(function, *arguments, **named), cancel)

    return call


amend = _coroutine(_amend)
bench = _coroutine(_bench)
bitmap = _coroutine(_bitmap)
check = _coroutine(_check)
commit = _coroutine(_commit)
compare = _coroutine(_compare)
convert = _coroutine(_convert)
create = _coroutine(_create)
dd = _coroutine(_dd)
digest = _coroutine(_digest)
info = _coroutine(_info)
info_chain = _coroutine(_info_chain)
measure = _coroutine(_measure)
rebase = _coroutine(_rebase)
resize = _coroutine(_resize)
snapshot = _coroutine(_snapshot)
sync = _coroutine(_sync)


def _listed(*arguments: Any, **named: Any) -> list[Any]:
    return list(_map(*arguments, **named))


@wraps(_map)
async def map(*arguments: Any, **named: Any) -> list[Any]:
    """As :func:`diskmill.map`, all of it in one list."""
    return await _in_thread(partial(_listed, *arguments, **named))


class AsyncImage:
    """An opened image whose calls are coroutines: :func:`open` gives it, ``async with`` closes it.

    :ivar image: the image itself, for what costs no time (``size``, ``name``, ``driver``).
    """

    def __init__(self, image: Image) -> None:
        self.image = image

    @property
    def size(self) -> int:
        """Bytes of the guest disk."""
        return self.image.size

    async def read(self, offset: int, length: int) -> bytes:
        """*length* bytes of the guest disk from *offset* on.

        :raises DiskmillError: the storage failed, or the image is damaged there.
        """
        return await _in_thread(partial(self.image.read, offset, length))

    async def write(self, offset: int, data: ReadBuffer) -> None:
        """Write *data* at *offset*.

        :raises DiskmillError: the image is read only, or the storage failed.
        """
        await _in_thread(partial(self.image.write, offset, data))

    async def zero(self, offset: int, length: int) -> None:
        """Let the range read as zeros."""
        await _in_thread(partial(self.image.zero, offset, length))

    async def discard(self, offset: int, length: int) -> None:
        """The range's contents no longer matter."""
        await _in_thread(partial(self.image.discard, offset, length))

    async def flush(self) -> None:
        """Everything written so far reaches the disk."""
        await _in_thread(self.image.flush)

    async def close(self) -> None:
        """Flush and release; calling it twice is harmless."""
        await _in_thread(self.image.close)

    def chunks(self, offset: int = 0, length: int | None = None, *, chunk: int = 1 << 20) -> AsyncChunks:
        """The guest disk in pieces, in order, for ``async for``: the next is read while one is being looked at.

        :param length: bytes; None: to the disk's end.
        :param chunk: bytes of each piece; the last may be shorter.
        """
        end = self.size if length is None else min(offset + length, self.size)
        return AsyncChunks(self, offset, end, chunk)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _in_thread(partial(self.image.__exit__, kind, error, trace))


class AsyncChunks:
    """Pieces of a guest disk in order, one ahead of who reads them."""

    def __init__(self, image: AsyncImage, at: int, end: int, chunk: int) -> None:
        if chunk <= 0:
            raise UsageError(f"chunk is at least one byte, not {chunk}")
        self._image, self._at, self._end, self._chunk = image, at, end, chunk
        self._ahead: asyncio.Task[bytes] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        ahead = self._ahead or self._next()
        if ahead is None:
            raise StopAsyncIteration
        self._ahead = None
        data = await ahead
        self._ahead = self._next()
        return data

    def _next(self) -> asyncio.Task[bytes] | None:
        length = min(self._chunk, self._end - self._at)
        if length <= 0:
            return None
        at, self._at = self._at, self._at + length
        return asyncio.ensure_future(self._image.read(at, length))

    async def aclose(self) -> None:
        """Leave it before its end: what was being read ahead is waited for."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            await asyncio.wait({ahead})
            ahead.exception()


@wraps(_open)
async def open(*arguments: Any, **named: Any) -> AsyncImage:
    """As :func:`diskmill.open`, for ``async with await diskmill.aio.open("disk.qcow2") as disk``."""
    return AsyncImage(await _in_thread(partial(_open, *arguments, **named)))
