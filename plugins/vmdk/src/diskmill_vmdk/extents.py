"""Extents, opened: which class of part a line of the descriptor, or a header, asks for."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from diskmill.contract.node import Node
from diskmill.errors import ImageError, UnsupportedError
from diskmill.sizes import SECTOR, round_up

from .descriptor import FLAT_TYPES, ExtentLine
from .grains import CompressedPart, GrainPart
from .hosted import HostedPart, footer_of, geometry, is_compressed, read_header, require_writable
from .parts import FlatPart, Part
from .stream import GrainCodec
from .structures import COWD_MAGIC, FLAG_MARKERS, GD_AT_END

if TYPE_CHECKING:
    from .structures import SparseExtentHeader


def open_extent(line: ExtentLine, node: Node, start: int, *, writable: bool, longer: Collection[int] = ()) -> Part:
    """The part that *line* of a descriptor stands for, in the file that it names.

    :param writable: whether the image is open for writing.
    :param longer: how many sectors it may hold instead.
    """
    length, name = line.sectors * SECTOR, node.name
    part: Part
    if line.type in FLAT_TYPES:
        return FlatPart(
            node, start, length, name=name, offset=line.offset * SECTOR, writable=writable and line.access == "RW"
        )
    if line.type == "SESPARSE":
        from .esx import open_sesparse

        part = open_sesparse(node, start, name=name)
    elif node.read(0, min(4, node.size)) == COWD_MAGIC:
        from .esx import open_cowd

        part = open_cowd(node, start, name=name)
    else:
        header = read_header(node, name=name)
        if writable and line.access == "RW":
            require_writable(header, name=name)
        part = open_hosted(node, header, start, name=name)
        part.writable = part.writable and line.access == "RW"
    if writable and line.access == "RW" and not part.writable:
        raise UnsupportedError(f"extents of type {line.type} of ESX can only be read", file=name)
    have = part.end - part.start
    fits = length <= have <= round_up(length, part.unit) or (have > length and have // SECTOR in longer)
    if not fits:
        raise ImageError(f"it holds {have} bytes of a disk, but the descriptor says {length}", file=name)
    part.end = start + length
    return part


def open_hosted(node: Node, header: SparseExtentHeader, start: int, *, name: str, scan: bool = False) -> Part:
    """The part that the extent in *node* is.

    :param scan: find compressed grains by their markers.
    """
    if is_compressed(header):
        return open_stream(node, header, start, name=name, scan=scan)
    if node.forward:
        raise UnsupportedError("only streamOptimized images can be read from a pipe", file=name)
    if header.gdOffset == GD_AT_END:  # a stream of grains that are not compressed: written once, like any stream
        valid = footer_of(node, header, name=name)
        if header.flags & FLAG_MARKERS:
            raise UnsupportedError("markers before grains that are not compressed", file=name)
        return GrainPart(node, start, valid.capacity * SECTOR, **geometry(valid, node, name))
    return HostedPart(node, header, start, name=name)


def open_stream(node: Node, header: SparseExtentHeader, start: int, *, name: str, scan: bool) -> Part:
    """The compressed extent in *node*, whose *header* stands at its begin."""
    if scan or node.forward:
        if not header.flags & FLAG_MARKERS:
            raise UnsupportedError("it has no markers: it cannot be read without its tables", file=name)
        from .walking import WalkedPart

        return WalkedPart(node, header, start, name=name)
    valid = footer_of(node, header, name=name)
    length = valid.capacity * SECTOR
    markers = bool(header.flags & FLAG_MARKERS)
    codec = GrainCodec(start, start + length, markers=markers, name=name)
    return CompressedPart(node, start, length, codec=codec, markers=markers, **geometry(valid, node, name))
