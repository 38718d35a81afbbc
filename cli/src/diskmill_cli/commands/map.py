"""``diskmill map``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from diskmill.contract.results import MapEntry

    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.map import map

    name = arguments.operand()
    start = arguments.size("start", "start offset")
    length = arguments.size("length", "maximum length") if arguments.has("length") else None
    entries = map(
        name,
        format=arguments.one("format"),
        start=start,
        length=length,
        image_opts=arguments.has("image_opts"),
        context=common.context_of(arguments, session),
    )
    if arguments.one("output") == "json":
        session.print_all(json_lines(entries, start), ours=True)
    elif session.fancy(arguments):
        from ..terminal import show_map

        show_map(entries, session.console())
    else:
        session.print_all(lines(entries))
    return 0


def json_lines(entries: Iterable[MapEntry], start: int) -> Iterator[str]:
    """One entry a line, as qemu-img lays it out, so that a map of any length streams."""
    from diskmill.qapi import map_members

    before = "["
    for entry in entries:
        if before == "[":
            before = f"[{{ {map_members(entry)}}},"
        else:
            yield before
            before = f"{{ {map_members(entry)}}},"
    if before == "[":  # qemu-img's way to say that there is nothing
        nothing = '"depth": 0, "present": false, "zero": false, "data": false, "compressed": false'
        before = f'[{{ "start": {start}, "length": 0, {nothing}}},'
    yield before[:-1] + "]"


def lines(entries: Iterable[MapEntry]) -> Iterator[str]:
    """The table of ranges that hold data in some file.

    :raises UnsupportedError: a range of data is compressed, encrypted or otherwise not to be found in a file.
    """
    from diskmill.errors import UnsupportedError

    heading: str | None = f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File"
    for entry in entries:
        if not entry.data or entry.zero:
            continue
        if entry.offset is None:
            raise UnsupportedError("the image has compressed, encrypted or external data: use --output=json")
        if heading:  # only now: what cannot be mapped prints nothing that looks like a map
            yield heading
            heading = None
        yield f"{_hex(entry.start)}{_hex(entry.length)}{_hex(entry.offset)}{entry.filename}"
    if heading:
        yield heading


def _hex(value: int) -> str:
    return f"{value and hex(value)!s:<16}"


COMMAND = Command(
    "map",
    "Show where the disk's bytes live.",
    "NAME",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option("start", ("-s", "--start-offset"), "Begin at this byte of the disk.", "OFFSET", panel="The image"),
        Option("length", ("-l", "--max-length"), "Show no more than so many bytes.", "LENGTH", panel="The image"),
        common.OUTPUT,
        *common.ACCESS,
    ),
    run,
    about="Backing images are looked through: the depth says how far down the chain a range was found.",
    examples=(
        Example("diskmill map disk.qcow2", "a picture of the disk, and its ranges"),
        Example("diskmill map --output=json disk.qcow2", "every range, zeros and holes included, for programs"),
    ),
)
