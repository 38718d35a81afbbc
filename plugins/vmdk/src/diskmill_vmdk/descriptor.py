"""The descriptor: the text that says what a VMDK is made of.

See VMware, "Virtual Disk Format 5.0", "The Descriptor File". People and tools write it in many ways, so reading takes
any line end, case, spacing and quoting; writing gives the form that VMware's and QEMU's readers both take.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.records import field, record, replace
from diskmill.sizes import MAX_SIZE, SECTOR

LIMIT = 1 << 20
"""The longest descriptor that is read, in bytes."""
MAX_EXTENTS = 4095
"""The most extents that a descriptor may list, nearly 8 TiB in files of 2 GiB: with its own file it is 4096 files."""
NO_PARENT = 0xFFFFFFFF
"""As ``parentCID``: there is no parent."""

FLAT_TYPES = ("FLAT", "VMFS", "VMFSRDM", "VMFSRAW")
"""Extent types whose bytes are the disk's, verbatim."""
SPARSE_TYPES = ("SPARSE", "VMFSSPARSE", "SESPARSE")
"""Extent types with grain tables."""

_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS)\s+(\d{1,20})\s+([A-Z]+)(?:\s+"([^"]*)"(?:\s+(\d{1,20}))?)?', re.IGNORECASE)
_ACCESS = re.compile(r"(?:RW|RDONLY|NOACCESS)\s", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z0-9_.]+")
_ENCODING = re.compile(rb'^[ \t]*encoding[ \t]*=[ \t]*"?([^"\r\n]*)', re.IGNORECASE | re.MULTILINE)
# Numbers, to be found where they stand when they change. A line may end with a carriage return alone.
_CID = re.compile(rb"(?i)((?:\A|[\r\n])[ \t]*CID[ \t]*=[ \t]*\"?)([0-9a-fx]+)")
_PARENT_CID = re.compile(rb"(?i)((?:\A|[\r\n])[ \t]*parentCID[ \t]*=[ \t]*\"?)([0-9a-fx]+)")
_EXTENT_SIZE = re.compile(rb"(?i)((?:\A|[\r\n])[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+)(\d+)([^\r\n]*)")
_CYLINDERS = re.compile(rb"(?i)((?:\A|[\r\n])[ \t]*ddb\.geometry\.cylinders[ \t]*=[ \t]*\"?)(\d+)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_EXTENTS_TITLE = re.compile(rb"(?i)# *Extent description[^\r\n]*")
_SLOW_OR_ODD = ("idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape")
"""Encodings that no descriptor is in: those whose time grows with the square, and those of Python's own literals."""
_PLANNED_TITLE = "# Extents to be, of a resize that has not ended"
_PLANNED = re.compile(_PLANNED_TITLE.encode() + rb"((?:\n#[^\r\n]*)*)\n*\Z")


@record(frozen=True)
class ExtentLine:
    """One line of the extent section.

    :param access: ``RW``, ``RDONLY`` or ``NOACCESS``.
    :param sectors: how many sectors of the guest disk it covers.
    :param type: ``FLAT``, ``SPARSE``, ``ZERO``, …
    :param name: the file's name, as the descriptor has it; empty for ``ZERO``.
    :param offset: where a flat extent begins in its file, in sectors.
    """

    access: str
    sectors: int
    type: str
    name: str = ""
    offset: int = 0

    def __str__(self) -> str:
        line = f"{self.access} {self.sectors} {self.type}"
        if self.name:
            line += f' "{self.name}"'
        return f"{line} {self.offset}" if self.type == "FLAT" else line


@record
class Descriptor:
    """What a descriptor says; ``raw`` are its bytes, in which single values can be changed."""

    raw: bytes
    entries: dict[str, str]
    extents: list[ExtentLine]
    planned: list[ExtentLine] = field(default_factory=list)
    """Extents that a resize which has not ended was about to make longer, or to add."""

    @property
    def create_type(self) -> str | None:
        """``createType``: the disk's layout; None where it is missing."""
        return self.entries.get("createtype")

    @property
    def cid(self) -> int | None:
        """``CID``: changes whenever the contents do, from one opening to the next."""
        return _hexadecimal(self.entries.get("cid"))

    @property
    def parent_cid(self) -> int:
        """``parentCID``: what the parent's CID was when this image was made."""
        value = _hexadecimal(self.entries.get("parentcid"))
        return NO_PARENT if value is None else value

    @property
    def parent(self) -> str | None:
        """``parentFileNameHint``."""
        return self.entries.get("parentfilenamehint") or None

    @property
    def size(self) -> int:
        """Bytes in the guest disk."""
        return sum(line.sectors for line in self.extents) * SECTOR

    @property
    def cid_digits(self) -> int:
        """How many digits the CID has where it stands: another one with as many moves nothing behind it."""
        match = _CID.search(self.raw)
        return len(match.group(2)) if match else 8

    def with_cid(self, cid: int) -> bytes:
        """The bytes, with another CID."""
        return _replaced(_CID, self.raw, cid)

    def with_parent_cid(self, cid: int) -> bytes:
        """The bytes, with another parentCID."""
        return _replaced(_PARENT_CID, self.raw, cid)


def _hexadecimal(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 16) & 0xFFFFFFFF
    except ValueError:
        return None


def _replaced(pattern: re.Pattern[bytes], raw: bytes, value: int) -> bytes:
    return pattern.sub(lambda match: match.group(1) + b"%0*x" % (len(match.group(2)), value), raw, count=1)


def parse(raw: bytes, *, file: str, extents: bool = True) -> Descriptor:
    """The descriptor in *raw*, which goes up to the first zero byte.

    :param file: named in errors.
    :param extents: whether the extent section counts. It does not where it can only mean the file that the descriptor
        is embedded in, about which the extent's own header says it all.
    :raises ImageError: a line of the extent section makes no sense.
    """
    raw, _, rest = raw[:LIMIT].partition(b"\0")
    if extents and rest.strip(b"\0") and b"ddb." not in raw.lower():  # the disk database stands behind the extents
        raise ImageError("there are zero bytes in the middle of it", file=file, place="descriptor")
    entries: dict[str, str] = {}
    lines: list[ExtentLine] = []
    text = _decoded(raw).removeprefix("\ufeff")
    # Not splitlines(): it splits at characters that may stand in a file name.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = line.strip(" \t\r\f\v")
        if not line or line.startswith("#"):
            continue
        if _ACCESS.match(line):
            if len(lines) == MAX_EXTENTS:
                raise ImageError(f"more than {MAX_EXTENTS} extents", file=file, place="descriptor")
            if extents:
                lines.append(_extent(line, number, file))
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and _KEY.fullmatch(key):
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            entries.setdefault(key.lower(), value)
    descriptor = Descriptor(raw, entries, lines, _planned(raw))
    if descriptor.size > MAX_SIZE:
        raise ImageError(f"the extents add up to {descriptor.size} bytes", file=file, place="descriptor")
    return descriptor


def _codec(raw: bytes) -> tuple[str, str]:
    """The encoding of the descriptor *raw*, and how errors are dealt with."""
    match = _ENCODING.search(raw)
    name = match.group(1).decode("ascii", "replace").strip() if match else "utf-8"
    try:
        info = codecs.lookup(name)
        if getattr(info, "_is_text_encoding", True) and info.name not in _SLOW_OR_ODD:
            raw.decode(name)
            return name, "strict"
    except (LookupError, ValueError):
        pass
    # No, or not the, encoding that it claims: names then stand for the very bytes, as they do in the file system.
    return "utf-8", "surrogateescape"


def _decoded(raw: bytes) -> str:
    return raw.decode(*_codec(raw))


def _encoded(raw: bytes, text: str) -> bytes:
    """*text*, to stand in the descriptor *raw*.

    :raises UsageError: its encoding cannot say that.
    """
    try:
        return text.encode(*_codec(raw))
    except UnicodeEncodeError:
        raise UsageError("its descriptor's encoding cannot say the names of the new extents") from None


def _extent(line: str, number: int, file: str) -> ExtentLine:
    place = f"descriptor: line {number}"
    match = _EXTENT.match(line)
    if match is None:
        raise ImageError(f"not an extent: {line[:100]}", file=file, place=place)
    access, sectors, type, name, offset = match.groups()
    access, type = access.upper(), type.upper()
    if type != "ZERO" and not name:
        raise ImageError(f"an extent of type {type} needs a file name", file=file, place=place)
    if int(sectors) * SECTOR > MAX_SIZE or offset is not None and int(offset) * SECTOR > MAX_SIZE:
        raise ImageError("an extent that no file can hold", file=file, place=place)
    return ExtentLine(access, int(sectors), type, name or "", int(offset or 0))


def compose(
    *,
    create_type: str,
    cid: int,
    extents: Sequence[ExtentLine],
    size: int,
    adapter_type: str,
    hardware_version: str,
    tools_version: str,
    parent_cid: int = NO_PARENT,
    parent: str | None = None,
) -> bytes:
    """A new descriptor's text.

    :param size: the guest disk's size in bytes, for the geometry.
    :raises UsageError: a name cannot stand in a descriptor.
    :raises UnsupportedError: it becomes longer than what is read.
    """
    for name in [*(line.name for line in extents), parent or "", hardware_version, tools_version]:
        if any(char in name for char in '"\r\n\0'):
            raise UsageError("a VMDK descriptor cannot hold quotes or line ends in a name", file=name)
    # The geometry that VMware gives disks of each kind of adapter.
    heads = 16 if adapter_type == "ide" else 255
    cylinders = size // (63 * heads * SECTOR)
    plain = all(line.name.isascii() for line in extents) and (parent or "").isascii()
    # VMware assumes another encoding where names are not plain ASCII and none is given.
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        *([] if plain else ['encoding="UTF-8"']),
        f"CID={cid:08x}",
        f"parentCID={parent_cid:08x}",
        f'createType="{create_type}"',
        *([f'parentFileNameHint="{parent}"'] if parent else []),
        "",
        "# Extent description",
        *(str(line) for line in extents),
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        f'ddb.virtualHWVersion = "{hardware_version}"',
        f'ddb.geometry.cylinders = "{cylinders}"',
        f'ddb.geometry.heads = "{heads}"',
        'ddb.geometry.sectors = "63"',
        f'ddb.adapterType = "{adapter_type}"',
        f'ddb.toolsVersion = "{tools_version}"',
        "",
    ]
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    if len(text) >= LIMIT:
        raise UnsupportedError(f"a descriptor of {len(text)} bytes is too long")
    return text


