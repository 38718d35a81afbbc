"""``diskmill sync``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.sync import sync
    from diskmill.engine.digest import BLOCK
    from diskmill.errors import UsageError
    from diskmill.sizes import format_size

    if len(arguments.operands) != 2:
        raise UsageError("name the image to read, and the one to write into")
    source, target = arguments.operands
    with shown(arguments, session, "sync") as report:
        done = sync(
            source,
            target,
            format=arguments.one("format"),
            target_format=arguments.one("target_format"),
            block_size=arguments.size("block_size", "block size", BLOCK),
            dry_run=arguments.has("dry_run"),
            threads=arguments.number("threads", "number of threads", 0, 1, 16) or None,
            image_opts=arguments.has("image_opts"),
            context=common.context_of(arguments, session),
            progress=report,
        )
    if arguments.one("output") == "json":
        session.json({"filename": target, "size": done.size, "copied": done.copied, "saved": done.saved})
    else:
        would = "would be written" if arguments.has("dry_run") else "written"
        session.print(f"{format_size(done.copied)} {would}, {format_size(done.saved)} are the same")
    return 0


COMMAND = Command(
    "sync",
    "Write into a copy what differs from its source.",
    "NAME COPY",
    (
        replace(common.FORMAT, help="The source's format; without it, the source is probed."),
        Option("target_format", ("-F", "--target-format"), "The copy's format.", "FMT", panel="The image"),
        common.IMAGE_OPTS,
        Option("block_size", ("--block-size",), "Bytes that are compared by their digest.", "SIZE", default="64k"),
        Option("dry_run", ("-n", "--dry-run"), "Write nothing, and tell what would be."),
        Option("threads", ("-m", "--parallel"), "How many threads work.", "N"),
        common.CACHE,
        common.PROGRESS,
        common.QUIET,
        common.OUTPUT,
        *common.ACCESS,
    ),
    run,
    about="Both disks are read, and have the same size; only blocks whose digests differ are written.",
    examples=(Example("diskmill sync disk.qcow2 /backup/disk.raw", "bring a backup up to date"),),
)
