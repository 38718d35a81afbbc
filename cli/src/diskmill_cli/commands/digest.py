"""``diskmill digest``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from ..session import Session

_DIGEST = "The digest"


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.digest import ALGORITHM, digest
    from diskmill.engine.digest import BLOCK
    from diskmill.errors import StorageError, UsageError

    context = common.context_of(arguments, session)
    if arguments.has("check"):
        return _check(arguments, session)
    if not arguments.operands:
        raise UsageError("name at least one image")
    if arguments.has("block_digests") and len(arguments.operands) > 1:
        raise UsageError("--block-digests is for one image")
    found = []
    for name in arguments.operands:
        with ExitStack() as stack:
            blocks = None
            if arguments.has("block_digests"):
                path = str(arguments.one("block_digests"))
                try:
                    blocks = stack.enter_context(open(path, "wb"))
                except OSError as error:
                    raise StorageError.from_os(error, path) from None
            report = stack.enter_context(shown(arguments, session, "digest"))
            value = digest(
                name,
                format=arguments.one("format"),
                algorithm=arguments.one("algorithm") or ALGORITHM,
                block_size=arguments.size("block_size", "block size", BLOCK),
                block_digests=blocks,
                threads=arguments.number("threads", "number of threads", 0, 1, 16) or None,
                image_opts=arguments.has("image_opts"),
                context=context,
                progress=report,
            )
        found.append({"filename": name, "digest": value})
        if arguments.one("output") != "json":
            session.print(f"{value}  {name}")
    if arguments.one("output") == "json":
        session.json(found)
    return 0


def _check(arguments: Arguments, session: Session) -> int:
    """Hold images against a file of lines ``HEX  NAME``, as this command prints them, or one against its blocks'."""
    from diskmill.commands.known_digests import lines_of
    from diskmill.errors import DiskmillError, UsageError

    path, names = str(arguments.one("check")), arguments.operands
    if arguments.has("block_digests"):
        raise UsageError("--check reads digests, and --block-digests writes some: give one of them")
    lines = lines_of(path)
    if lines is None:
        if len(names) != 1:
            raise UsageError("it is no list of disks: name the one image whose blocks' digests these are", file=path)
        wanted: list[tuple[str, str | None]] = [(names[0], None)]
    elif names or any(not line.name for line in lines):
        raise UsageError("the images are those that the list names, after a digest and two spaces", file=path)
    else:
        wanted = [(line.name, line.digest) for line in lines]
    failed, checked = 0, []
    for name, digest in wanted:
        try:
            found = _held(arguments, session, name, digest)
        except DiskmillError as error:
            session.fail(error)
            failed += 1
            continue
        failed += not found["ok"]
        checked.append(found)
        if arguments.one("output") != "json":
            place = f" (the block at offset {found['offset']} differs)" if "offset" in found else ""
            session.print(f"{name}: {'OK' if found['ok'] else 'FAILED'}{place}")
    if arguments.one("output") == "json":
        session.json(checked)
    return 1 if failed else 0


def _held(arguments: Arguments, session: Session, name: str, wanted: str | None) -> dict[str, Any]:
    """What is printed of the image *name*, of which a digest is *wanted*; None: those of its blocks, in the file."""
    from diskmill.commands.compare import compare
    from diskmill.commands.digest import ALGORITHM, digest
    from diskmill.commands.known_digests import PREFIX
    from diskmill.engine.digest import BLOCK

    format, algorithm = arguments.one("format"), arguments.one("algorithm") or ALGORITHM
    block = arguments.size("block_size", "block size", BLOCK)
    context = common.context_of(arguments, session)
    with shown(arguments, session, "digest") as report:
        if wanted is not None:
            value = digest(name, format=format, algorithm=algorithm, block_size=block, context=context, progress=report)
            return {"filename": name, "digest": value, "ok": value == wanted}
        known = PREFIX + str(arguments.one("check"))
        result = compare(
            name, known, format_a=format, algorithm=algorithm, block_size=block, context=context, progress=report
        )
    return {"filename": name, "ok": result.identical} | ({} if result.identical else {"offset": result.offset})


COMMAND = Command(
    "digest",
    "Make a digest of a disk: the same for the same bytes in every format.",
    "NAME…",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        common.ALGORITHM,
        common.BLOCK_SIZE,
        Option("block_digests", ("--block-digests",), "Write each block's digest here.", "FILE", panel=_DIGEST),
        Option(
            "check",
            ("--check",),
            "Hold the images of this list against it, or the one image that is named against these digests of blocks.",
            "FILE",
            panel=_DIGEST,
        ),
        Option("threads", ("-m", "--parallel"), "How many threads work.", "N", panel=_DIGEST),
        common.PROGRESS,
        common.QUIET,
        common.OUTPUT,
        *common.ACCESS,
    ),
    run,
    about="Blocks of 64 KiB are hashed by themselves, and their digests, with the disk's size, once more: what blksum "
    "prints. Holes and zeros cost nothing.",
    examples=(
        Example("diskmill digest disk.vmdk disk.qcow2", "equal where both hold the same disk"),
        Example("diskmill digest --check DIGESTS", "as sha256sum -c does"),
        Example("diskmill digest --check BLOCKS disk.qcow2", "the first block that differs is named"),
    ),
)
