"""Storage past the page cache (``O_DIRECT``), for the cache modes ``none`` and ``directsync``.

The kernel then wants offsets, lengths and memory in multiples of the device's sector. What comes otherwise goes
through a buffer that fits, and where a block is covered in part, the rest of it is read and written back.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...contract.node import Buffer, ReadBuffer, Requests
from ...errors import StorageError
from ...sizes import MiB, round_down, round_up
from .storage import FileStorage

if TYPE_CHECKING:
    from ...contract.drivers import ProtocolDriver

_BLOCK = 4096
"""A multiple of every common sector size, for files; a device says what its own is."""


class DirectStorage(FileStorage):
    """One open file or block device, past the page cache.

    A file whose size is no multiple of the block is padded while it is open for writing: it gets its size when it is
    settled or closed.
    """

    def __init__(self, driver: ProtocolDriver, name: str, fd: int, *, writable: bool, cache: str) -> None:
        super().__init__(driver, name, fd, writable=writable, cache=cache)
        self._align = _BLOCK
        if self.is_device:
            from .space import device_sector

            self._align = device_sector(fd)
        self.requests = Requests(align=self._align)
        self._padded = False
        self._partial = threading.RLock()
        """Held while blocks are changed in part: two writers of one block must not undo each other's bytes."""
        self._own = threading.local()

    def _buffer(self) -> memoryview:
        """This thread's memory that fits: pages."""
        try:
            return self._own.view  # type: ignore[no-any-return]
        except AttributeError:
            self._own.view = memoryview(mmap.mmap(-1, MiB))
            return self._own.view  # type: ignore[no-any-return]

    def read_into(self, offset: int, buffer: Buffer) -> None:
        if self._used is not None:
            buffer = self._ours(offset, buffer)
        view = memoryview(buffer)
        try:
            done = 0
            if (offset | len(view)) % self._align == 0:
                done = self._read_fitting(offset, view)
            bounce = self._buffer()
            while done < len(view):
                low = round_down(offset + done, self._align)
                skip = offset + done - low
                wanted = min(round_up(skip + len(view) - done, self._align), len(bounce))
                count = max(os.preadv(self._fd, (bounce[:wanted],), low) - skip, 0)
                if count == 0:  # the end
                    self._expect_whole(offset + done)
                    view[done:] = bytes(len(view) - done)
                    return
                count = min(count, len(view) - done)
                view[done : done + count] = bounce[skip : skip + count]
                done += count
        except (OSError, OverflowError) as error:
            raise self._error(error, f"read at offset {offset}") from None

    def _read_fitting(self, offset: int, view: memoryview) -> int:
        """Read straight into *view*, if the kernel takes its address. Gives how much is done."""
        try:
            return os.preadv(self._fd, (view,), offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0

    def _write_whole(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data)
        if (offset | len(view)) % self._align == 0:
            self._write_fitting(offset, view)
        elif len(view):
            with self._partial:
                self._write_partial(offset, view)

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        self.write(offset, buffers[0] if len(buffers) == 1 else b"".join(buffers))

    def _write_fitting(self, offset: int, view: memoryview) -> None:
        done = 0
        try:
            while done < len(view):
                done += self._some(os.pwrite(self._fd, view[done:], offset + done))
        except OSError as error:
            if error.errno != errno.EINVAL or done % self._align:
                raise
            bounce = self._buffer()  # the address does not fit
            while done < len(view):
                count = min(len(view) - done, len(bounce))
                bounce[:count] = view[done : done + count]
                self._put(offset + done, bounce[:count])
                done += count

    def _write_partial(self, offset: int, view: memoryview) -> None:
        bounce = self._buffer()
        end = offset + len(view)
        at = offset
        while at < end:
            low = round_down(at, self._align)
            high = min(round_up(end, self._align), low + len(bounce))
            upto = min(end, high)
            block = bounce[: high - low]
            if at > low:
                self._get(low, block[: self._align])
            if upto < high and (at == low or high - low > self._align):
                self._get(high - self._align, block[-self._align :])
            block[at - low : upto - low] = view[at - offset : upto - offset]
            self._put(low, block)
            if high > self.size:
                self._padded = True
            at = upto

    def _get(self, offset: int, block: memoryview) -> None:
        done = 0
        while done < len(block):
            count = os.preadv(self._fd, (block[done:],), offset + done)
            done += count
            if count == 0 or done % self._align:  # the end of the file
                block[done:] = bytes(len(block) - done)
                return

    def _put(self, offset: int, block: memoryview) -> None:
        done = 0
        while done < len(block):
            done += self._some(os.pwrite(self._fd, block[done:], offset + done))

    @staticmethod
    def _some(count: int) -> int:
        if count == 0:
            raise OSError(errno.EIO, "nothing more was written")
        return count

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        with self._growing, self._partial:
            super().zero(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        with self._growing, self._partial:
            super().discard(offset, length)

    def truncate(self, size: int) -> None:
        with self._growing, self._partial:
            super().truncate(size)

    def _finish(self) -> None:
        self._trim()
        super()._finish()

    def close(self) -> None:
        try:
            if self._fd >= 0:
                self._trim()
        finally:
            super().close()

    def _release(self) -> None:
        with contextlib.suppress(StorageError):  # a file that fails has told so before
            self._trim()
        super()._release()

    def _trim(self) -> None:
        """Nothing is being written any more: cut off what was written only to fill the last block."""
        if self._padded and not self.is_device:
            self._padded = False
            self.truncate(self.size)