def resized(
    descriptor: Descriptor, old: int, new: int, sectors: int | None, added: Sequence[ExtentLine] = (), *, file: str
) -> bytes:
    """The bytes of *descriptor*, with another size for its last extent, and with extents behind it.

    What a resize that did not end had planned is left out. A geometry that follows from the disk's size still does.

    :param old: the disk's size up to now, in bytes; *new*: its size from now on.
    :param sectors: the last extent's new size; None: it stays.
    :param file: named in errors.
    :raises ImageError: they are too many extents.
    :raises UnsupportedError: it becomes longer than what is read.
    :raises UsageError: a name cannot stand in it.
    """
    raw = without_plan(descriptor)
    matches = list(_EXTENT_SIZE.finditer(raw))
    at = matches[-1].end() if matches else next((one.end() for one in _EXTENTS_TITLE.finditer(raw)), len(raw))
    head, lines = raw[:at], list(descriptor.extents)
    if matches and sectors is not None:
        head = head[: matches[-1].start(2)] + b"%d" % sectors + head[matches[-1].end(2) :]
        lines[-1:] = [replace(line, sectors=sectors) for line in lines[-1:]]
    end = _LINE_END.search(raw)
    for line in added:
        head += (end.group(0) if end is not None else b"\n") + _encoded(raw, str(line))
        lines.append(line)
    result = _geometry(descriptor, head + raw[at:], old, new)
    if len(result) >= LIMIT:
        raise UnsupportedError(f"a descriptor of {len(result)} bytes is too long", file=file)
    # Where the lines count, they must be read as they are meant, whatever text they stand in.
    if lines and parse(result, file=file).extents != lines:
        raise UsageError("its descriptor cannot be given the new extents", file=file)
    return result


