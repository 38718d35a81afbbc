"""Results for a person at a terminal: tables, colours, and a picture of where the data lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diskmill.errors import printable
from diskmill.sizes import format_size
from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from .output import clock, date, scalar

if TYPE_CHECKING:
    from diskmill.commands.drivers import DriverInfo
    from diskmill.results import CheckResult, ImageInfo, MapEntry, Measurement, Snapshot

_STYLES = {"data": "green", "backing": "blue", "zero": "bright_black", "hole": "bright_black"}
_CELLS = {"data": "█", "backing": "▓", "zero": "░", "hole": "·"}
_MEANING = {
    "data": "data of this image",
    "backing": "data of a backing image",
    "zero": "zeros",
    "hole": "not allocated",
}


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


def _specific(one: ImageInfo) -> Tree:
    tree = Tree(Text(one.format, "bold cyan"), guide_style="bright_black")
    _grow(tree, one.specific)
    return tree


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
    for heading in ("ID", "name", "taken"):
        table.add_column(heading)
    table.add_column("VM state", justify="right")
    table.add_column("VM clock", justify="right")
    for one in snapshots:
        table.add_row(_text(one.id), _text(one.name, "bold"), date(one), format_size(one.vm_state_size), clock(one))
    return table


def show_map(entries: Sequence[MapEntry], console: Console) -> None:
    """A strip of the whole range, then its pieces."""
    if not entries:
        console.print("The disk has no bytes there.")
        return
    console.print(strip(entries, console.width - 2))
    legend = Text(" ")
    for kind in ("data", "backing", "zero", "hole"):
        if any(_kind(entry) == kind for entry in entries):
            legend.append(_CELLS[kind], _STYLES[kind]).append(f" {_MEANING[kind]}   ")
    console.print(legend)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("from", "length", "", "depth", "at", "file"):
        table.add_column(heading, justify="right" if heading in ("from", "length", "depth", "at") else "left")
    for entry in entries:
        kind = _kind(entry)
        text = Text(_MEANING[kind] + (", compressed" if entry.compressed else ""), _STYLES[kind])
        where = "" if entry.offset is None else hex(entry.offset)
        table.add_row(
            hex(entry.start), format_size(entry.length), text, str(entry.depth), where, _text(entry.filename or "")
        )
    console.print(table)


def strip(entries: Sequence[MapEntry], width: int) -> Text:
    """The guest range as *width* cells: each shows what most of its bytes are."""
    start, end = entries[0].start, entries[-1].start + entries[-1].length
    counts: list[dict[str, float]] = [{} for _ in range(width)]
    scale = width / max(end - start, 1)
    for entry in entries:
        kind = _kind(entry)
        low, high = (entry.start - start) * scale, (entry.start + entry.length - start) * scale
        for cell in range(int(low), min(int(high) + 1, width)):
            part = min(high, cell + 1) - max(low, cell)
            # A little data among many zeros is what one looks for: it shows.
            counts[cell][kind] = counts[cell].get(kind, 0) + part * (4 if kind in ("data", "backing") else 1)
    picture = Text(" ")
    for count in counts:
        kind = max(count, key=lambda one: count[one]) if count else "hole"
        picture.append(_CELLS[kind], _STYLES[kind])
    return picture


def _kind(entry: MapEntry) -> str:
    if entry.data and not entry.zero:
        return "backing" if entry.depth else "data"
    return "zero" if entry.present else "hole"


def show_check(result: CheckResult, console: Console) -> None:
    """What was found, the worst first, and the verdict."""
    styles = {"corruption": "red", "error": "red", "leak": "yellow"}
    order = {"corruption": 0, "error": 1, "leak": 2}
    for finding in sorted(result.findings, key=lambda one: order.get(one.kind, 3)):
        mark = "fixed " if finding.fixed else ""
        console.print(
            _text(f"{mark}{finding.kind}: {finding.text}", "green" if finding.fixed else styles[finding.kind])
        )
    if result.corruptions or result.check_errors:
        verdict = Text(f"{result.corruptions} corruptions, {result.check_errors} errors", "bold red")
    elif result.leaks:
        verdict = Text(f"{result.leaks} leaked clusters: space is lost, data is not", "bold yellow")
    else:
        verdict = Text("No errors were found.", "bold green")
    console.print(verdict)
    if result.corruptions_fixed or result.leaks_fixed:
        console.print(f"Repaired: {result.corruptions_fixed} corruptions, {result.leaks_fixed} leaked clusters.")
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


def show_measurement(result: Measurement, console: Console) -> None:
    """The sizes, for people and exactly."""
    table = _pairs()
    table.add_row("needed now", _both(result.required))
    table.add_row("fully allocated", _both(result.fully_allocated))
    if result.bitmaps is not None:
        table.add_row("bitmaps", _both(result.bitmaps))
    console.print(table)


def show_drivers(found: Sequence[DriverInfo], console: Console) -> None:
    """One table for all drivers."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=False)
    for heading in ("driver", "kind", "what it is", "can", "options"):
        table.add_column(heading, overflow="fold")
    for one in found:
        if one.broken:
            table.add_row(Text(one.name, "bold red"), one.kind, Text(f"broken: {one.broken}", "red"), "", "")
            continue
        names = ", ".join(dict.fromkeys(option.name for option in one.options))
        table.add_row(
            Text(one.name, "bold"), one.kind, Text(one.title), Text(", ".join(one.capabilities), "green"), Text(names)
        )
    console.print(table)
