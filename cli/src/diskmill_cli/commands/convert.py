"""``diskmill convert``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from diskmill.errors import DiskmillError

    from ..session import Session

_SOURCE = "The image"
_TARGET = "The output"
_COPY = "The copying"

MAX_THREADS = 16


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands import create
    from diskmill.commands.convert import convert
    from diskmill.contract.options import HelpAsked
    from diskmill.errors import UsageError

    output_format = common.format_of(arguments, "output_format")
    context = common.context_of(arguments, session, key="source_cache")
    target_context = replace(common.other_side(context, arguments, cache="unsafe"), share=False)
    if arguments.has("spool"):
        context.spool = target_context.spool = arguments.one("spool") or ""
    try:
        options = common.driver_options(arguments)
    except HelpAsked:
        found = create.options_for(
            output_format, arguments.operands[-1] if arguments.operands else None, context=context
        )
        return common.show_options(found, "Supported options", session)
    _check(arguments)
    common.refuse_overridden(
        arguments, lambda: create.options_for(output_format, arguments.operands[-1], context=context)
    )
    existing = arguments.has("existing")
    if existing and options:
        raise UsageError("-o has no effect with -n: the output exists already")
    named = arguments.has("backing_format") or options.get("backing_fmt")
    if arguments.has("backing") and not named and not existing:  # which says itself what it stands on
        raise UsageError("a backing image needs its format: name it with -F")
    if not existing:
        common.tell_of_raw(arguments, session, "output_format", "-O", arguments.operands[-1])
    damage: list[tuple[int, int, DiskmillError]] = []

    def salvage(offset: int, length: int, error: DiskmillError) -> None:
        damage.append((offset, length, error))
        session.warn(f"{error}: {length} bytes from guest offset {offset} on are written as zeros")

    verify, digest = arguments.has("verify"), None
    if arguments.has("digest"):
        from diskmill.commands.digest import ALGORITHM

        digest = arguments.one("digest") or ALGORITHM
    with shown(arguments, session, "convert") as report:
        made = convert(
            arguments.operands[:-1],
            arguments.operands[-1],
            format=arguments.one("format"),
            output_format=output_format,
            options=options,
            compress=arguments.has("compress"),
            backing=arguments.one("backing"),
            backing_format=arguments.one("backing_format"),
            existing=existing,
            target_zero=arguments.has("target_zero"),
            sparse=arguments.size("sparse", "sparse size", 4096),
            threads=arguments.number("threads", "number of threads", 0, 1, MAX_THREADS) or None,
            in_order=not arguments.has("unordered"),
            rate=arguments.size("rate", "rate limit"),
            salvage=salvage if arguments.has("salvage") else None,
            snapshot=arguments.one("snapshot"),
            offload=arguments.has("offload"),
            bitmaps=arguments.has("bitmaps"),
            skip_broken=arguments.has("skip_broken"),
            image_opts=arguments.has("image_opts"),
            target_image_opts=arguments.has("target_image_opts"),
            context=context,
            target_context=target_context,
            progress=report,
            digest=digest,
            verify=verify,
        )
    if arguments.one("output") == "json":
        session.json(
            {
                "filename": arguments.operands[-1],
                "format": output_format,
                "bytes": report.total,
                "damage": [{"offset": at, "length": count, "cause": error.cause} for at, count, error in damage],
                **({"digest": made} if made is not None else {}),
            }
        )
    elif made is not None and arguments.operands[-1] in ("-", "pipe:-"):
        session.note(made)  # the image itself goes to standard output
    elif made is not None:
        session.print(f"{made}  {arguments.operands[-1]}")
    return 0


def _check(arguments: Arguments) -> None:
    """Options that contradict each other."""
    from diskmill.errors import UsageError

    if len(arguments.operands) < 2:
        raise UsageError("must specify image file names: one or more to read, then the one to write")
    needs = (
        ("target_zero", "existing", "--target-is-zero requires -n"),
        ("target_image_opts", "existing", "--target-image-opts requires -n"),
        ("skip_broken", "bitmaps", "--skip-broken-bitmaps requires --bitmaps"),
        ("backing_format", "backing", "-F requires -B"),
    )
    for given, needed, text in needs:
        if arguments.has(given) and not arguments.has(needed):
            raise UsageError(text)
    for one, other, text in (
        ("offload", "compress", "cannot offload copying when compressing (-C and -c)"),
        ("offload", "sparse", "cannot offload copying when looking for zeros (-C and -S)"),
        ("offload", "salvage", "cannot offload copying with --salvage"),
        ("backing", "digest", "no digest can be made of a copy that leaves data to a backing image (-B)"),
        ("backing", "verify", "a copy that leaves data to a backing image (-B) is verified with compare"),
        ("existing", "in_place", "--in-place makes an image anew, and -n writes into one that exists"),
        ("existing", "no_clobber", "--no-clobber refuses the image that -n writes into"),
    ):
        if arguments.has(one) and arguments.has(other):
            raise UsageError(text)
    sparse = arguments.size("sparse", "sparse size", 4096)
    if sparse % 512 or sparse > 1 << 21 << 9:
        raise UsageError("the sparse size must be a multiple of 512 bytes, and at most 1 GiB")


COMMAND = Command(
    "convert",
    "Copy images into a new one of any format.",
    "NAME… OUTPUT",
    (
        common.FORMAT._replace(flags=("-f", "--format", "--source-format")),
        common.IMAGE_OPTS._replace(flags=("--image-opts", "--source-image-opts")),
        common.SNAPSHOT,
        common.TARGET_FORMAT,
        common.OPTIONS,
        Option("target_image_opts", ("--target-image-opts",), "The output's name is an option string.", panel=_TARGET),
        Option("compress", ("-c", "--compress"), "Store the data compressed.", panel=_TARGET),
        Option("backing", ("-B", "-b", "--backing"), "Copy only what differs from this image.", "NAME", panel=_TARGET),
        common.BACKING_FORMAT,
        Option("existing", ("-n", "--no-create"), "Write into an image that exists.", panel=_TARGET),
        Option("target_zero", ("--target-is-zero",), "That image reads as zeros throughout.", panel=_TARGET),
        *common.OVERWRITE,
        Option("bitmaps", ("--bitmaps",), "Copy the persistent bitmaps, too.", panel=_TARGET),
        Option("skip_broken", ("--skip-broken-bitmaps",), "Leave out inconsistent bitmaps.", panel=_TARGET),
        Option(
            "sparse",
            ("-S", "--sparse-size"),
            "The shortest run of zeros to leave out.",
            "SIZE",
            panel=_COPY,
            default="4k",
        ),
        Option("threads", ("-m", "--parallel"), "How many threads work.", "N", panel=_COPY, default="one a processor"),
        Option("unordered", ("-W", "--oob-writes"), "Write in any order: faster, and not reproducible.", panel=_COPY),
        Option("rate", ("-r", "--rate-limit"), "The most bytes a second.", "RATE", panel=_COPY),
        Option("offload", ("-C", "--copy-range-offloading"), "Let the kernel copy.", panel=_COPY),
        Option("digest", ("--digest",), "Print the disk's digest, made out of the copy.", "NAME", (), True, _COPY),
        Option("verify", ("--verify",), "Read the output back before it gets its name.", panel=_COPY),
        Option("spool", ("--spool",), "Make a temporary copy of what comes or goes once.", "DIR", (), True, _COPY),
        Option("salvage", ("--salvage",), "Write zeros for what cannot be read, and go on.", panel=_COPY),
        common.CACHE._replace(flags=("-t", "--target-cache"), default="unsafe"),
        common.SOURCE_CACHE._replace(flags=("-T", "--source-cache")),
        common.PROGRESS,
        common.OUTPUT._replace(ours=True),
        common.QUIET,
        *common.ACCESS,
    ),
    run,
    about="The output gets its name when it is whole; whatever happens before, a file of that name stays as it was, "
    "unless it is to be written --in-place. Several images are put one after the other.",
    examples=(
        Example("diskmill convert -p -O qcow2 disk.img disk.qcow2", "raw to qcow2, with a progress bar"),
        Example("diskmill convert -c -O qcow2 -o compression_type=zstd disk.img disk.qcow2", "compressed"),
        Example("diskmill convert -O qcow2 -B base.qcow2 -F qcow2 disk.qcow2 thin.qcow2", "only what differs"),
    ),
)
