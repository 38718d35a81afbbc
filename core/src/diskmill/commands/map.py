"""``map``: where the bytes of a guest disk live, through the whole backing chain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, cast

from ..contract import calls
from ..contract.extents import Extent, Kind
from ..contract.limits import allowed_work
from ..contract.node import Image, Node
from ..contract.references import Reference
from ..contract.results import MapEntry
from ..engine.walk import walk
from ..errors import DiskmillError
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name, parse_name
from ..opening.places import place_named, place_of, place_under, storage_of
from ..opening.registry import Registry
from .info import full_name


def map(
    name: Name,
    *,
    format: str | None = None,
    start: int = 0,
    length: int | None = None,
    image_opts: bool = False,
    context: Context | None = None,
) -> Iterator[MapEntry]:
    """The guest ranges of the image *name* and how each is stored, in order and without gaps.

    Neighbours that are stored alike come as one entry. The image is open while the iterator is used.

    :param start: the first guest byte; *length*: how many; None: up to the disk's end.
    :raises DiskmillError: the image cannot be opened or read.
    """
    name = given_name(name)
    context = context or Context()
    with open_image(name, format, context=context, image_opts=image_opts) as image:
        end = image.size if length is None else min(start + length, image.size)
        yield from entries(image, start, end, context)


def entries(image: Image, start: int, end: int, context: Context) -> Iterator[MapEntry]:
    """Guest bytes *start* to *end* of the opened *image*, as :func:`map` gives them."""
    names: dict[int, str] = {}
    above: Image | None = image
    shown = image.name
    depth = 0
    while above is not None:  # the names that a user knows, not those that the gate resolved
        names[depth] = shown
        backing = next((reference.name for reference in above.references if reference.role == "backing"), None)
        shown = (backing and full_name(shown, backing, context.registry)) or (
            above.backing.name if above.backing else ""
        )
        above, depth = above.backing, depth + 1
    return _merged(_entries(image, start, end, names, context))


class _Level(NamedTuple):
    """An image that is being mapped: its extents, the image, its depth in the chain, what its offsets are moved by,
    and whether its storage is asked for holes."""

    source: Iterator[Extent]
    image: Image | None
    depth: int
    shift: int
    sparse: bool


def _entries(top: Image, start: int, end: int, names: dict[int, str], context: Context) -> Iterator[MapEntry]:
    """Guest bytes *start* to *end* of *top*, neighbours not merged. Without recursion, as chains can be long."""
    asked: dict[int, bool] = {}
    files = _Files(context.registry)

    def look(image: Image, start: int, end: int, depth: int, shift: int) -> _Level:
        if start >= end:
            return _Level(iter(()), image, depth, shift, False)
        if id(image) not in asked:
            asked[id(image)] = _mostly_holes(image)
        found = calls.map(context.registry, image, start, end - start)
        return _Level(iter(found), image, depth, shift, asked[id(image)])

    level = look(top, start, end, 0, 0)
    stack: list[_Level] = []
    work, most = 0, top.account.limits.work
    while True:
        source, image, depth, shift, sparse = level
        last = image is None or image.backing is None
        plain: Node | None = None  # a file of this level whose holes are not the guest's, and its name: most lies there
        name = ""
        for extent in source:
            work += 1
            if work > most:
                most = allowed_work(top, work=work)
            at, length, kind, node, offset, *_ = extent
            if kind is Kind.HOLE and last:
                yield MapEntry(at + shift, length, depth, present=False, zero=True, data=False)
            elif kind is Kind.DATA and node is plain is not None:
                yield MapEntry(at + shift, length, depth, True, False, True, False, offset, name)
            elif image is None:
                raise AssertionError("only what lies beyond an image comes without one")
            elif kind is Kind.HOLE:
                stack.append(level)
                backing, down = cast("Image", image.backing), depth + 1
                while (
                    backing.backing is not None
                    and extent.end <= backing.size
                    and backing.vacant(extent.start, extent.length)
                ):
                    backing, down, work = backing.backing, down + 1, work + 1
                inside = max(min(extent.end, backing.size), extent.start)
                if inside < extent.end:
                    hole = Extent(inside, extent.end - inside, Kind.HOLE)
                    stack.append(_Level(iter((hole,)), None, down - 1, shift, False))
                level = look(backing, extent.start, inside, down, shift)
                break
            elif kind is Kind.DATA and isinstance(node, Image):
                stack.append(level)
                moved = shift + at - offset
                level = look(node, offset, offset + length, depth, moved)
                break
            elif kind is Kind.DATA and node is not None and (sparse or files.is_extent(image, node)):
                moved = shift + at - offset
                marks = node.marks(offset, length)
                if marks is not None:
                    yield from _marked(extent, marks, moved, files.name(extent, image, names[depth]), depth)
                    continue
                for part in walk(node, extent.offset, extent.length):
                    work += 1
                    yield _entry(part, image, depth, names, files, start=part.start + moved, hole=part.reads_as_zeros)
            else:
                if kind is Kind.DATA and node is not None:
                    plain, name = node, files.name(extent, image, names[depth])
                yield _entry(extent, image, depth, names, files, start=extent.start + shift)
        else:
            if not stack:
                return
            level = stack.pop()


def _entry(
    extent: Extent, image: Image, depth: int, names: dict[int, str], files: _Files, *, start: int, hole: bool = False
) -> MapEntry:
    zero = hole or extent.reads_as_zeros
    encoded = extent.kind is Kind.ENCODED
    placed = extent.node is not None and not encoded
    return MapEntry(
        start,
        extent.length,
        depth,
        present=True,
        zero=zero,
        # Of a format with tables, space that was claimed but never written is still data of the format's own.
        data=not zero or hole and (image.window is None or bool(image.preallocated)),
        compressed=encoded and extent.unit > 0,
        offset=extent.offset if placed else None,
        filename=files.name(extent, image, names[depth]) if placed else None,
    )


def _marked(
    extent: Extent, marks: Iterator[tuple[int, bool, bool]], moved: int, name: str, depth: int
) -> Iterator[MapEntry]:
    """An extent as the marks of its storage have it."""
    at = extent.offset
    for length, data, zero in marks:
        present = data or zero
        yield MapEntry(
            at + moved,
            length,
            depth,
            present=present,
            zero=zero,
            data=data,
            offset=at if present else None,
            filename=name if present else None,
        )
        at += length


class _Files:
    """What images say about the files that their data lies in: there may be thousands, each with its own name."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._names: dict[tuple[int, int], str] = {}
        self._extents: dict[tuple[int, int], bool] = {}
        self._known: dict[int, dict[object, Reference]] = {}

    def name(self, extent: Extent, image: Image, shown: str) -> str:
        """The name of the file that *extent* lives in: as the user named the image, or as the image names it."""
        node = extent.node
        assert node is not None
        key = id(image), id(node)
        if key not in self._names:
            self._names[key] = shown if storage_of(image) is node else self._as_named(image, node, shown)
        return self._names[key]

    def _as_named(self, image: Image, node: Node, shown: str) -> str:
        reference = self._reference(image, node)
        full = full_name(shown, reference.name, self._registry) if reference else None
        if not full:
            return node.name
        return full if full.startswith("json:") else place_of(parse_name(full)["file"], self._registry).tidy()

    def is_extent(self, image: Image, node: Node) -> bool:
        """Whether *node* is a file of plain data, whose holes are the guest's."""
        key = id(image), id(node)
        if key not in self._extents:
            reference = None if node is image.file else self._reference(image, node)
            self._extents[key] = reference is not None and reference.role == "extent"
        return self._extents[key]

    def _reference(self, image: Image, node: Node) -> Reference | None:
        """What *image* says about its child *node*, a file of its data."""
        if id(image) not in self._known:
            known, place = self._known.setdefault(id(image), {}), place_under(image)
            for reference in image.references:
                if reference.role == "backing":
                    continue
                with suppress(DiskmillError):  # the user may have named another file: this may be no name at all
                    known.setdefault(place_named(reference.name, place, self._registry).identity(), reference)
        identity = None if node is None else node.identity()
        return None if identity is None else self._known[id(image)].get(identity)


