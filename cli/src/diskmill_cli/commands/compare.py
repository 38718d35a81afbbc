"""``diskmill compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import State, shown

if TYPE_CHECKING:
    from diskmill.contract.results import Comparison

    from ..session import Session

DIFFERENT = 1
TROUBLE = 2
"""The exit status where an image could not be opened, and the least where they could not be compared."""


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.compare import compare
    from diskmill.commands.digest import ALGORITHM
    from diskmill.engine.digest import BLOCK
    from diskmill.errors import DiskmillError, UsageError

    if len(arguments.operands) != 2:
        raise UsageError("expecting two image file names")
    try:
        with shown(arguments, session, "compare") as report:
            result = compare(
                *arguments.operands,
                format_a=arguments.one("format"),
                format_b=arguments.one("format_b"),
                strict=arguments.has("strict"),
                image_opts=arguments.has("image_opts"),
                algorithm=arguments.one("algorithm") or ALGORITHM,
                block_size=arguments.size("block_size", "block size", BLOCK),
                context=common.context_of(arguments, session, key="source_cache"),
                progress=report,
            )
            if session.plain:  # qemu-img ends the line of its progress after the results
                _tell(result, arguments, session, report)
    except DiskmillError as error:
        session.fail(error)
        return max(error.exit_code, TROUBLE)
    if not session.plain:
        _tell(result, arguments, session, report)
    return 0 if result.identical else DIFFERENT


def _tell(result: Comparison, arguments: Arguments, session: Session, progress: State) -> None:
    if arguments.one("output") == "json":
        from diskmill.qapi import comparison

        session.json(comparison(result))
        return
    if session.fancy(arguments):
        from ..terminal import show_comparison

        show_comparison(result, session.console())
        return
    # As qemu-img does: the sizes are worth a word once what both disks have is known to be the same.
    past = result.identical or (result.offset is not None and result.offset >= result.common)
    if result.size_differs and past and not arguments.has("strict"):
        session.print("Warning: Image size mismatch!")
        if session.plain:
            progress.repeat(result.common)
    session.print(result.message)


COMMAND = Command(
    "compare",
    "Compare what two images hold.",
    "NAME NAME",
    (
        replace(common.FORMAT, flags=("-f", "--format", "--a-format"), help="The first image's format."),
        Option("format_b", ("-F", "--b-format"), "The second image's format.", "FMT", panel="The image"),
        common.IMAGE_OPTS,
        Option("strict", ("-s", "--strict"), "Sizes and allocation must be the same, too.", panel="The image"),
        common.ALGORITHM,
        common.BLOCK_SIZE,
        common.SOURCE_CACHE,
        common.PROGRESS,
        common.QUIET,
        common.OUTPUT,
        *common.ACCESS,
    ),
    run,
    about="Exit status: 0 they are identical, 1 they differ, 2 an image could not be opened, 4 not be read.",
    examples=(
        Example("diskmill compare disk.img disk.qcow2", "do both read the same?"),
        Example("diskmill compare disk.img digests:FILE", "is it what digest, or digest --block-digests, wrote there?"),
    ),
)
