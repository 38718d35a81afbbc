"""Opening images from Python, and reading them like files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .contract.context import Context
from .contract.node import Image
from .opening.gate import Trust
from .opening.graph import open_image


def open(
    name: str | Mapping[str, Any],
    format: str | None = None,
    *,
    writable: bool = False,
    trust: Trust | None = None,
    secrets: Mapping[str, bytes] | None = None,
    share: bool = False,
    backing: bool = True,
    context: Context | None = None,
) -> Image:
    """Open a disk image; use it as a context manager, or close it.

    The image has ``size`` (bytes), ``read(offset, length)``, ``write(offset, data)``, ``zero``, ``discard``,
    ``flush``, ``extents`` and ``stream()``, a file object.

    :param name: a path, ``protocol:…``, ``json:{…}``, or node options (``{"driver": "raw", "file": …}``).
    :param format: the driver's name; None: probe. Name it for images from strangers: a raw disk can look like anything.
    :param writable: open for writing; the image is locked against other writers, QEMU's included.
    :param trust: which references inside the image may be opened; by default those in the image's own folder.
    :param secrets: secret id → passphrase, for encrypted images.
    :param share: open an image that another process is writing; what is read may be inconsistent.
    :param backing: whether to open the backing chain; without it, its data reads as zeros.
    :param context: settings to go by; the arguments above change a copy of them.
    :raises DiskmillError: it cannot be opened; the message is one line that says why.
    """
    context = context or Context()
    context = replace(
        context,
        trust=trust or context.trust,
        secrets={**context.secrets, **(secrets or {})},
        share=share or context.share,
    )
    return open_image(name, format, context=context, writable=writable, backing=backing)


class DiskStream(io.RawIOBase):
    """A guest disk as a file object: for ``io.BufferedReader``, ``tarfile``, ``shutil.copyfileobj`` and the like.

    Closing it does not close the image.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._image.writable

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._image.size}.get(whence)
        if base is None:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if base + offset < 0:
            raise ValueError(f"offset {base + offset} is before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(min(len(view), self._image.size - self._at), 0)
        if count:
            self._image.read_into(self._at, view[:count])
            self._at += count
        return count

    def write(self, data: Any) -> int:
        if not self._image.writable:
            raise io.UnsupportedOperation("the image is open for reading only")
        view = memoryview(data).cast("B")
        count = max(min(len(view), self._image.size - self._at), 0)
        if count < len(view) and count == 0:
            raise OSError(28, "the disk ends here", self._image.name)
        self._image.write(self._at, view[:count])
        self._at += count
        return count
