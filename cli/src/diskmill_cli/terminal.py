"""Results for a person at a terminal: tables, colours, and a picture of where the data lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diskmill.errors import printable
from diskmill.sizes import format_size
from rich import box
from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from .output import clock, date, scalar

if TYPE_CHECKING:
    from diskmill.commands.drivers import DriverInfo
    from diskmill.contract.options import Option as DriverOption
    from diskmill.contract.results import CheckResult, Comparison, ImageInfo, Limits, MapEntry, Measurement, Snapshot

_STYLES = {"data": "green", "backing": "blue", "zero": "bright_black", "hole": "bright_black"}
_CELLS = {"data": "█", "backing": "▓", "zero": "░", "hole": "·"}
_MEANING = {"data": "data", "backing": "data of a backing image", "zero": "zeros", "hole": "not allocated"}
_WIDE = 70
"""Columns from which on tables have all they can tell."""
_MOST_ROWS = 1000
"""Ranges that are listed at most: more nobody reads."""


def _text(text: str, style: str = "") -> Text:
    """*text* out of an image: no markup, and nothing that the terminal would obey."""
    return Text(printable(text), style)


def _pairs() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan")
    table.add_column(overflow="fold")
    return table


def _both(count: int) -> Text:
    """A size for people, with the exact bytes."""
    return Text.assemble(format_size(count), (f"  {count} bytes", "bright_black"))


def show_info(found: Sequence[ImageInfo], console: Console) -> None:
    """A panel for each image."""
    for one in found:
        parts: list[Any] = [_facts(one)]
        if one.snapshots:
            parts += [Text(), snapshot_table(one.snapshots)]
        if (one.specific or {}).get("bitmaps"):
            parts += [Text(), bitmap_table((one.specific or {})["bitmaps"])]
        if one.limits is not None:
            parts += [Text(), _limits(one.limits)]
        if one.specific:
            parts += [Text(), _specific(one)]
        console.print(Panel(Group(*parts), title=_text(one.filename, "bold"), title_align="left", expand=False))


def _facts(one: ImageInfo) -> Table:
    table = _pairs()
    table.add_row("format", _text(one.format, "bold"))
    table.add_row("virtual size", _both(one.virtual_size))
    table.add_row("on disk", "unknown" if one.actual_size is None else _both(one.actual_size))
    if one.cluster_size is not None:
        table.add_row("cluster size", format_size(one.cluster_size))
    if one.encrypted:
        table.add_row("encrypted", Text("yes", "yellow"))
    if one.dirty:
        table.add_row("closed properly", Text("no", "red"))
    if one.backing_filename is not None:
        full = one.full_backing_filename
        where = "" if full in (None, one.backing_filename) else f" ({full})"
        table.add_row("backing image", _text(f"{one.backing_filename}{where}"))
        table.add_row("its format", _text(one.backing_filename_format or "not recorded"))
    return table


def _limits(limits: Limits) -> Tree:
    tree = Tree(Text("limits", "bold cyan"), guide_style="bright_black")
    _grow(tree, {key.replace("_", "-"): value for key, value in vars(limits).items() if value is not None})
    return tree


def _specific(one: ImageInfo) -> Tree:
    tree = Tree(_text(one.format, "bold cyan"), guide_style="bright_black")
    _grow(tree, {key: value for key, value in (one.specific or {}).items() if key != "bitmaps"})
    return tree


def bitmap_table(bitmaps: Sequence[Mapping[str, Any]]) -> Table:
    """The persistent bitmaps, as QAPI's ``Qcow2BitmapInfo`` tells them."""
    table = Table(box=box.SIMPLE_HEAD, title="Bitmaps", title_justify="left")
    table.add_column("name", overflow="fold", min_width=8)
    table.add_column("granularity", justify="right", overflow="fold")
    table.add_column("flags", overflow="fold")
    for one in bitmaps:
        flags = _text(", ".join(one["flags"]))
        table.add_row(_text(str(one["name"]), "bold"), format_size(int(one["granularity"])), flags)
    return table


def _grow(tree: Tree, value: Any) -> None:
    pairs = value.items() if isinstance(value, Mapping) else ((f"[{index}]", one) for index, one in enumerate(value))
    for key, one in pairs:
        label = _text(key.replace("-", " "), "cyan")
        if isinstance(one, Mapping | list | tuple):
            _grow(tree.add(label), one)
        else:
            tree.add(label.append(printable(f"  {scalar(one)}"), "default"))


