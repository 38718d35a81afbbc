"""How chunks are compressed.

For zlib, bzip2 and LZMA (in the xz container) there are libraries; for LZFSE an optional one. Apple Data Compression
has none; it is a dozen lines. Source: keramics' documentation (https://keramics.github.io/adc.html).
"""

from __future__ import annotations

import bz2
import importlib
import lzma

from diskmill.errors import UnsupportedError
from diskmill.kit.chunks import Method, zlib_method

from . import c_udif

_LZMA_MEMORY = 32 << 20
"""For a decoder: xz's presets up to 7 fit in, with dictionaries far larger than a chunk."""
_HISTORY = 1 << 16
"""How far back ADC refers."""


class AdcError(ValueError):
    """The input is no ADC."""


class AdcStream:
    """Apple Data Compression: literals, and copies of what was decoded before. It has no end of its own.

    :param length: bytes that the stream decodes to.
    """

    def __init__(self, length: int) -> None:
        self.needs_input = True
        self._left = length
        self._input = bytearray()
        self._output = bytearray()
        self._given = 0

    @property
    def eof(self) -> bool:
        """Whether all bytes were given, and there are no more."""
        return self._left <= 0 and self._given == len(self._output)

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """See :class:`diskmill.kit.chunks.Stream`."""
        self._input += data
        source, output, at = self._input, self._output, 0
        self.needs_input = False
        while len(output) - self._given < max_length:
            code = source[at] if at < len(source) else 0
            size = 1 + (code & 0x7F) + 1 if code & 0x80 else 3 if code & 0x40 else 2
            if at + size > len(source):
                self.needs_input = True
                break
            if code & 0x80:
                output += source[at + 1 : at + size]
            elif code & 0x40:
                _repeat(output, (source[at + 1] << 8 | source[at + 2]) + 1, (code & 0x3F) + 4)
            else:
                _repeat(output, ((code & 3) << 8 | source[at + 1]) + 1, (code >> 2) + 3)
            at += size
        del source[:at]
        plain = bytes(output[self._given : self._given + max_length])
        self._given += len(plain)
        self._left -= len(plain)
        if self._given > 4 * _HISTORY:
            del output[: self._given - _HISTORY]
            self._given = _HISTORY
        return plain


def _repeat(output: bytearray, distance: int, count: int) -> None:
    """Append *count* bytes that stand *distance* back; they may run into themselves."""
    if distance > len(output):
        raise AdcError("it refers to what is before its start")
    piece = output[-distance:]
    output += (piece * (count // distance + 1))[:count]


_LZFSE_HEADERS = {b"bvx-": 8, b"bvxn": 12, b"bvx1": 772, b"bvx2": 32}
"""Bytes in the header of each kind of block, those of ``bvx2`` that it has at least."""


class LzfseStream:
    """LZFSE, a block at a time: the library decodes a buffer whole, however much comes out of it.

    A block refers to what was decoded before it, so that is put before it, as a block that is not compressed. At most
    some 26 MB come out of one: 10,000 matches of no more than 2359 bytes, and literals.

    :param length: bytes that the stream decodes to.
    """

    _HISTORY = 1 << 18

    def __init__(self, length: int) -> None:
        try:
            self._library = importlib.import_module("lzfse")
        except ImportError:
            raise UnsupportedError("LZFSE chunks need a library: pip install 'diskmill-dmg[lzfse]'") from None
        self.needs_input = True
        self.eof = False
        self._left = length
        self._input = bytearray()
        self._output = bytearray()
        self._given = 0

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """See :class:`diskmill.kit.chunks.Stream`."""
        self._input += data
        self.needs_input = False
        while len(self._output) - self._given < max_length and not self._ended():
            size = self._block_size()
            if size > len(self._input):
                self.needs_input = True
                break
            block = bytes(self._input[:size])
            del self._input[:size]
            self._decode(block)
        plain = bytes(self._output[self._given : self._given + max_length])
        self._given += len(plain)
        self.eof = self._ended() and self._given == len(self._output)
        if self._given > 4 * self._HISTORY:
            del self._output[: self._given - self._HISTORY]
            self._given = self._HISTORY
        return plain

    def _ended(self) -> bool:
        return self._input.startswith(b"bvx$")

    def _block_size(self) -> int:
        """Bytes of the next block with its header; where that cannot be told yet, more than there are."""
        head = self._input
        if len(head) < 4:
            return 4
        header = _LZFSE_HEADERS.get(bytes(head[:4]))
        if header is None:
            raise ValueError(f"unknown LZFSE block {bytes(head[:4])!r}")
        if len(head) < header:
            return header
        if header == 8:
            return header + _number(head, 4)
        if header == 12:
            return header + _number(head, 8)
        if header == 772:
            return header + _number(head, 20) + _number(head, 24)
        literals, matches = _number(head, 8, 8), _number(head, 16, 8)
        return _number(head, 24) + (literals >> 20 & 0xFFFFF) + (matches >> 40 & 0xFFFFF)

    def _decode(self, block: bytes) -> None:
        claimed = _number(block, 4)
        if claimed > self._left:
            raise ValueError(f"an LZFSE block of {claimed} bytes")
        if block.startswith(b"bvx-"):
            plain = block[8:]
        else:
            before = bytes(self._output[-self._HISTORY :])
            prefix = b"bvx-" + len(before).to_bytes(4, "little") + before if before else b""
            try:
                plain = self._library.decompress(prefix + block + b"bvx$")[len(before) :]
            except self._library.error:
                raise ValueError("an LZFSE block cannot be decoded") from None
        if len(plain) != claimed:
            raise ValueError(f"an LZFSE block of {len(plain)} bytes, not {claimed}")
        self._left -= claimed
        self._output += plain


def _number(data: bytes | bytearray, offset: int, size: int = 4) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


METHODS: dict[int, Method] = {
    c_udif.ADC: Method("ADC", AdcStream, (AdcError,)),
    c_udif.ZLIB: zlib_method(),
    c_udif.BZIP2: Method("bzip2", lambda length: bz2.BZ2Decompressor(), (OSError, ValueError)),
    c_udif.LZFSE: Method("LZFSE", LzfseStream, (ValueError,)),
    c_udif.LZMA: Method(
        "LZMA",
        lambda length: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
        (lzma.LZMAError,),
    ),
}
"""By the type of the chunk."""
