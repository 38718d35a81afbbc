"""Compressed clusters: raw deflate (compression_type zlib) and zstd.

Source: the specification's sections "Additional fields" (compression_type) and "Compressed Clusters Descriptor". The
payload of a cluster may be followed by bytes of the next one: decoding stops when a cluster's worth is there.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

from diskmill.errors import ImageError

if TYPE_CHECKING:
    import zstandard
    from diskmill.extents import Extent

_WINDOW_BITS = 12
"""What other readers of the format allocate for deflate's window."""
_DEFLATE_LEVEL = 2
"""Of isal's 0 to 3: 2 is as fast as 1 to a few percent; 3 takes half as long again for half a percent of size."""
_ZSTD_LEVEL = 1


class _Codec:
    granularity = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def damaged(self, extent: Extent, why: object) -> ImageError:
        return ImageError(
            f"compressed data of guest offset {extent.start - extent.skip} is damaged: {why}",
            file=self.name,
            place=f"offset {extent.offset}",
        )


class DeflateCodec(_Codec):
    """Raw deflate, by isal."""

    def decode(self, extent: Extent, payload: memoryview) -> bytes:
        """The cluster that *payload* begins with."""
        from isal import igzip_lib

        # A full window is allowed for: some writers use more than the 12 bits that QEMU does.
        stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE, hist_bits=15)
        try:
            plain = stream.decompress(payload, extent.unit)
        except cast(type[Exception], igzip_lib.error) as error:  # its stub types the class as an instance
            raise self.damaged(extent, error) from None
        if len(plain) != extent.unit:
            raise self.damaged(extent, f"{len(plain)} bytes come out of it, not {extent.unit}")
        return bytes(plain)


class ZstdCodec(_Codec):
    """One zstd frame a cluster."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._local = threading.local()

    def decode(self, extent: Extent, payload: memoryview) -> bytearray:
        """The cluster that *payload* begins with."""
        import zstandard

        decompressor: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if decompressor is None:
            # The frame says how much memory its window needs; more than a cluster's worth cannot be of use.
            self._local.decompressor = decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 23)
        plain = bytearray(extent.unit)
        try:
            # A stream, because a frame that claims a huge size must not get the memory for it.
            with decompressor.stream_reader(payload) as stream:
                count = stream.readinto(plain)
                while 0 < count < extent.unit:
                    more = stream.readinto(memoryview(plain)[count:])
                    if not more:
                        break
                    count += more
        except zstandard.ZstdError as error:
            raise self.damaged(extent, error) from None
        if count != extent.unit:
            raise self.damaged(extent, f"{count} bytes come out of it, not {extent.unit}")
        return plain


class DeflateEncoder:
    """Raw deflate, by isal."""

    def encode(self, start: int, data: memoryview) -> bytes | None:
        """The payload, or None where it is no smaller than the cluster."""
        from isal import igzip_lib

        payload: bytes = igzip_lib.compress(
            data, level=_DEFLATE_LEVEL, flag=igzip_lib.COMP_DEFLATE, hist_bits=_WINDOW_BITS
        )
        return payload if len(payload) < len(data) else None


class ZstdEncoder:
    """One zstd frame a cluster."""

    def __init__(self) -> None:
        self._local = threading.local()

    def encode(self, start: int, data: memoryview) -> bytes | None:
        """The payload, or None where it is no smaller than the cluster."""
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            import zstandard

            self._local.compressor = compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        payload: bytes = compressor.compress(data)
        return payload if len(payload) < len(data) else None


def codec(compression_type: int, name: str) -> DeflateCodec | ZstdCodec:
    """The decoder for an image called *name*."""
    return ZstdCodec(name) if compression_type else DeflateCodec(name)


def encoder(compression_type: int) -> DeflateEncoder | ZstdEncoder:
    """The encoder for a compression_type."""
    return ZstdEncoder() if compression_type else DeflateEncoder()
