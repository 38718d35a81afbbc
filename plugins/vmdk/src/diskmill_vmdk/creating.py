"""New disks: the extents first, the descriptor that names them last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.errors import UnsupportedError, UsageError
from diskmill.sizes import SECTOR, GiB

from .descriptor import MAX_EXTENTS, NO_PARENT, ExtentLine, compose, parse
from .hosted import DESCRIPTOR_AT, DESCRIPTOR_ROOM, GRAIN, HostedPart, make_extent, read_header
from .image import VmdkImage, new_cid
from .parts import FlatPart, Part
from .stream import StreamWriter

if TYPE_CHECKING:
    from diskmill.contract.drivers import FormatDriver
    from diskmill.contract.node import Storage
    from diskmill.contract.requests import CreateRequest

SPLIT = 2 * GiB
"""The largest extent of the split subformats."""
HARDWARE_VERSION = "4"
TOOLS_VERSION = "2147483647"
"""VMware's number for tools that it did not install."""


def create_vmdk(driver: FormatDriver, request: CreateRequest) -> VmdkImage:
    """A new disk, as the request's options say."""
    options = request.options
    subformat = str(options["subformat"])
    flat, split, stream = "Flat" in subformat, subformat.startswith("twoGb"), subformat == "streamOptimized"
    zeroed = bool(options["zeroed_grain"])
    if options["compat6"] and "hwversion" in options:
        raise UsageError("compat6 sets the hardware version: hwversion cannot be given too")
    if zeroed and (flat or stream):
        raise UnsupportedError(f"subformat {subformat} has no zeroed grains", file=request.name)
    if request.backing is not None and flat:
        raise UnsupportedError(f"subformat {subformat} cannot have a backing file", file=request.name)
    level = options.get("compression_level")
    if level is not None and not stream:
        raise UsageError("compression_level is for the subformat streamOptimized", file=request.name)
    if level is not None and not 1 <= int(level) <= 9:
        raise UsageError(f"compression_level must be 1 to 9, not {level}", file=request.name)
    file = request.output()
    if file.forward and request.backing is not None:
        raise UnsupportedError(f"a disk that is written to {file.one_pass} cannot have a backing file", file=file.name)
    lines = list(_lines(request, flat=flat, split=split))
    parent_cid, parent = _parent(request)
    text = compose(
        create_type=subformat,
        cid=new_cid(),
        extents=lines,
        size=request.size,
        adapter_type=str(options["adapter_type"]),
        hardware_version="6" if options["compat6"] else str(options.get("hwversion", HARDWARE_VERSION)),
        tools_version=str(options.get("toolsversion", TOOLS_VERSION)),
        parent_cid=parent_cid,
        parent=parent,
    )
    room = 0 if flat or split else DESCRIPTOR_ROOM * SECTOR
    if room and len(text) > room:
        raise UsageError(f"names that are too long: the descriptor has room for {room} bytes", file=request.name)
    image = VmdkImage(
        driver,
        file,
        name=request.name,
        size=request.size,
        writable=True,
        descriptor=parse(text, file=request.name),
        create_type=subformat,
        at=DESCRIPTOR_AT * SECTOR if room else 0,
        room=room,
    )
    parts: list[Part] = []
    if stream:
        parts.append(StreamWriter(file, request.size, name=request.name, descriptor=text))
        image.sequential = True
        image.compression_level = None if level is None else int(level)
    elif not flat and not split:
        make_extent(file, request.size, zeroed=zeroed)
        file.write(DESCRIPTOR_AT * SECTOR, text)
        parts.append(HostedPart(file, read_header(file, name=request.name), 0, name=request.name))
    else:
        nodes = [request.sibling(line.name) for line in lines]  # before anything is written: two may be one file
        file.write(0, text)
        start = 0
        for index, (line, node) in enumerate(zip(lines, nodes, strict=True)):
            image.adopt(index, node)
            parts.append(make_part(node, line, start, zeroed=zeroed))
            start = parts[-1].end
    image.set_parts(parts)
    image.changed = True  # nobody knows its content id yet
    return image


def make_part(node: Storage, line: ExtentLine, start: int, *, zeroed: bool, grain: int = GRAIN) -> Part:
    """The new extent *line*, for guest bytes from *start* on, in the empty file *node*.

    :param zeroed: whether a sparse one marks grains of zeros; *grain*: how many sectors those are.
    """
    length = line.sectors * SECTOR
    if line.type == "FLAT":
        node.truncate(length)
        return FlatPart(node, start, length, name=node.name, offset=0)
    make_extent(node, length, zeroed=zeroed, grain=grain)
    return HostedPart(node, read_header(node, name=node.name), start, name=node.name)


def _lines(request: CreateRequest, *, flat: bool, split: bool) -> Iterator[ExtentLine]:
    """The extents, named as VMware names them."""
    base = os.path.basename(request.file.name if request.file is not None else request.name)
    stem, suffix = os.path.splitext(base)
    kind = "FLAT" if flat else "SPARSE"
    if not split:
        yield ExtentLine("RW", request.size // SECTOR, kind, f"{stem}-flat{suffix}" if flat else base)
        return
    if request.size > MAX_EXTENTS * SPLIT:
        raise UnsupportedError(f"more than {MAX_EXTENTS} extents", file=request.name)
    for number, at in enumerate(range(0, request.size, SPLIT), 1):
        length = min(SPLIT, request.size - at)
        yield ExtentLine("RW", length // SECTOR, kind, piece_name(base, number, flat=flat))


def piece_name(name: str, number: int, *, flat: bool) -> str:
    """The file of extent *number*, from 1 on, of the split disk *name*."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{'f' if flat else 's'}{number:03}{suffix}"


def _parent(request: CreateRequest) -> tuple[int, str | None]:
    """The parent's content id, and its name."""
    backing = request.backing
    if backing is None:
        return NO_PARENT, None
    if backing.format not in (None, "vmdk"):
        raise UsageError(f"the backing file must be a vmdk image, not {backing.format}", file=request.name)
    if backing.details is None or "cid" not in backing.details:
        raise UsageError(
            "the backing file must be a vmdk image that can be opened: its content id is needed", file=request.name
        )
    return int(backing.details["cid"]), backing.name
