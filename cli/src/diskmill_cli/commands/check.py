"""``diskmill check``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from diskmill.contract.results import CheckResult

    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.check import check

    dry_run = arguments.has("dry_run")
    repair: Any = arguments.one("repair") or ""  # the core refuses other words
    name = arguments.operand()
    with shown(arguments, session, "check") as report:
        result = check(
            name,
            format=arguments.one("format"),
            repair=repair,
            dry_run=dry_run,
            image_opts=arguments.has("image_opts"),
            context=common.context_of(arguments, session, key="source_cache"),
            progress=report,
        )
    if arguments.one("output") == "json":
        from diskmill.qapi import image_check

        session.json(image_check(result))
    elif session.fancy(arguments):
        from ..terminal import show_check

        show_check(result, session.console(), dry_run=dry_run)
    else:
        tell = session.print if dry_run else session.note
        tell(*(finding.text for finding in result.findings))
        for text in lines(result, dry_run=dry_run):
            session.print(*text.split("\n"))
    if result.check_errors:
        session.error("check failed")
        return 1
    return 2 if result.corruptions else 3 if result.leaks else 0


def lines(result: CheckResult, *, dry_run: bool = False) -> Iterator[str]:
    """What qemu-img prints about a check; *dry_run*: of a repair that was only planned."""
    if dry_run:
        yield "The following inconsistencies would be repaired:\n"
        yield f"    {result.leaks_fixed} leaked clusters"
        yield f"    {result.corruptions_fixed} corruptions"
        yield "\nNothing was written. The image as it is:"
    elif result.leaks_fixed or result.corruptions_fixed:
        yield "The following inconsistencies were found and repaired:\n"
        yield f"    {result.leaks_fixed} leaked clusters"
        yield f"    {result.corruptions_fixed} corruptions"
        yield "\nDouble checking the fixed image now..."
    if not (result.corruptions or result.leaks or result.check_errors):
        yield "No errors were found on the image."
    if result.corruptions:
        yield f"\n{result.corruptions} errors were found on the image."
        yield "Data may be corrupted, or further writes to the image may corrupt it."
    if result.leaks:
        yield f"\n{result.leaks} leaked clusters were found on the image."
        yield "This means waste of disk space, but no harm to data."
    if result.check_errors:
        yield f"\n{result.check_errors} internal errors have occurred during the check."
    if result.total_clusters and result.allocated_clusters:
        total, used = result.total_clusters, result.allocated_clusters
        yield (
            f"{used}/{total} = {100 * used / total:0.2f}% allocated, "
            f"{100 * (result.fragmented_clusters or 0) / used:0.2f}% fragmented, "
            f"{100 * (result.compressed_clusters or 0) / used:0.2f}% compressed clusters"
        )
    if result.image_end_offset:
        yield f"Image end offset: {result.image_end_offset}"


COMMAND = Command(
    "check",
    "Check an image for errors, and repair them.",
    "NAME",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option(
            "repair",
            ("-r", "--repair"),
            "Repair: 'leaks' gives lost space back, 'all' repairs whatever can be, 'lost' even gives up data that the "
            "image lost track of.",
            "WHAT",
            choices=("leaks", "all", "lost"),
            panel="The image",
        ),
        Option("dry_run", ("--dry-run",), "Tell what -r would do, and write nothing.", panel="The image"),
        common.SOURCE_CACHE,
        replace(common.PROGRESS, ours=True),
        common.OUTPUT,
        common.QUIET,
        *common.ACCESS,
    ),
    run,
    about="Exit status: 0 the image is consistent, 1 the check could not be completed, 2 it is corrupted, 3 it has "
    "leaked clusters but is not corrupted, 63 the format has no checks.",
    examples=(
        Example("diskmill check disk.qcow2", "look, change nothing"),
        Example("diskmill check -r all --dry-run disk.qcow2", "what would a repair do?"),
        Example("diskmill check -r leaks disk.qcow2", "give back space that nothing points to"),
    ),
)
