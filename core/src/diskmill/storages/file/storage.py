"""Files and block devices as storage: positioned reads and writes, holes, locks."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import warnings  # not when it is needed: that may be while Python ends, when nothing can be imported any more
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from ...contract.extents import Extent, Kind
from ...contract.node import Buffer, Node, ReadBuffer, Storage
from ...errors import StorageError

if TYPE_CHECKING:
    from ...contract.drivers import ProtocolDriver
    from .output import Output

_Data = TypeVar("_Data")
_IOV_MAX = 1024
SYNC = ("writethrough", "directsync")
"""Cache modes in which each write waits for the disk."""
_AHEAD = 65536
"""Bytes of a write from which it pays to ask for its space first."""
HEAD = 65536
"""Bytes at the start that hold every format's header: zero on a device, or a file, until an output on it is whole."""


class FileStorage(Storage):
    """One open file or block device, through the page cache."""

    def __init__(self, driver: ProtocolDriver, name: str, fd: int, *, writable: bool, cache: str) -> None:
        self.driver = driver
        self.name = name
        self.writable = writable
        self.cache = cache
        self._fd = fd
        self._output: Output | None = None
        self._used: int | None = None
        """A device that is made anew is ours up to here; from here on it reads as zeros, whatever lies there."""
        self._ahead = False
        """Whether to ask for space before each larger write."""
        info = os.fstat(fd)
        self.is_device = stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode)
        """Whether it is a block device, or the null device: its size is given, and it holds what was there before."""
        self._identity = (info.st_rdev,) if self.is_device else (info.st_dev, info.st_ino)
        self.size = self._capacity = os.lseek(fd, 0, os.SEEK_END) if self.is_device else info.st_size
        self.blank = not self.is_device
        self._growing = threading.RLock()
        self._reaching: list[int] = []
        """Where the writes will end that are under way beyond the file's end."""
        self._known: tuple[int, int, Kind] | None = None
        # Another object after each change: who looked before it knows that what was seen may be old.
        self._change = self._flushed = object()
        self._lost: OSError | None = None

    # -- reading ------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = min(offset + length, self.size)
        stop = offset + length
        while offset < end:
            known = self._known
            if known is None or not known[0] <= offset < known[1]:
                change = self._change
                known = self._look(offset)
                self._known = known
                if change is not self._change:
                    self._known = None
            upto = min(known[1], end)
            if upto == end and known[2] is Kind.ZERO:
                upto = stop
            yield Extent(offset, upto - offset, known[2], self, offset)
            offset = upto
        if offset < stop:
            yield Extent(offset, stop - offset, Kind.ZERO, self, offset)

    def _look(self, offset: int) -> tuple[int, int, Kind]:
        """The stretch of data, or the hole, from *offset* on."""
        size = self.size
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
            if data > offset:
                return offset, data, Kind.ZERO
            return offset, max(os.lseek(self._fd, offset, os.SEEK_HOLE), offset + 1), Kind.DATA
        except OSError as error:
            if error.errno == errno.ENXIO:
                self._expect_whole(offset)
            # ENXIO: nothing but a hole follows. Else: there is no telling holes from data here.
            return offset, max(size, offset + 1), Kind.ZERO if error.errno == errno.ENXIO else Kind.DATA

    def read_into(self, offset: int, buffer: Buffer) -> None:
        if self._used is not None:
            buffer = self._ours(offset, buffer)
        try:
            count = os.preadv(self._fd, (buffer,), offset)
            if count != len(buffer):
                self._read_rest(offset, memoryview(buffer), count)
        except (OSError, OverflowError) as error:
            raise self._error(error, f"read at offset {offset}") from None

    def _ours(self, offset: int, buffer: Buffer) -> Buffer:
        """The part of *buffer* that is to be read from a device that is made anew; the rest becomes zeros."""
        view = memoryview(buffer)
        with self._growing:
            inside = len(view) if self._used is None else min(max(self._used - offset, 0), len(view))
        view[inside:] = bytes(len(view) - inside)
        return view[:inside]

    def _read_rest(self, offset: int, view: memoryview, done: int) -> None:
        while done < len(view):
            count = os.preadv(self._fd, (view[done:],), offset + done)
            if count == 0:
                self._expect_whole(offset + done)
                view[done:] = bytes(len(view) - done)
                return
            done += count

    def _expect_whole(self, offset: int) -> None:
        """Where the end was met at *offset*: fail if the file, which nobody should change, was longer when opened."""
        if not self.writable and offset < self.size and os.fstat(self._fd).st_size < self.size and not self.is_device:
            raise StorageError("it has become shorter while it was read", file=self.name, place=f"offset {offset}")

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._change_up_to(offset, offset + len(data), "write", self._write_whole, data)

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        for at in range(0, len(buffers), _IOV_MAX):
            group = buffers[at : at + _IOV_MAX]
            end = offset + sum(map(len, group))
            self._change_up_to(offset, end, "write", self._write_group, group)
            offset = end

    def _change_up_to(
        self, offset: int, end: int, what: str, change: Callable[[int, _Data], None], data: _Data
    ) -> None:
        """Let *change* put *data* at *offset*, up to *end*, keeping the books of the file's size meanwhile.

        :param what: what it does, in the error where it fails.
        """
        grows = (end > self.size or self._used is not None) and end > offset
        if grows:
            self._grow(offset, end)
        try:
            change(offset, data)
        except (OSError, OverflowError) as error:
            self._fell_short(end)
            if isinstance(error, StorageError):  # of what was put in smaller parts
                raise
            raise self._error(error, f"{what} at offset {offset}") from None
        finally:
            if grows:
                self._reaching.remove(end)
            self._changed()

    def _changed(self) -> None:
        """What is remembered of the file's holes may be old."""
        # In this order: who looked before, and remembers it only now, finds the change or is forgotten.
        self._change = object()
        self._known = None

    def _write_whole(self, offset: int, data: ReadBuffer) -> None:
        end = offset + len(data)
        if self._ahead and len(data) >= _AHEAD:
            self._take_space(offset, len(data))
        count = os.pwrite(self._fd, data, offset)
        while offset + count < end:
            more = os.pwrite(self._fd, memoryview(data)[count:], offset + count)
            if more == 0:
                raise OSError(errno.EIO, "nothing more was written")
            count += more

    def _write_group(self, offset: int, group: Sequence[ReadBuffer]) -> None:
        length = sum(map(len, group))
        if self._ahead and length >= _AHEAD:
            self._take_space(offset, length)
        count = os.pwritev(self._fd, group, offset)
        if count < length:
            self._write_rest(offset, group, count)

    def _write_rest(self, offset: int, group: Sequence[ReadBuffer], done: int) -> None:
        """What a write that stopped after *done* bytes left over."""
        for buffer in group:
            if done < len(buffer):
                self.write(offset + done, memoryview(buffer)[done:])
                offset += len(buffer)
                done = 0
            else:
                offset += len(buffer)
                done -= len(buffer)

    def take_from(self, source: Node, start: int, offset: int, length: int) -> bool:
        if not isinstance(source, FileStorage) or self._used is not None or offset + length > self.size:
            return False
        from . import space

        self._changed()
        try:
            return space.copy_range(source._fd, start, self._fd, offset, length)
        finally:
            self._changed()

    def clones(self, source: Node) -> int:
        if not isinstance(source, FileStorage) or self._used is not None or self.is_device or source.is_device:
            return 0
        from . import space

        return space.clone_block(source._fd, self._fd)

    def clone_from(self, source: Node, start: int, offset: int, length: int) -> None:
        if not isinstance(source, FileStorage) or self._used is not None:
            self._refuse("share blocks with that")
        from . import space

        def clone(at: int, origin: int) -> None:
            space.clone_range(source._fd, origin, self._fd, at, length)

        self._change_up_to(offset, offset + length, f"share blocks of '{source.name}'", clone, start)

    def _take_space(self, offset: int, length: int) -> None:
        """Let the file have blocks for a write that is about to come.

        On ext4 two threads then write a third faster: what a write does for each page that has no block yet, it does
        under the file's lock.
        """
        try:
            os.posix_fallocate(self._fd, offset, length)
        except OSError:
            self._ahead = False  # if it matters, the write fails too, and tells it

    def _grow(self, offset: int, end: int) -> None:
        """A write of *offset* to *end* is about to come. Known beforehand, so that no truncation cuts off what others
        write, and what a device holds from before is gone wherever something is written behind it.
        """
        with self._growing:
            if self._used is not None:
                self._clear(offset)
                self._used = max(self._used, end)
            if end > self.size and (self._used is not None or not self.is_device):
                self.size = end
            self._reaching.append(end)

    def _fell_short(self, end: int) -> None:
        """The write that was to end at *end* failed: the file is as long as it is, or as others are about to make it.

        Who believed it longer would let a table name what is beyond its end.
        """
        with self._growing:
            if not self.is_device and self._fd >= 0:
                others = [one for one in self._reaching if one != end]
                self.size = min(self.size, max(os.fstat(self._fd).st_size, *others, 0))

    def _clear(self, end: int) -> None:
        """Make zeros of what a device that is made anew holds from before, up to *end*. Others' writes wait."""
        with self._growing:
            start = self._used
            if start is None or end <= start:
                return
            self._used = end
            try:
                self._zero_device(start, end)
            except OSError as error:
                self._used = start
                raise self._error(error, f"zero the device up to offset {end}") from None

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        if length <= 0:
            return
        from . import space

        end = offset + length
        if self._used is not None:
            with self._growing:
                self.size = max(self.size, end)
                end = min(end, self._used)  # the rest is zeros already
            if offset >= end:
                return
        if end > self.size and not self.is_device:
            self._extend(end)
        try:
            if self.is_device:
                self._zero_device(offset, end)
            else:
                ways = (space.punch, space.zero_range) if unmap and self.discards else (space.zero_range,)
                if not any(way(self._fd, offset, length) for way in ways):
                    self._write_zeros(offset, end)
            self._synchronise()
        except (OSError, OverflowError) as error:
            raise self._error(error, f"zero {length} bytes at offset {offset}") from None
        finally:
            self._changed()

    def _zero_device(self, offset: int, end: int) -> None:
        from . import space

        low, high = self._sectors(offset, end)
        if low < high and space.device_zero(self._fd, low, high - low):
            self._write_zeros(offset, low)
            self._write_zeros(high, end)
        else:
            self._write_zeros(offset, end)

    def _sectors(self, offset: int, end: int) -> tuple[int, int]:
        """The whole sectors of the device in the range."""
        from . import space

        sector = space.device_sector(self._fd)
        return -(-offset // sector) * sector, end // sector * sector

    def _write_zeros(self, offset: int, end: int) -> None:
        from ...engine.zeros import ZEROS

        zeros = memoryview(ZEROS)
        for at in range(offset, end, len(ZEROS)):
            self.write(at, zeros[: end - at])

    def discard(self, offset: int, length: int) -> None:
        from . import space

        if not self.discards:
            return
        end = min(offset + length, self.size)
        try:
            if self.is_device:
                low, high = self._sectors(offset, end)
                if low < high:
                    space.device_discard(self._fd, low, high - low)
            elif offset < end:
                space.punch(self._fd, offset, end - offset)
            self._synchronise()
        except (OSError, OverflowError) as error:
            raise self._error(error, f"discard {length} bytes at offset {offset}") from None
        finally:
            self._changed()

    def truncate(self, size: int) -> None:
        if self.is_device:
            if size > self._capacity:
                raise StorageError(
                    f"the device has {self._capacity} bytes, too few for {size}", file=self.name, errno=errno.ENOSPC
                )
            with self._growing:
                if self._used is not None:
                    self.size, self._used = size, min(self._used, size)
            return
        try:
            with self._growing:
                os.ftruncate(self._fd, size)
                self.size = size
            self._synchronise()
        except (OSError, OverflowError) as error:
            raise self._error(error, f"set the size to {size} bytes") from None
        finally:
            self._changed()

    def _extend(self, end: int) -> None:
        """Let the file reach *end* at least."""
        try:
            with self._growing:
                if end > self.size:
                    os.ftruncate(self._fd, end)
                    self.size = end
        except (OSError, OverflowError) as error:
            raise self._error(error, f"set the size to {end} bytes") from None

    def allocate(self, offset: int, length: int, mode: str) -> None:
        if length <= 0:
            return
        if mode == "full":
            self._write_zeros(offset, offset + length)
            self.flush()
            return
        if self.is_device:
            if self._used is not None:
                self.truncate(max(self.size, offset + length))
            return  # its space is there
        self._change_up_to(offset, offset + length, f"allocate {length} bytes", self._claim, length)

    def _claim(self, offset: int, length: int) -> None:
        os.posix_fallocate(self._fd, offset, length)
        self._synchronise()

    def _synchronise(self) -> None:
        """In the cache modes where each write waits for the disk: wait for changes that are no writes, too."""
        if self.cache in SYNC:
            os.fdatasync(self._fd)

    def flush(self) -> None:
        self._clear(self.size)
        change = self._change
        if not self.writable or self.cache == "unsafe" or self._fd < 0 or change is self._flushed:
            return
        try:
            if self._lost is not None:
                raise self._lost  # what the kernel could not write is gone from its cache: no later flush can be good
            os.fdatasync(self._fd)
        except OSError as error:
            self._lost = error
            raise self._error(error, "flush") from None
        self._flushed = change

    # -- what it is ---------------------------------------------------------------------------------------------

    def allocated(self) -> int | None:
        return os.fstat(self._fd).st_blocks * 512

    def forget(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)  # what is not on disk cannot be dropped
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def write_behind(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # Linux writes out what it cannot drop yet
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def fileno(self) -> int | None:
        return self._fd if self._used is None else None

    def identity(self) -> object | None:
        return self._identity

    def state(self) -> str | None:
        if self.is_device:
            return None
        info = os.fstat(self._fd)
        return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"

    # -- the end ------------------------------------------------------------------------------------------------

    def settle(self, others: Sequence[Storage] = ()) -> None:
        named = [self, *(one for one in others if isinstance(one, FileStorage))]
        for one in named:
            one._finish()
        for other in others:
            if other not in named:
                other.settle()
        outputs = [one._output for one in named if one._output is not None]
        durable = self.cache != "unsafe"
        try:
            if len(outputs) > 1 and self._output is not None:
                from .output import settle_together

                settle_together(outputs, durable)
            else:
                for output in reversed(outputs):
                    output.settle(durable)
        except OSError as error:
            raise StorageError.from_os(error, self.name, "give the finished output its name") from None
        finally:
            for one in named:
                if one._output is not None and one._output.named:
                    one._output.forget()
                    one._output = None

    def _finish(self) -> None:
        """What makes it whole, before it gets its name."""
        self._clear(self.size)
        self._used = None

    @property
    def settled(self) -> bool:
        return self._output is None

    @property
    def replaces(self) -> bool:
        return self._output is not None and self._output.replaces

    def places(self) -> frozenset[object]:
        return frozenset((self._identity,)) if self._output is None else self._output.places()

    def remove(self) -> None:
        try:
            if self.is_device or not os.path.samestat(os.lstat(self.name), os.fstat(self._fd)):
                raise StorageError("it is another file by now", file=self.name, place="remove")
            os.unlink(self.name)
        except OSError as error:
            raise self._error(error, "remove") from None

    def close(self) -> None:
        if self._fd < 0:
            return
        try:
            if self._output is None and self._used is None:
                self.flush()
        finally:
            self._release()

    def abandon(self) -> None:
        if self._fd >= 0:
            self._release()

    def __del__(self) -> None:
        """Dropped without being closed: give the locks back, and say so.

        Tables that an image above has in memory are not written. Objects that go together go in any order, and an
        image is as good as at its last flush at any time.
        """
        if getattr(self, "_fd", -1) < 0:
            return
        kept = self.writable and self._output is None
        with contextlib.suppress(StorageError):
            self._release()
        text = f"'{self.name}' was dropped without being closed"
        if kept:  # of this everybody is told, and not only who asks for warnings of resources
            warnings.warn(f"{text}: what was written to it since the last flush may be lost", RuntimeWarning, 2)
        else:
            warnings.warn(text, ResourceWarning, 2, source=self)

    def _release(self) -> None:
        if self._used is not None:
            self._used = None
            with contextlib.suppress(StorageError):  # a device that fails has told so before
                self._blank_head()
        fd, self._fd = self._fd, -1
        output, self._output = self._output, None
        if output is not None:
            output.forget()
        try:
            os.close(fd)
        except OSError as error:
            raise StorageError.from_os(error, self.name, "close") from None

    def begin_anew(self) -> None:
        """Let a file be empty, or take a device for an empty file that grows."""
        if self.is_device:
            self._blank_head()
            self.size = self._used = 0
            self.blank = True
        else:
            self.truncate(0)
            self.flush()

    def go_on(self, size: int) -> None:
        if not self.is_device:
            self.truncate(size)
        elif size:
            self.size = self._used = size
            self.blank = True
        else:
            self.begin_anew()

    def _blank_head(self) -> None:
        """Let nothing on the device look like an image."""
        self._write_zeros(0, min(HEAD, self._capacity))
        self.flush()

    def _error(self, error: OSError | OverflowError, place: str) -> StorageError:
        if isinstance(error, OverflowError):
            return StorageError("beyond the largest file offset", file=self.name, place=place, errno=errno.EFBIG)
        return StorageError.from_os(error, self.name, place)
