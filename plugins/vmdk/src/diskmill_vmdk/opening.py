"""Opening: what a file is (a descriptor, an extent, both), and what its extents are."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from diskmill.contract.node import Node
from diskmill.contract.references import Reference
from diskmill.errors import ImageError, UnsupportedError
from diskmill.sizes import MAX_SIZE, SECTOR, MiB, round_up

from .descriptor import FLAT_TYPES, LIMIT, NO_PARENT, SPARSE_TYPES, Descriptor, parse
from .extents import open_hosted
from .hosted import footer_of, is_compressed, read_header, require_writable
from .image import VmdkImage
from .parts import MissingPart, Part, ZeroPart
from .structures import COWD_MAGIC, GD_AT_END, SPARSE_MAGIC

if TYPE_CHECKING:
    from diskmill.contract.drivers import FormatDriver
    from diskmill.contract.requests import OpenRequest

    from .structures import SparseExtentHeader

_PIECE = re.compile(r"(.+)-[sf]\d{3}\.vmdk", re.IGNORECASE)
"""What VMware and QEMU call the pieces of a disk."""
_FOREIGN = re.compile(r"[A-Za-z]:[\\/]|\\\\|\[[^\]]*\] ?|/vmfs/volumes/")
"""How paths begin that mean something elsewhere: drives, shares, datastores."""
OWN_CREATE_TYPES = ("monolithicsparse", "streamoptimized")
"""Create types whose only extent is the file that the descriptor is embedded in."""


def open_vmdk(driver: FormatDriver, request: OpenRequest) -> VmdkImage:
    """The image in ``request.file``."""
    file = request.below()
    magic = file.read(0, min(4, file.size))
    if magic == SPARSE_MAGIC:
        image = _open_hosted(driver, request, file)
    elif magic == COWD_MAGIC:
        image = _open_cowd(driver, request, file)
    elif file.forward:
        raise UnsupportedError("only streamOptimized images can be read from a pipe", file=request.name)
    else:
        descriptor = parse(file.read(0, min(file.size, LIMIT)), file=request.name)
        image = _open_descriptor(driver, request, file, descriptor)
    if image.descriptor is not None and image.descriptor.parent is not None:
        parent = Reference("backing", _parent_name(image.descriptor.parent), format=driver.name)
        image.references = [*image.references, parent]
    elif image.parent_cid not in (NO_PARENT, 0):
        request.context.warn(
            f"'{request.name}' has a parent (CID {image.parent_cid:08x}) but does not name it: "
            "what it does not hold reads as zeros"
        )
    if request.writable and not image.references:
        image.check_writable()
    return image


def _parent_name(hint: str) -> str:
    """The parent's name here. A path of Windows or of an ESX datastore leads nowhere on this machine: what it names is
    looked for beside the image, and its CID tells whether it is the one."""
    if _FOREIGN.match(hint):
        return "./" + re.split(r"[\\/]", hint)[-1]
    return hint


def _open_hosted(driver: FormatDriver, request: OpenRequest, file: Node) -> VmdkImage:
    name = request.name
    header = read_header(file, name=name)
    descriptor, at, room = None, 0, 0
    if header.descriptorOffset:
        at, room = header.descriptorOffset * SECTOR, min(header.descriptorSize * SECTOR, LIMIT)
        if at > MAX_SIZE or at + room > round_up(file.size, SECTOR):
            raise ImageError("the descriptor lies beyond the end of the file", file=name, place="header")
        descriptor = parse(file.read(at, room), file=name, extents=not header.capacity)
        if not descriptor.entries:
            descriptor = None  # an extent of a larger disk: the room for a descriptor is empty
    if descriptor is not None and not header.capacity:
        kind = (descriptor.create_type or "").lower()
        if kind not in OWN_CREATE_TYPES and descriptor.extents:
            return _open_descriptor(driver, request, file, descriptor, at=at, room=room)
    if request.writable:
        require_writable(header, name=name)
    if descriptor is None:
        _tell_lone(request)
    part: Part
    if _cut_short(header, file, name) and request.excuses("grain directory"):
        part = MissingPart(0, header.capacity * SECTOR, name=name, why="the file is cut short")
        part.compressed = is_compressed(header)
    else:
        part = open_hosted(file, header, 0, name=name, scan=bool(request.options.get("scan")))
    image = VmdkImage(
        driver,
        file,
        name=name,
        size=part.end,
        writable=request.writable,
        descriptor=descriptor,
        # Tools that convert leave a stale type behind: what the header says is what the extent is.
        create_type="streamOptimized"
        if is_compressed(header)
        else (descriptor and descriptor.create_type) or "monolithicSparse",
        at=at,
        room=room,
    )
    image.set_parts([part])
    image.cut_short = isinstance(part, MissingPart)
    if request.shallow and not image.cut_short and file.size <= _BEGINNING:
        _tell_missing(request, part)
    return image


_BEGINNING = 1 * MiB
"""What may be the first part of a download: callers take 64 KiB to learn what an image is."""


def _tell_missing(request: OpenRequest, part: Part) -> None:
    """Warn where the tables are all there, and what they point to is not."""
    try:
        for _ in part.extents(part.start, part.end - part.start):
            pass
    except ImageError:
        request.context.warn(f"'{request.name}' is cut short: data lies behind the end of the file")


def _cut_short(header: SparseExtentHeader, file: Node, name: str) -> bool:
    """Whether the file ends before the grain directory does."""
    if file.forward:
        return False
    if header.gdOffset == GD_AT_END:
        try:
            footer_of(file, header, name=name)
        except ImageError:
            return bool(header.capacity)
        return False
    return bool(header.overHead * SECTOR > file.size)


def _tell_lone(request: OpenRequest) -> None:
    """An extent without a descriptor is opened by itself.

    :raises ImageError: its name says that it is a piece of a larger disk.
    """
    name = os.path.basename(request.name)
    piece = _PIECE.fullmatch(name)
    if piece is not None:
        whole = f"{piece.group(1)}.vmdk"
        cause = f"it is one piece of a disk in several: open its descriptor, which should be called '{whole}'"
        raise ImageError(cause, file=request.name)
    request.context.warn(
        f"'{request.name}' is an extent without a descriptor: if it is a piece of a larger disk, the rest is missing"
    )


def _open_cowd(driver: FormatDriver, request: OpenRequest, file: Node) -> VmdkImage:
    from .esx import open_cowd

    if request.writable:
        raise UnsupportedError("a COWD extent can only be read", file=request.name)
    _tell_lone(request)
    part = open_cowd(file, 0, name=request.name)
    image = VmdkImage(
        driver,
        file,
        name=request.name,
        size=part.end,
        writable=False,
        descriptor=None,
        create_type="vmfsSparse",
    )
    image.set_parts([part])
    return image


def _open_descriptor(
    driver: FormatDriver, request: OpenRequest, file: Node, descriptor: Descriptor, *, at: int = 0, room: int = 0
) -> VmdkImage:
    """A disk whose extents are other files."""
    name = request.name
    create_type = descriptor.create_type
    if create_type is None:
        raise ImageError("not a VMDK: neither an extent nor a descriptor with a createType", file=name)
    if not re.fullmatch(r"[A-Za-z0-9]+", create_type):
        raise ImageError(f"no createType can be '{create_type[:40]}'", file=name, place="descriptor")
    image = VmdkImage(
        driver,
        file,
        name=name,
        size=descriptor.size,
        writable=request.writable,
        descriptor=descriptor,
        create_type=create_type,
        at=at,
        room=room,
        siblings=request.siblings if not room else None,
    )
    parts: list[Part] = []
    references = []
    start = 0
    for index, line in enumerate(descriptor.extents):
        length = line.sectors * SECTOR
        if line.type == "ZERO":
            parts.append(ZeroPart(None, start, length, name=name))
        elif line.type not in FLAT_TYPES + SPARSE_TYPES:
            raise UnsupportedError(f"an extent of type {line.type}", file=name)
        elif line.access == "NOACCESS":
            why = f"the descriptor allows no access to the extent '{line.name}'"
            parts.append(MissingPart(start, length, name=name, why=why))
        else:
            why = f"the extent '{line.name}' was not opened"
            parts.append(MissingPart(start, length, name=name, why=why))
            references.append(
                # Never a protocol: the name is a path, with colons or without.
                Reference(
                    "extent",
                    line.name if line.name.startswith("/") else f"./{line.name}",
                    writable=line.access == "RW" and line.type not in ("VMFSSPARSE", "SESPARSE"),
                    storage=True,
                    key=index,
                )
            )
        start += length
    image.set_parts(parts)
    image.references = references
    return image