def _geometry(descriptor: Descriptor, raw: bytes, old: int, new: int) -> bytes:
    """*raw* with as many cylinders more as *new* bytes are, if up to now they were as many as *old* bytes are."""
    names = ("cylinders", "heads", "sectors")
    values = [descriptor.entries.get(f"ddb.geometry.{name}", "") for name in names]
    if not all(value.isascii() and value.isdigit() and len(value) < 20 for value in values):
        return raw
    cylinders, heads, sectors = map(int, values)
    track = heads * sectors * SECTOR
    if not track or cylinders != old // track:
        return raw
    return _CYLINDERS.sub(lambda match: match.group(1) + b"%d" % (new // track), raw, count=1)


def plan(descriptor: Descriptor, lines: Sequence[ExtentLine]) -> bytes:
    """What to put behind *descriptor* to say, in comments, that *lines* are about to be its extents."""
    text = "".join(f"{line}\n" for line in [_PLANNED_TITLE, *(f"#{line}" for line in lines)])
    before = b"" if descriptor.raw.endswith((b"\r", b"\n")) else b"\n"
    return before + _encoded(descriptor.raw, text)


def without_plan(descriptor: Descriptor) -> bytes:
    """The bytes, without what :func:`plan` put there."""
    match = _plan_in(descriptor.raw)
    return descriptor.raw if match is None else descriptor.raw[: match.start()]


def _plan_in(raw: bytes) -> re.Match[bytes] | None:
    at = raw.rfind(_PLANNED_TITLE.encode())  # looked at where it can only be: the time must not grow with the square
    return _PLANNED.match(raw, at) if at > 0 and raw[at - 1 : at] in (b"\r", b"\n") else None


def _planned(raw: bytes) -> list[ExtentLine]:
    match = _plan_in(raw)
    lines: list[ExtentLine] = []
    for line in match.group(1).decode(*_codec(raw)).split("\n") if match is not None else ():
        try:
            lines += [_extent(line.removeprefix("#"), 0, "")] if line else []
        except ImageError:
            return []  # written in part
    return lines
