"""What the benchmark found, as a Markdown table and as a chart."""

from __future__ import annotations

import math
import os
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from xml.sax.saxutils import escape

from .measure import MiB, Result
from .works import Work

MEASURES = ("s", "CPU s", "peak MiB", "output MiB")
HEADINGS = (
    "work",
    "pairs",
    "ratio",
    "goal",
    *(heading for one in MEASURES for heading in (one, "qemu-img's")),
    "missed",
)


def table(results: Sequence[Result]) -> str:
    """A Markdown table, a line for each work; the last column names the goals that were missed."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for result in results:
        rows.append(
            (
                result.work.name + (f" ({other_side(result.work)})" if result.work.against else ""),
                str(len(result.ours)),
                f"{result.ratio:.2f}",
                f"{result.work.goal:.2f}",
                *(f"{seconds:.3f}" for seconds in result.seconds),
                *(f"{seconds:.3f}" for seconds in result.cpu),
                *(f"{memory / MiB:.0f}" for memory in result.memory),
                *(f"{size / MiB:.1f}" if size else "" for size in result.sizes),
                ", ".join(result.misses),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + (":" if n else "-") for n, width in enumerate(widths)) + "|")
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"| {' | '.join(cells)} |"


def conditions(size: int, runs: int) -> str:
    """One sentence on what was measured."""
    return (
        f"Source {size // MiB} MiB, half of it data; page cache warm; whole processes, {runs} of each program by turns "
        f"(of what lasts long, fewer) on {os.cpu_count()} processors."
    )


def machine(theirs: Sequence[str]) -> str:
    """A list, in Markdown, of when and on what was measured, and in which versions."""
    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": f"{_line_of('/proc/cpuinfo', 'model name')}, {os.cpu_count()} of them",
        "memory": _line_of("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "diskmill": version("diskmill"),
        "qemu-img": subprocess.run([*theirs, "--version"], capture_output=True, text=True).stdout.partition("\n")[0],
    }
    return "\n".join(f"- {name}: {text}" for name, text in facts.items())


def _line_of(path: str, name: str) -> str:
    """What *path*, a file of the kernel's, says of *name*."""
    with suppress(OSError), open(path) as file:
        for line in file:
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return "unknown"


def other_side(work: Work) -> str:
    """What a work is held against that is not qemu-img's."""
    if work.module is not None:
        return work.module.partition(".")[0]
    return (work.against or ("",))[0]


def legend() -> str:
    """How to read the table."""
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return (
        "Times are medians; (its-python) marks what is held against `python -c pass` instead, in the interpreter that "
        "diskmill runs in, (nbdcopy) against nbdcopy, (dissect) the library against that one. "
        "Of `serve`, the time is nbdcopy's, and processor time and memory are the server's, against qemu-nbd's. "
        "The ratio is the median of qemu-img's time over diskmill's, pair by pair. "
        f"A peak below {floor} MiB, the measuring program's own, would not show."
    )


# The chart: a bar for each work on a logarithmic axis, from 1 to the ratio; a tick where the goal is.

LEFT, WIDTH, RIGHT, ROW, TOP, BOTTOM = 170, 520, 70, 24, 56, 30
FASTER, SLOWER, GOAL, INK, FAINT = "#2a7f62", "#c0562f", "#1f2933", "#1f2933", "#d5dbe1"


def chart(results: Sequence[Result], note: str) -> str:
    """An SVG picture of the ratios."""
    values = [value for result in results for value in (result.ratio, result.work.goal)]
    low, high = math.floor(math.log2(min([*values, 1]))), math.ceil(math.log2(max([*values, 2])))

    def place(value: float) -> float:
        return LEFT + WIDTH * (math.log2(value) - low) / (high - low)

    width, height = LEFT + WIDTH + RIGHT, TOP + ROW * len(results) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="16" fill="{INK}">Times as fast as qemu-img; the tick is the goal</text>',
        f'<text x="12" y="42" font-size="12" fill="{INK}">{escape(note)}</text>',
    ]
    for power in range(low, high + 1):
        x, value = place(2.0**power), f"{2**power}" if power >= 0 else f"1/{2**-power}"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}" '
            f'stroke="{INK if power == 0 else FAINT}"/>'
            f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle" fill="{INK}">{value}</text>'
        )
    for number, result in enumerate(results):
        y, one, end, goal = TOP + ROW * number + 4, place(1), place(result.ratio), place(result.work.goal)
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 13}" text-anchor="end" fill="{INK}">{escape(result.work.name)}</text>'
            f'<rect x="{min(one, end):.1f}" y="{y}" width="{abs(end - one):.1f}" height="{ROW - 8}" '
            f'fill="{FASTER if result.ratio >= 1 else SLOWER}"/>'
            f'<line x1="{goal:.1f}" x2="{goal:.1f}" y1="{y - 2}" y2="{y + ROW - 6}" stroke="{GOAL}" stroke-width="2"/>'
            f'<text x="{LEFT + WIDTH + 8}" y="{y + 13}" fill="{INK}">{result.ratio:.2f} ×</text>'
        )
    return "\n".join([*parts, "</svg>\n"])
