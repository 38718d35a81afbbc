"""A node's bytes as a Python file object."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .node import Node


class DiskStream(io.RawIOBase):
    """A guest disk as a file object: for ``io.BufferedReader``, ``tarfile``, ``shutil.copyfileobj`` and the like.

    Closing it does not close the image.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._at = 0
        self.name = node.name
        self.mode = "rb+" if node.writable else "rb"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} mode={self.mode!r}{' closed' if self.closed else ''}>"

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def readable(self) -> bool:
        self._refuse_closed()
        return True

    def seekable(self) -> bool:
        self._refuse_closed()
        return True

    def writable(self) -> bool:
        self._refuse_closed()
        return self._node.writable

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._refuse_closed()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._node.size}.get(whence)
        if base is None:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if base + offset < 0:
            raise ValueError(f"offset {base + offset} is before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As :meth:`io.RawIOBase.readinto`: bytes of the disk from here on."""
        self._refuse_closed()
        view = memoryview(buffer).cast("B")
        count = max(min(len(view), self._node.size - self._at), 0)
        if count:
            self._node.read_into(self._at, view[:count])
            self._at += count
        return count

    def write(self, data: Any) -> int:
        """As :meth:`io.RawIOBase.write`. The disk does not grow: what lies beyond its end is not taken.

        :raises OSError: (ENOSPC) nothing of it is.
        """
        self._refuse_closed()
        if not self._node.writable:
            raise io.UnsupportedOperation("the image is open for reading only")
        view = memoryview(data).cast("B")
        count = max(min(len(view), self._node.size - self._at), 0)
        if count < len(view) and count == 0:
            raise OSError(28, "the disk ends here", self._node.name)
        self._node.write(self._at, view[:count])
        self._at += count
        return count
