"""Compressed clusters: raw deflate (compression_type zlib) and zstd.

Source: the specification's sections "Additional fields" (compression_type) and "Compressed Clusters Descriptor". The
payload of a cluster may be followed by bytes of the next one: decoding stops when a cluster's worth is there.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from diskmill.kit.deflate import DeflateCodec, DeflateEncoder, damaged

if TYPE_CHECKING:
    import zstandard
    from diskmill.contract.extents import Extent

_ZSTD_LEVEL = 1


class ZstdCodec:
    """One zstd frame a cluster."""

    granularity = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self._local = threading.local()

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> memoryview:
        """The cluster that *payload* begins with."""
        import zstandard

        try:
            decompressor = self._local.decompressor
        except AttributeError:
            # The frame says how much memory its window needs; more than a cluster's worth cannot be of use.
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 23)
        try:
            # A stream, because a frame that claims a huge size must not get the memory for it.
            stream = decompressor.stream_reader(payload)
            count = stream.readinto(into)
            while 0 < count < extent.unit:
                more = stream.readinto(into[count:])
                if not more:
                    break
                count += more
        except zstandard.ZstdError as error:
            raise damaged(self.name, extent, error) from None
        if count != extent.unit:
            raise damaged(self.name, extent, f"{count} bytes come out of it, not {extent.unit}")
        return into


class ZstdEncoder:
    """One zstd frame a cluster.

    :param level: 1 to 19; None: 1.
    """

    def __init__(self, level: int | None = None) -> None:
        self._level = _ZSTD_LEVEL if level is None else level
        self._local = threading.local()

    def encode(self, start: int, data: memoryview) -> bytes | None:
        """The payload, or None where it is no smaller than the cluster."""
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            import zstandard

            self._local.compressor = compressor = zstandard.ZstdCompressor(level=self._level)
        payload: bytes = compressor.compress(data)
        return payload if len(payload) < len(data) else None


def codec(compression_type: int, name: str) -> DeflateCodec | ZstdCodec:
    """The decoder for an image called *name*."""
    return ZstdCodec(name) if compression_type else DeflateCodec(name)


def encoder(compression_type: int, level: int | None = None) -> DeflateEncoder | ZstdEncoder:
    """The encoder for a compression_type; level None: the fast one."""
    return ZstdEncoder(level) if compression_type else DeflateEncoder(level)
