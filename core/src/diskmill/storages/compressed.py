"""Whole files that are compressed (``disk.qcow2.gz``): what is inside, read once, from the first byte to the last."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ..contract.limits import allowed_decoding
from ..contract.node import ReadBuffer, Storage
from ..engine.zeros import ZEROS
from ..errors import ImageError, UnsupportedError
from ..kit.forward import ForwardStorage
from ..sizes import KiB, MiB

_INPUT = 256 * KiB
_EMPTY = 16
"""Bytes of a disk that is empty that count as one decoded: zstd has 30,000 of those in a byte."""
_MEMORY = 80 * MiB
"""What a decoder of xz may take for its dictionary: that of ``xz -9`` is 64 MiB."""
_WINDOW_LOG = 26
"""The same for zstd: a window of 64 MiB, of which ``zstd -19`` has 8."""


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


def _gzip() -> Any:
    """isal's where it is there, which most drivers of compressed formats bring: it is twice as fast."""
    try:
        igzip = importlib.import_module("isal.igzip_lib")
    except ImportError:
        return _Gzip()
    return igzip.IgzipDecompressor(flag=igzip.DECOMP_GZIP)


def _xz() -> Any:
    import lzma  # as bz2, it is slow to import, and every copy looks for compressed sources

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)


def _bzip2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


def _zstd() -> Any:
    zstd = _library("backports.zstd")
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


def _lz4() -> Any:
    return _library("lz4.frame").LZ4FrameDecompressor()


def _library(name: str) -> Any:
    """The module *name*, which not everybody needs.

    :raises UnsupportedError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        text = "files that are compressed so need a library: pip install 'diskmill[compressed]'"
        raise UnsupportedError(text) from None


class Compression(NamedTuple):
    """A way to compress files: its name, what they begin with, and what makes a decompressor for one stream."""

    name: str
    magic: bytes
    start: Callable[[], Any]


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b\x08", _gzip),
    Compression("xz", b"\xfd7zXZ\0", _xz),
    Compression("bzip2", b"BZh", _bzip2),
    Compression("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    Compression("lz4", b"\x04\x22\x4d\x18", _lz4),
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
        self.drained = True
        self.place = file.place
        self.charged = file.charged
        self._file = file
        self._compression = compression
        try:
            self._stream = compression.start()
        except UnsupportedError as error:
            error.file = file.name
            raise
        self._at = 0
        self._waiting = b""
        self._worked = self._most = 0

    def more(self, length: int) -> bytes:
        """The next bytes, decoded."""
        kind = self._compression
        while True:
            if self._stream.eof:
                self._waiting = (self._stream.unused_data or b"") + self._waiting
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
            except MemoryError:
                raise
            except Exception as error:  # each library has errors of its own
                text = f"the {kind.name} data cannot be decoded: {error}"
                raise ImageError(text, file=self.name, place=f"before offset {self._at}") from None
            if plain:
                self._charge(plain)
                return bytes(plain)

    def _charge(self, plain: bytes) -> None:
        """What a few bytes blow up to is work; less so where the disk is empty: that takes next to nothing to store."""
        self._worked += len(plain) // (_EMPTY if ZEROS.startswith(plain) else 1)
        if self._worked > self._most:
            self._most = allowed_decoding(self, self._worked, self._at)

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