def snapshot_table(snapshots: Sequence[Snapshot]) -> Table:
    """The internal snapshots."""
    table = Table(box=box.SIMPLE_HEAD, title="Snapshots", title_justify="left")
    table.add_column("ID", overflow="fold")
    table.add_column("name", overflow="fold", min_width=8)
    table.add_column("taken", overflow="fold", min_width=10)
    table.add_column("VM state", justify="right", overflow="fold")
    table.add_column("VM clock", justify="right", overflow="fold")
    for one in snapshots:
        table.add_row(_text(one.id), _text(one.name, "bold"), date(one), format_size(one.vm_state_size), clock(one))
    return table


def show_map(entries: Iterable[MapEntry], console: Console) -> None:
    """A strip of the whole range, then its pieces: the first of them, where there are many."""
    picture = Strip()
    first: list[MapEntry] = []
    count = 0
    for count, entry in enumerate(entries, 1):
        picture.add(entry.start, entry.length, _kind(entry))
        if count <= _MOST_ROWS:
            first.append(entry)
    if not first:
        console.print("The disk has no bytes there.")
        return
    console.print(picture.drawn(console.width - 2))
    legend = [
        Text.assemble((_CELLS[kind], _STYLES[kind]), f" {_MEANING[kind]}") for kind in _MEANING if kind in picture.kinds
    ]
    console.print(Columns(legend, padding=(0, 3)))
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("from", "length"):
        table.add_column(heading, justify="right", min_width=10)
    table.add_column("", no_wrap=True)
    wide = console.width >= _WIDE
    if wide:
        for heading in ("depth", "at", "file"):
            table.add_column(heading, justify="left" if heading == "file" else "right", overflow="fold")
    for entry in first:
        kind = _kind(entry)
        text = Text(_MEANING[kind] + (", compressed" if entry.compressed else ""), _STYLES[kind])
        where = "" if entry.offset is None else hex(entry.offset)
        more = (str(entry.depth), where, _text(entry.filename or "")) if wide else ()
        table.add_row(hex(entry.start), format_size(entry.length), text, *more)
    console.print(table)
    if count > len(first):
        console.print(f"… and {count - len(first)} more; --output=json lists all of them")


