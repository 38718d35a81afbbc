"""``diskmill digest``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

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
    """Hold images against a file of lines ``HEX  NAME``, as this command prints them."""
    from diskmill.commands.digest import ALGORITHM, digest
    from diskmill.engine.digest import BLOCK
    from diskmill.errors import DiskmillError, StorageError, UsageError

    path = str(arguments.one("check"))
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").partition("  ") for line in file if line.strip()]
    except OSError as error:
        raise StorageError.from_os(error, path) from None
    if not lines or any(not gap or not name for _, gap, name in lines):
        raise UsageError("it has no lines of a digest, two spaces and a name", file=path)
    failed, checked = 0, []
    for wanted, _, name in lines:
        try:
            value = digest(
                name,
                format=arguments.one("format"),
                algorithm=arguments.one("algorithm") or ALGORITHM,
                block_size=arguments.size("block_size", "block size", BLOCK),
                context=common.context_of(arguments, session),
            )
        except DiskmillError as error:
            session.fail(error)
            failed += 1
            continue
        right = value == wanted.lower()
        failed += not right
        checked.append({"filename": name, "digest": value, "ok": right})
        if arguments.one("output") != "json":
            session.print(f"{name}: {'OK' if right else 'FAILED'}")
    if arguments.one("output") == "json":
        session.json(checked)
    return 1 if failed else 0


COMMAND = Command(
    "digest",
    "Make a digest of a disk: the same for the same bytes in every format.",
    "NAME…",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option("algorithm", ("-a", "--algorithm"), "The digest's algorithm; sha256.", "NAME", panel=_DIGEST),
        Option("block_size", ("--block-size",), "Bytes that are hashed by themselves; 64k.", "SIZE", panel=_DIGEST),
        Option("block_digests", ("--block-digests",), "Write each block's digest here.", "FILE", panel=_DIGEST),
        Option("check", ("--check",), "Hold the images named in this list against it.", "FILE", panel=_DIGEST),
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
    ),
)
