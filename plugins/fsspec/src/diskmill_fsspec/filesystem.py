"""The other way round: the disk inside an image as a file of fsspec, ``diskmill::URL-OF-THE-IMAGE``.

See https://filesystem-spec.readthedocs.io, "URL chaining".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import diskmill
from fsspec.core import open as open_url  # type: ignore[import-untyped]
from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]

DISK = "disk.raw"
"""The one file that there is. The root is taken for it, too, so that a URL need not name it."""


class DiskFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The guest disk of an image, as a file for reading.

    :param fo: the image: what :func:`diskmill.open` takes, or the path in a file system of *target_protocol*.
    :param format: the image's format; None: probe.
    :param settings: what else :func:`diskmill.open` takes (``trust``, ``secrets``, ``snapshot``).
    """

    protocol = "diskmill"
    root_marker = ""
    cachable = False

    def __init__(
        self,
        fo: Any,
        *,
        format: str | None = None,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._below: BinaryIO | None = None
        if target_protocol not in (None, "file", "local"):
            self._below = fo = open_url(fo, "rb", protocol=target_protocol, **(target_options or {})).open()
        try:
            self.image = diskmill.open(fo, format, **settings)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the image. A file of it that is open still reads no more."""
        if hasattr(self, "image"):
            self.image.close()
        if self._below is not None:
            self._below.close()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path not in ("", DISK):
            raise FileNotFoundError(path)
        return {"name": path, "size": self.image.size, "type": "file" if path else "directory"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self.info(path)
        return [self.info(DISK)] if detail else [DISK]

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> BinaryIO:
        self.info(path)
        if mode != "rb":
            raise NotImplementedError("the disk of an image is a file for reading here")
        return self.image.open_stream(block_size or -1)
