"""Clusters compressed with raw deflate, as qcow and qcow2 keep them. By isal, which the drivers that use this bring.

The payload of a cluster may be followed by bytes of the next one: decoding stops when a cluster's worth is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..errors import ImageError

if TYPE_CHECKING:
    from ..contract.extents import Extent

_WINDOW_BITS = 12
"""What other readers of these formats allocate for deflate's window."""
_LEVEL = 2
"""Of isal's 0 to 3: 2 is as fast as 1 to a few percent; 3 takes half as long again for half a percent of size."""


def damaged(name: str, extent: Extent, why: object) -> ImageError:
    """The error for a compressed cluster of the image *name* that cannot be decoded."""
    return ImageError(
        f"compressed data of guest offset {extent.start - extent.skip} is damaged: {why}",
        file=name,
        place=f"offset {extent.offset}",
    )


class DeflateCodec:
    """A :class:`~diskmill.contract.extents.Codec` for the clusters of the image called *name*."""

    granularity = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
        """The cluster that *payload* begins with."""
        from isal import igzip_lib

        # A full window is allowed for: some writers use more than the 12 bits that QEMU does.
        stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE, hist_bits=15)
        try:
            plain = stream.decompress(payload, extent.unit)
        except cast(type[Exception], igzip_lib.error) as error:  # its stub types the class as an instance
            raise damaged(self.name, extent, error) from None
        if len(plain) != extent.unit:
            raise damaged(self.name, extent, f"{len(plain)} bytes come out of it, not {extent.unit}")
        return bytes(plain)


class DeflateEncoder:
    """An :class:`~diskmill.contract.extents.Encoder`.

    :param level: zlib's, 1 to 9; None: isal's, which is many times as fast, and a few percent larger than zlib's 6.
    """

    def __init__(self, level: int | None = None) -> None:
        self._level = level

    def encode(self, start: int, data: memoryview) -> bytes | None:
        """The payload, or None where it is no smaller than the cluster."""
        payload = _by_isal(data) if self._level is None else _by_zlib(data, self._level)
        return payload if len(payload) < len(data) else None


def _by_isal(data: memoryview) -> bytes:
    from isal import igzip_lib

    payload: bytes = igzip_lib.compress(data, level=_LEVEL, flag=igzip_lib.COMP_DEFLATE, hist_bits=_WINDOW_BITS)
    return payload


def _by_zlib(data: memoryview, level: int) -> bytes:
    import zlib

    stream = zlib.compressobj(level, zlib.DEFLATED, -_WINDOW_BITS, 9)
    return stream.compress(data) + stream.flush()