def _mostly_holes(image: Image) -> bool:
    """Whether storage must be asked for its holes.

    Always where the file is the guest disk. Of other formats only where much of the file was never written, which is
    what preallocated metadata looks like: the same rule as QEMU's, so that ``map`` answers alike.
    """
    if image.window is not None:
        return True
    if image.preallocated is not None:
        return image.preallocated
    storage = storage_of(image)
    allocated = storage.allocated()
    if allocated is None:
        return False
    real = allocated // image.unit
    return -(-storage.size // image.unit) >= max(real * 10 // 9, real + 2)


def _merged(entries: Iterator[MapEntry]) -> Iterator[MapEntry]:
    last: MapEntry | None = None
    for entry in entries:
        # What differs most often is asked first: of a scattered image there are a hundred thousand.
        if last is not None and last.present == entry.present and _continues(last, entry):
            last.length += entry.length
            continue
        if last is not None:
            yield last
        last = entry
    if last is not None:
        yield last


def _continues(last: MapEntry, entry: MapEntry) -> bool:
    alike = (last.depth, last.present, last.zero, last.data, last.compressed, last.filename) == (
        entry.depth,
        entry.present,
        entry.zero,
        entry.data,
        entry.compressed,
        entry.filename,
    )
    if not alike or (last.offset is None) != (entry.offset is None):
        return False
    return last.offset is None or entry.offset is None or last.offset + last.length == entry.offset
