"""XML from strangers, read into a small tree within bounds.

Descriptors of images use little of XML: elements, text, a document type that names a public identifier. What a few
bytes could be made large with is refused or left aside: an internal document type (entities, default attributes),
namespaces (each tag would carry its own copy of a long name), attributes. Counts are bounded before anything is built,
by the characters that every element and every attribute needs. Source: Extensible Markup Language (XML) 1.0, fifth
edition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any
from xml.parsers import expat

from ..errors import ImageError

MOST = 100_000
"""Tags, and attributes, in a document at most: an image's descriptor has some dozen for each partition or snapshot."""
_DEEPEST = 64
"""Elements inside one another; descriptors have less than ten."""

_ENCODINGS = ("utf-8", "utf-16", "us-ascii", "iso-8859-1")
"""What the parser knows by itself. Others would be any codec that Python has."""


class Element:
    """An element: its *tag*, prefix included; its *text*, that of its children aside; its *children*; and those of its
    *attributes* that were wanted, by their names without prefix."""

    __slots__ = ("attributes", "children", "tag", "text")

    def __init__(self, tag: str, attributes: dict[str, str] = {}) -> None:  # noqa: B006  nobody changes it
        self.tag = tag
        self.attributes = attributes
        self.text = ""
        self.children: list[Element] = []

    def find(self, path: str) -> Element | None:
        """The first element at *path*, tags with slashes between them; None: there is none."""
        return next(self.all(path), None)

    def all(self, path: str) -> Iterator[Element]:
        """Every element at *path*."""
        tag, _, rest = path.partition("/")
        for child in self.children:
            if child.tag == tag:
                yield from child.all(rest) if rest else (child,)

    def text_at(self, path: str, default: str = "") -> str:
        """The text of the first element at *path*, without white space around it."""
        found = self.find(path)
        return default if found is None else found.text.strip()


def parse(
    data: bytes,
    *,
    file: str,
    place: str | None = None,
    encoding: str | None = None,
    attributes: Collection[str] = (),
) -> Element:
    """The root element of the document *data*, which somebody has bounded in size.

    :param attributes: names, without prefix, of the attributes that are wanted.
    :param encoding: what it is encoded in, whatever it says itself; None: what it says.
    :raises ImageError: it is not well-formed, or asks for more than a descriptor needs; *file* and *place* are named.
    """
    for sign, what in ((b"<", "tags"), (b"=", "attributes")):
        if data.count(sign) > MOST:
            raise ImageError(f"it has more than {MOST} {what}", file=file, place=place)
    builder = _Builder(attributes)
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True  # else each line is a string of its own
    parser.buffer_size = 1 << 16
    parser.ordered_attributes = True  # few are wanted: as lists they are the smallest
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.document_type
    if encoding is None:
        parser.XmlDeclHandler = builder.declaration
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise ImageError(f"it is not well-formed XML ({error})", file=file, place=place) from None
    return builder.root.children[0]


class _Builder:
    """What the parser calls."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = wanted
        self.root = Element("")
        self._open: list[tuple[Element, list[str]]] = [(self.root, [])]
        """The elements that have not ended, the outermost first, and the pieces of their text."""

    def start(self, tag: str, attributes: Any) -> None:
        if len(self._open) > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} elements inside one another")
        element = Element(tag)
        if self._wanted and attributes:
            pairs = zip(attributes[::2], attributes[1::2], strict=True)
            told = {name.rpartition(":")[2]: value for name, value in pairs}
            element.attributes = {name: told[name] for name in self._wanted if name in told}
        self._open[-1][0].children.append(element)
        self._open.append((element, []))

    def text(self, piece: str) -> None:
        self._open[-1][1].append(piece)

    def end(self, tag: str) -> None:
        element, pieces = self._open.pop()
        element.text = "".join(pieces)

    def declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in _ENCODINGS:
            raise ValueError(f"the encoding '{encoding[:40]}' is not read")

    def document_type(self, name: str, system: str | None, public: str | None, internal: bool) -> None:
        if internal:
            raise ValueError("a document type with declarations of its own is not read")
