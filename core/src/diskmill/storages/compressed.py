"""Whole files that are compressed (``disk.qcow2.gz``): what is inside, read once, from the first byte to the last."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ..contract.limits import READ_PER_WORK, allowed_work
from ..contract.node import ReadBuffer, Storage
from ..errors import ImageError, UnsupportedError
from ..kit.forward import ForwardStorage
from ..sizes import KiB, MiB

_INPUT = 256 * KiB
_MEMORY = 128 * MiB
"""What an xz stream may ask for its dictionary: that of ``xz -9`` is 64 MiB."""


class _Gzip:
    """zlib's decompressor with the interface of the others: at most so much at once, the rest kept."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)
        self._rest = b""

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._rest

    def decompress(self, data: bytes, length: int) -> bytes:
        plain = self._inflate.decompress(self._rest + data, length)
        self._rest = self._inflate.unconsumed_tail
        return plain


class Compression(NamedTuple):
    """A way to compress files: its name, what they begin with, and what makes a decompressor for one stream."""

    name: str
    magic: bytes
    start: Callable[[], Any]


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b\x08", _Gzip),
    Compression("xz", b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)),
    Compression("bzip2", b"BZh", bz2.BZ2Decompressor),
)


def compression_of(data: bytes) -> Compression | None:
    """How a file that begins with *data* is compressed; None: not in a way that is known here."""
    if data.startswith(b"BZh") and data[4:10] not in (b"1AY&SY", b"\x17rE8P\x90"):
        return None  # three letters are no magic: a block, or the end of an empty file, must come
    return next((one for one in COMPRESSIONS if data.startswith(one.magic)), None)


class Compressed(ForwardStorage):
    """What is inside of *file*. Streams one after the other are one, as with the programs that write them."""

    one_pass = "a compressed file"

    def __init__(self, file: Storage, compression: Compression) -> None:
        super().__init__(file.driver, file.name)
        self.place = file.place
        self.charged = file.charged
        self._file = file
        self._compression = compression
        self._stream = compression.start()
        self._at = 0
        self._waiting = b""
        self._worked = 0

    def more(self, length: int) -> bytes:
        """The next bytes, decoded."""
        kind = self._compression
        while True:
            if self._stream.eof:
                self._waiting = self._stream.unused_data + self._waiting
                if not self._waiting.strip(b"\0"):  # padding, to the end of a block or a tape
                    self._waiting = self._read()
                    if not self._waiting:
                        return b""
                    if not self._waiting.strip(b"\0"):
                        continue
                self._waiting = self._waiting.lstrip(b"\0")
                self._stream = kind.start()
            data = b""
            if self._stream.needs_input:
                data, self._waiting = self._waiting or self._read(), b""
                if not data:
                    raise ImageError(f"the {kind.name} data breaks off", file=self.name, place=f"offset {self._at}")
            try:
                plain = self._stream.decompress(data, length)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                place = f"before offset {self._at}"
                raise ImageError(f"the {kind.name} data is damaged: {error}", file=self.name, place=place) from None
            if plain:
                self._charge(len(plain))
                return bytes(plain)

    def _charge(self, count: int) -> None:
        """What a few bytes blow up to is work like any other."""
        self._worked += count
        work = self._worked >> READ_PER_WORK
        if work > self.account.limits.work:
            allowed_work(self._file, work)

    def _read(self) -> bytes:
        data = self._file.read_some(self._at, _INPUT)
        self._at += len(data)
        return data

    def write(self, offset: int, data: ReadBuffer) -> None:
        raise UnsupportedError("a compressed file can only be read", file=self.name)

    def interrupt(self) -> None:
        self._file.interrupt()

    def identity(self) -> object | None:
        return self._file.identity()

    def close(self) -> None:
        self._file.close()
