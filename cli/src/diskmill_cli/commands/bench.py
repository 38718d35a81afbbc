"""``diskmill bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from ..session import Session

_WORK = "The requests"
_MOST = 2**31 - 1


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.bench import bench
    from diskmill.errors import UsageError

    name = arguments.operand()
    count = arguments.number("count", "request count", 75000, 0, _MOST)
    depth = arguments.number("depth", "queue depth", 64, 1, _MOST)
    size = arguments.size("size", "buffer size", 4096)
    step = arguments.size("step", "step size") or size
    offset = arguments.size("offset", "offset")
    write = arguments.has("write")
    pattern = arguments.number("pattern", "pattern byte", 0, 0, 255)
    flush = arguments.number("flush_interval", "flush interval", 0, 0, _MOST)
    if max(size, step) > _MOST:
        raise UsageError("buffer and step size must be less than 2 GiB")
    if flush and not write:
        raise UsageError("--flush-interval is only available in write tests")
    if flush and flush < depth:
        raise UsageError("the flush interval cannot be smaller than the depth")
    native = arguments.has("native") or arguments.one("aio") == "native"
    if native and arguments.one("cache") not in ("none", "directsync"):
        error = UsageError("native requests need a cache mode (-t) of none or directsync")
        error.opening = name  # it is then that qemu-img finds it
        raise error
    drain = not arguments.has("no_drain")
    as_json = arguments.one("output") == "json"
    if not as_json:
        kind = "write" if write else "read"
        session.print(
            f"Sending {count} {kind} requests, {size} bytes each, {depth} in parallel "
            f"(starting at offset {offset}, step size {step})"
        )
        if flush:
            session.print(f"Sending flush every {flush} requests")
    result = bench(
        name,
        count=count,
        depth=depth,
        size=size,
        step=step,
        offset=offset,
        write=write,
        pattern=pattern,
        flush_interval=flush,
        drain=drain,
        format=arguments.one("format"),
        image_opts=arguments.has("image_opts"),
        context=common.context_of(arguments, session),
    )
    if as_json:
        from diskmill.qapi import bench_result

        session.json(bench_result(result))
    else:
        session.print(f"Run completed in {result.seconds:3.3f} seconds.")
    return 0


COMMAND = Command(
    "bench",
    "Measure how fast an image answers.",
    "NAME",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option("count", ("-c", "--count"), "How many requests.", "N", panel=_WORK, default="75000"),
        Option("depth", ("-d", "--depth"), "How many at once.", "N", panel=_WORK, default="64"),
        Option("size", ("-s", "--buffer-size"), "Bytes of each.", "SIZE", panel=_WORK, default="4k"),
        Option("step", ("-S", "--step-size"), "From one to the next; as much as each has.", "SIZE", panel=_WORK),
        Option("offset", ("-o", "--offset"), "Where the first one is.", "OFFSET", panel=_WORK),
        Option("write", ("-w", "--write"), "Write, which destroys what is there.", panel=_WORK),
        Option("pattern", ("--pattern",), "The byte that is written.", "BYTE", panel=_WORK, default="0"),
        Option("flush_interval", ("--flush-interval",), "Flush after so many writes.", "N", panel=_WORK),
        Option("no_drain", ("--no-drain",), "A flush does not wait for what was sent before it.", panel=_WORK),
        Option("native", ("-n", "--native"), "Accepted for qemu-img's callers, without effect.", panel=_WORK),
        Option(
            "aio",
            ("-i", "--aio"),
            "Accepted for qemu-img's callers, without effect.",
            "AIO",
            choices=("threads", "native", "io_uring"),
            panel=_WORK,
        ),
        common.CACHE,
        common.OUTPUT,
        common.QUIET,
        *common.ACCESS,
    ),
    run,
    examples=(
        Example("diskmill bench -c 10000 -s 64k disk.qcow2", "reads, one after the other"),
        Example("diskmill bench -w --pattern 7 --flush-interval 64 scratch.qcow2", "writes, with flushes"),
    ),
)
