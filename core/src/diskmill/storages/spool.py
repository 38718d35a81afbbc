"""Temporary copies (``--spool``): what only comes or goes once, in a file that is read and written anywhere."""

from __future__ import annotations

import os
import tempfile

from ..contract.node import Buffer, ReadBuffer, Storage
from ..engine.zeros import is_zero
from ..errors import StorageError
from ..kit.forward import foretell
from ..sizes import MiB


class Spool(Storage):
    """An unnamed temporary file in place of *base*: deleted when it is closed, or the process ends.

    :param folder: where it lies; empty: in the system's folder for temporary files.
    """

    def __init__(self, base: Storage, folder: str, *, writable: bool) -> None:
        self.driver, self.name, self.place = base.driver, base.name, base.place
        self.charged = base.charged
        self.writable = writable
        self.size = 0
        self._base = base
        self._settled = not writable
        try:
            self._file = tempfile.TemporaryFile(prefix="diskmill-", dir=folder or None, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise StorageError.from_os(error, folder or tempfile.gettempdir(), "make a temporary copy") from None

    def fill(self) -> None:
        """Take all that comes from what it stands for.

        :raises StorageError: that fails, or the temporary file cannot hold it.
        """
        at = 0
        while data := self._base.read_some(at, MiB):
            if not is_zero(data):
                self._put(at, data)
            at += len(data)
        self.truncate(at)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        while view:
            try:
                count = os.preadv(self._file.fileno(), [view], offset)
            except OSError as error:
                raise StorageError.from_os(error, self.name, f"read the temporary copy at {offset}") from None
            if not count:
                view[:] = bytes(len(view))
                return
            view, offset = view[count:], offset + count

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._put(offset, data)
        self.size = max(self.size, offset + len(memoryview(data).cast("B")))

    def _put(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            try:
                count = os.pwrite(self._file.fileno(), view, offset)
            except OSError as error:
                raise StorageError.from_os(error, self.name, f"write the temporary copy at {offset}") from None
            view, offset = view[count:], offset + count

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._file.fileno(), size)
        except OSError as error:
            raise StorageError.from_os(error, self.name, "size the temporary copy") from None
        self.size = size

    def flush(self) -> None:
        """It is never looked at again after a crash."""

    def settle(self, others: object = ()) -> None:
        """Send it on its way."""
        if self._settled:
            return
        foretell(self._base, self.size)
        for at in range(0, self.size, MiB):
            self._base.write(at, self.read(at, min(MiB, self.size - at)))
        self._base.settle()
        self._settled = True

    @property
    def settled(self) -> bool:
        return self._settled

    def close(self) -> None:
        self._file.close()
        self._base.close()
