"""The command `python -m bench`."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from . import report
from .measure import Bench, BenchError, Result
from .works import WORKS, Work

RESULTS = Path(__file__).parent / "results"
QUICK = [
    "raw-qcow2",
    "raw-qcow2-deflate",
    "raw-qcow2-zstd",
    "qcow2*-raw",
    "raw-v*",
    "vmdk*-raw",
    "raw-parallels",
    "compare",
    "check-1T",
    "map-1T",
    "version",
    "info",
    "start-*",
]
"""The works of a quick run."""
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.quick:
        options.size, options.runs = min(options.size, 256 << 20), min(options.runs, 3)
        if options.only == ["*"]:
            options.only = QUICK
    chosen = [work for work in WORKS if any(fnmatch(work.name, pattern) for pattern in options.only)]
    if options.list:
        for work in chosen:
            print(f"{work.name:24} {' '.join(work.whole or work.command)}")
        return 0
    if not chosen:
        print(f"bench: no work is named {' '.join(options.only)}; --list shows all", file=sys.stderr)
        return 2
    installed = {point.name for point in entry_points(group="diskmill.format")}
    installed |= {point.name for group in ("crypto", "protocol") for point in entry_points(group=f"diskmill.{group}")}
    ours = shlex.split(options.diskmill)
    results, failed = [], False
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="diskmill-bench-", dir=options.folder) as folder:
        bench = Bench(Path(folder), options.size, ours=ours, theirs=shlex.split(options.qemu_img))
        for work in chosen:
            lacking = [name for name in work.needs if name not in installed]
            if lacking and ours == DISKMILL:
                print(f"{work.name}: left out, no driver {', '.join(lacking)} is installed", file=sys.stderr)
                continue
            if work.module is not None and not there(work.module):
                print(f"{work.name}: left out, {work.module} is not installed", file=sys.stderr)
                continue
            try:
                results.append(run(bench, work, options.runs, options.enough))
            except BenchError as error:
                print(f"bench: {error}", file=sys.stderr, flush=True)
                failed = True
    if results:
        note = report.conditions(options.size, options.runs)
        text = f"{report.table(results)}\n\n{note} {report.legend()}"
        print(text)
        if options.record:
            RESULTS.mkdir(exist_ok=True)
            head = f"# diskmill against qemu-img\n\n{report.machine(bench.theirs)}\n\n![ratios](chart.svg)"
            (RESULTS / "README.md").write_text(f"{head}\n\n{text}\n")
            (RESULTS / "chart.svg").write_text(report.chart(results, note))
    return 1 if failed else 0


def there(module: str) -> bool:
    """Whether the Python module *module* can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor what it is in
        return False


def run(bench: Bench, work: Work, runs: int, enough: float) -> Result:
    result = bench.run(work, runs, enough)
    print(f"{work.name}: {result.ratio:.2f} ({result.seconds[0]:.3f} s)", file=sys.stderr, flush=True)
    return result


DISKMILL = [str(Path(sys.executable).with_name("diskmill"))]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="diskmill against qemu-img: the same work, whole processes, by turns. Ends with 1 if a program "
        "fails or a result is wrong; a missed goal is only shown.",
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="works to run, by name or pattern")
    parser.add_argument("--list", action="store_true", help="show the works and end")
    parser.add_argument("--runs", type=positive, default=5, help="measured runs of each program (5)")
    parser.add_argument("--quick", action="store_true", help="a look: 256 MiB, three runs, only the main works")
    parser.add_argument("--size", type=size, default=2 << 30, help="of the source disk, half of it data (2G)")
    parser.add_argument(
        "--folder", type=Path, help="where the images go, three times the size and more (temporary files)"
    )
    parser.add_argument(
        "--enough",
        type=float,
        default=15,
        metavar="SECONDS",
        help="of measured runs, after which a work gets no further pair of them (15)",
    )
    parser.add_argument("--record", action="store_true", help="write a table and a chart to results/")
    parser.add_argument("--diskmill", default=shlex.join(DISKMILL), metavar="COMMAND", help="what to measure")
    parser.add_argument("--qemu-img", default="qemu-img", metavar="COMMAND", help="what to measure it against")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def size(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1].upper()] if text[-1:].upper() in UNITS else int(text)


if __name__ == "__main__":
    sys.exit(main())
