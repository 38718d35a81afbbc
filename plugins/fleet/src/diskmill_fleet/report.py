"""A journal as one page of HTML, with its figures drawn: throughput over time, sizes before and after, the slowest,
the failures. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from diskmill.sizes import format_size

from .journal import Record
from .show import summary, told

_WIDTH, _HEIGHT = 860, 220
_BARS = 60
_ROWS = 20
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2530; max-width: 900px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25em .6em; vertical-align: top;
border-bottom: 1px solid #dde3ea; overflow-wrap: anywhere; } td.n, th.n { text-align: right; white-space: nowrap; }
svg { width: 100%; height: auto; background: #f6f8fa; border-radius: 6px; } svg text { font: 12px system-ui, sans-serif;
fill: #55606e; } .in { fill: #9db4cc; } .out { fill: #2f6db5; } .bad { color: #a4252b; }
@media (prefers-color-scheme: dark) { body { background: #14181d; color: #d7dee6; } svg { background: #1c222a; }
svg text { fill: #9aa7b5; } td, th { border-color: #2c343e; } .bad { color: #ff8f8f; } }
"""


def page(records: Sequence[Record], title: str) -> str:
    """The page of a journal's *records*."""
    last = list({str(record["id"]): record for record in records}.values())
    found = summary(records)
    done = [one for one in last if one["status"] == "done"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title>",
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style><h1>{_text(title)}</h1>",
        *(f"<p>{_text(line)}</p>" for line in told({**found, "failures": []})),
        "<h2>Throughput: bytes of sources a second</h2>",
        _throughput(done),
        "<h2>Bytes before and after, the largest images</h2>",
        _sizes(done),
        "<h2>The slowest</h2>",
        _table(
            ("job", "seconds", "read", "wrote"),
            sorted(done, key=lambda one: -one.get("seconds", 0))[:_ROWS],
            lambda one: (
                one["id"], f"{one.get('seconds', 0):.1f}", _size(one.get("bytes_in")), _size(one.get("bytes"))
            ),
        ),
        f"<h2>Failures: {found['failed']}</h2>",
        _table(
            ("job", "tries", "cause"),
            found["failures"],
            lambda one: (one["id"], str(one["tries"]), one["error"] or ""),
            "bad",
        ),
        "</html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _text(value: object) -> str:
    return html.escape(str(value).encode(errors="replace").decode())


def _size(count: Any) -> str:
    return "" if count is None else format_size(int(count))


def _throughput(done: Sequence[Record]) -> str:
    """Bars of equal time; a job's bytes count evenly while it ran."""
    ran = [(one["began"], one["began"] + one["seconds"], one.get("bytes_in") or 0) for one in done if "began" in one]
    if not ran:
        return "<p>Nothing was done.</p>"
    start, end = min(one[0] for one in ran), max(one[1] for one in ran)
    step = max(end - start, 0.001) / _BARS
    bars = [0.0] * _BARS
    for low, high, count in ran:
        first, last = (min(int((at - start) / step), _BARS - 1) for at in (low, high))
        for index in range(first, last + 1):
            bars[index] += count / (last - first + 1)
    rates = [count / step for count in bars]
    top = max(rates) or 1
    width = _WIDTH / _BARS
    shapes = [
        _bar(index * width, width - 1, rate / top, "out", f"{format_size(int(rate))}/s")
        for index, rate in enumerate(rates)
    ]
    return _drawn(shapes, f"{format_size(int(top))}/s", "0 s", f"{end - start:.0f} s")


def _sizes(done: Sequence[Record]) -> str:
    """Two bars for each of the largest images."""
    largest = sorted((one for one in done if one.get("bytes")), key=lambda one: -(one.get("bytes_in") or 0))[:30]
    if not largest:
        return "<p>Nothing was written.</p>"
    top = max(max(one.get("bytes_in") or 0, one["bytes"]) for one in largest) or 1
    width = _WIDTH / len(largest)
    shapes: list[str] = []
    for index, one in enumerate(largest):
        for part, (name, kind) in enumerate((("bytes_in", "in"), ("bytes", "out"))):
            count = one.get(name) or 0
            at = index * width + part * width * 0.42
            shapes.append(_bar(at, width * 0.4, count / top, kind, f"{one['id']}: {format_size(count)}"))
    return _drawn(shapes, format_size(top), "before: light, after: dark", "")


def _bar(x: float, width: float, part: float, kind: str, title: str) -> str:
    height = part * (_HEIGHT - 40)
    return (
        f"<rect class={kind} x={x:.1f} y={_HEIGHT - 20 - height:.1f} width={max(width, 0.5):.1f} "
        f"height={height:.1f}><title>{_text(title)}</title></rect>"
    )


def _drawn(shapes: Sequence[str], top: str, left: str, right: str) -> str:
    words = (
        f"<text x=4 y=14>{_text(top)}</text><text x=4 y={_HEIGHT - 5}>{_text(left)}</text>"
        f"<text x={_WIDTH - 4} y={_HEIGHT - 5} text-anchor=end>{_text(right)}</text>"
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img>{"".join(shapes)}{words}</svg>'


def _table(heads: Sequence[str], rows: Sequence[Any], cells: Any, kind: str = "") -> str:
    if not rows:
        return "<p>None.</p>"

    def lines() -> Iterator[str]:
        last = len(heads) - 1
        kinds = ["" if at == 0 or (kind and at == last) else "n" for at in range(len(heads))]
        words = (f"<th class='{name}'>{_text(one)}</th>" for name, one in zip(kinds, heads, strict=True))
        yield "<tr>" + "".join(words)
        kinds[last] += f" {kind}"
        for row in rows:
            words = (f"<td class='{name}'>{_text(one)}</td>" for name, one in zip(kinds, cells(row), strict=True))
            yield "<tr>" + "".join(words)

    return f"<table>{''.join(lines())}</table>"