class Strip:
    """A picture of a guest range: cells that show what most of their bytes are.

    It takes any number of pieces, in order, and keeps at most :attr:`CELLS` counters: they come to stand for twice as
    many bytes each whenever the range outgrows them.
    """

    CELLS = 4096

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self._grain = 1
        self._start: int | None = None
        self._end = 0
        self._cells: list[dict[str, int]] = []

    def add(self, start: int, length: int, kind: str) -> None:
        """The next *length* bytes, from *start* on, are of *kind*."""
        self.kinds.add(kind)
        if self._start is None:
            self._start = start
        low, high = start - self._start, start - self._start + length
        while high > self._grain * self.CELLS:
            self._cells = [_sum(self._cells[at : at + 2]) for at in range(0, len(self._cells), 2)]
            self._grain *= 2
        self._end = high
        for number in range(low // self._grain, -(-high // self._grain)):
            if number == len(self._cells):
                self._cells.append({})
            cell, at = self._cells[number], number * self._grain
            cell[kind] = cell.get(kind, 0) + min(high, at + self._grain) - max(low, at)

    def drawn(self, width: int) -> Text:
        """The range as *width* cells."""
        picture = Text(" ")
        for column in range(width):
            low = column * self._end // width // self._grain
            high = max(low + 1, -(-(column + 1) * self._end // width) // self._grain)
            count = _sum(self._cells[low:high])
            # A little data among many zeros is what one looks for: it shows.
            kind = max(count, key=lambda one: count[one] * (4 if one in ("data", "backing") else 1))
            picture.append(_CELLS[kind], _STYLES[kind])
        return picture


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for kind, value in count.items():
            total[kind] = total.get(kind, 0) + value
    return total


def _kind(entry: MapEntry) -> str:
    if entry.data and not entry.zero:
        return "backing" if entry.depth else "data"
    return "zero" if entry.present else "hole"


def show_check(result: CheckResult, console: Console, *, dry_run: bool = False) -> None:
    """What was found, the worst first, and the verdict; *dry_run*: of a repair that was only planned."""
    styles = {"corruption": "red", "error": "red", "leak": "yellow"}
    order = {"corruption": 0, "error": 1, "leak": 2}
    for finding in sorted(result.findings, key=lambda one: order.get(one.kind, 3)):
        mark = "fixed " if finding.fixed else ""
        console.print(
            _text(f"{mark}{finding.kind}: {finding.text}", "green" if finding.fixed else styles[finding.kind])
        )
    if result.corruptions or result.check_errors:
        counts = f"{result.corruptions} corruptions, {result.check_errors} errors, {result.leaks} leaked clusters"
        verdict = Text(counts, "bold red")
    elif result.leaks:
        verdict = Text(f"{result.leaks} leaked clusters: space is lost, data is not", "bold yellow")
    else:
        verdict = Text("No errors were found.", "bold green")
    console.print(verdict)
    if result.corruptions_fixed or result.leaks_fixed:
        word = "Would be repaired" if dry_run else "Repaired"
        console.print(f"{word}: {result.corruptions_fixed} corruptions, {result.leaks_fixed} leaked clusters.")
    table = _pairs()
    total, used = result.total_clusters, result.allocated_clusters
    if total and used:
        table.add_row("allocated", f"{used} of {total} clusters, {100 * used / total:.2f} %")
        table.add_row("fragmented", f"{100 * (result.fragmented_clusters or 0) / used:.2f} %")
        table.add_row("compressed", f"{100 * (result.compressed_clusters or 0) / used:.2f} %")
    if result.image_end_offset:
        table.add_row("image ends at", _both(result.image_end_offset))
    if table.row_count:
        console.print(table)


def show_comparison(result: Comparison, console: Console) -> None:
    """The verdict."""
    if result.size_differs:
        console.print(Text("The disks are of different sizes.", "yellow"))
    console.print(_text(result.message, "bold green" if result.identical else "bold red"))


def show_measurement(result: Measurement, console: Console) -> None:
    """The sizes, for people and exactly."""
    table = _pairs()
    table.add_row("needed now", _both(result.required))
    table.add_row("fully allocated", _both(result.fully_allocated))
    if result.bitmaps is not None:
        table.add_row("bitmaps", _both(result.bitmaps))
    console.print(table)


_MARKS = {
    "create": "c",
    "write": "w",
    "backing": "b",
    "compression": "z",
    "check": "k",
    "repair": "r",
    "resize": "g",
    "shrink": "h",
    "snapshots": "s",
    "bitmaps": "m",
    "encryption": "e",
}
_MARKED = {
    "create": "created",
    "write": "written",
    "backing": "backing images",
    "compression": "compressed",
    "check": "checked",
    "repair": "repaired",
    "resize": "grown",
    "shrink": "shrunk",
    "snapshots": "snapshots",
    "bitmaps": "bitmaps",
    "encryption": "encrypted",
}
"""What a driver can do, as a letter in a column of its own, and what that stands for."""


def show_drivers(found: Sequence[DriverInfo], console: Console) -> None:
    """A line for each driver."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold underline")
    table.add_column("driver", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("can", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for one in found:
        if one.broken:
            table.add_row(_text(one.name, "bold red"), one.kind, "", _text(f"broken: {one.broken}", "red"))
            continue
        marks = "".join(letter if name in one.capabilities else "·" for name, letter in _MARKS.items())
        can = Text(marks if one.kind in ("format", "protocol") else "", "green")
        table.add_row(_text(one.name, "bold"), one.kind, can, _text(one.title))
    console.print(table)
    legend = Text(", ".join(f"{letter} {_MARKED[name]}" for name, letter in _MARKS.items()), "bright_black")
    console.print(Text(), legend, sep="\n")
    console.print(Text("All about one: diskmill drivers NAME", "bright_black"))


def show_driver(found: Sequence[DriverInfo], console: Console) -> None:
    """Everything about each of *found*."""
    from diskmill.contract.drivers import CAPABILITIES

    for one in found:
        facts = _pairs()
        facts.add_row("kind", one.kind)
        facts.add_row("what it is", _text(one.title))
        if one.broken:
            facts.add_row("broken", _text(one.broken, "red"))
        if one.package:
            facts.add_row("package", _text(f"{one.package} {one.version}"))
        facts.add_row("from", _text(one.origin))
        if one.prefixes:
            facts.add_row("names", _text(", ".join(f"{prefix}:…" for prefix in one.prefixes)))
        if one.capabilities:
            facts.add_row("can", Text("\n".join(CAPABILITIES.get(name, name) for name in one.capabilities), "green"))
        parts: list[Any] = [facts]
        if one.options:
            parts += [Text(), _options(one.options, console)]
        console.print(Panel(Group(*parts), title=_text(one.name, "bold"), title_align="left", expand=False))


def _options(options: Iterable[DriverOption], console: Console) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Options", title_justify="left", padding=(0, 1), pad_edge=False)
    wide = console.width >= _WIDE
    table.add_column("name", overflow="fold", min_width=14, no_wrap=wide)
    if wide:
        table.add_column("value", overflow="fold")
        table.add_column("for", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for option in options:
        values = ", ".join(option.choices) or {"bool": "on, off", "int": "number", "str": "text"}.get(
            option.type, option.type
        )
        default = "" if option.default is None else f" [default: {scalar(option.default)}]"
        when = ", ".join(option.when)
        if wide:
            table.add_row(_text(option.name, "bold"), _text(values), when, _text(f"{option.help}{default}"))
        else:
            table.add_row(_text(option.name, "bold"), _text(f"{option.help} ({values}; {when}){default}"))
    return table
