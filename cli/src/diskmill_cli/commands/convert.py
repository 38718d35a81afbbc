"""``diskmill convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from diskmill.errors import DiskmillError

    from ..session import Session

_SOURCE = "The image"
_TARGET = "The output"
_COPY = "The copying"


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands import create
    from diskmill.commands.conversion import MOST_THREADS, Conversion, Source, Target
    from diskmill.commands.convert import perform
    from diskmill.commands.unsized import PIPE
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
    piped = arguments.operands[-1] in ("-", PIPE) and not context.habits.dash_is_a_file
    if piped and arguments.one("output") == "json":
        raise UsageError("the image goes to standard output, where --output=json prints, too")
    named = arguments.has("backing_format") or options.get("backing_fmt")
    if arguments.has("backing") and not named and not existing:  # which says itself what it stands on
        raise UsageError("a backing image needs its format: name it with -F")
    if not existing:
        common.tell_of_raw(arguments, session, "output_format", "-O", arguments.operands[-1])
    digest = None
    if arguments.has("digest"):
        from diskmill.commands.digest import ALGORITHM

        digest = arguments.one("digest") or ALGORITHM
    asked = Conversion(
        tuple(
            Source(name, arguments.one("format"), arguments.one("snapshot"), arguments.has("image_opts"), context.cache)
            for name in arguments.operands[:-1]
        ),
        Target(
            arguments.operands[-1],
            output_format,
            options,
            arguments.one("backing"),
            arguments.one("backing_format"),
            existing,
            arguments.one("target_auto") or arguments.has("target_zero"),
            arguments.has("target_image_opts"),
            target_context.cache,
        ),
        compress=arguments.has("compress"),
        sparse=arguments.size("sparse", "sparse size", 4096) if arguments.has("sparse") else None,
        threads=arguments.number("threads", "number of threads", 0, 1, MOST_THREADS) or None,
        in_order=not arguments.has("unordered"),
        rate=arguments.size("rate", "rate limit"),
        offload=arguments.has("offload"),
        reflink=(arguments.one("reflink") or "always") if arguments.has("reflink") else None,
        salvage=arguments.has("salvage"),
        bitmaps=arguments.has("bitmaps"),
        skip_broken=arguments.has("skip_broken"),
        digest=digest,
        verify=arguments.has("verify"),
        resume=(arguments.one("resume") or "") if arguments.has("resume") else None,
        mark_every=arguments.size("mark_every", "distance of marks") if arguments.has("mark_every") else None,
        since=arguments.one("since"),
        deterministic=(arguments.one("deterministic") or "") if arguments.has("deterministic") else None,
    )
    damage: list[tuple[int, int, DiskmillError]] = []

    def salvage(offset: int, length: int, error: DiskmillError) -> None:
        damage.append((offset, length, error))
        session.warn(f"{error}: {length} bytes from guest offset {offset} on are written as zeros")

    with shown(arguments, session, "convert") as report:
        made = perform(asked, context, target_context, progress=report, damaged=salvage)
    if made.zeros is not None and not session.as_json:
        session.note(str(made.zeros))
    if arguments.one("output") == "json":
        session.json(
            {
                "filename": arguments.operands[-1],
                "format": output_format,
                "bytes": report.total,
                "damage": [{"offset": at, "length": count, "cause": error.cause} for at, count, error in damage],
                **({"digest": made.digest} if made.digest is not None else {}),
                **(
                    {"target-zero": {k: v for k, v in made.zeros._asdict().items() if v is not None}}
                    if made.zeros is not None
                    else {}
                ),
            }
        )
    elif made.digest is not None and piped:
        session.note(made.digest)  # the image itself goes to standard output
    elif made.digest is not None:
        session.print(f"{made.digest}  {arguments.operands[-1]}")
    return 0


def _check(arguments: Arguments) -> None:
    """What only the command line can get wrong; the rest is for the conversion itself to say."""
    from diskmill.errors import UsageError

    if len(arguments.operands) < 2:
        raise UsageError("must specify image file names: one or more to read, then the one to write")
    for one, other, text in (
        ("offload", "sparse", "cannot offload copying when looking for zeros (-C and -S)"),  # even for none
        ("existing", "in_place", "--in-place makes an image anew, and -n writes into one that exists"),
        ("existing", "no_clobber", "--no-clobber refuses the image that -n writes into"),
        ("target_zero", "target_auto", "--target-is-zero says what --target-zero=auto finds out"),
    ):
        if arguments.has(one) and arguments.has(other):
            raise UsageError(text)


COMMAND = Command(
    "convert",
    "Copy images into a new one of any format.",
    "NAME… OUTPUT",
    (
        replace(common.FORMAT, flags=("-f", "--format", "--source-format")),
        replace(common.IMAGE_OPTS, flags=("--image-opts", "--source-image-opts")),
        common.SNAPSHOT,
        common.TARGET_FORMAT,
        common.OPTIONS,
        Option("target_image_opts", ("--target-image-opts",), "The output's name is an option string.", panel=_TARGET),
        Option("compress", ("-c", "--compress"), "Store the data compressed.", panel=_TARGET),
        Option("backing", ("-B", "-b", "--backing"), "Copy only what differs from this image.", "NAME", panel=_TARGET),
        common.BACKING_FORMAT,
        Option("existing", ("-n", "--no-create"), "Write into an image that exists.", panel=_TARGET),
        Option("target_zero", ("--target-is-zero",), "That image reads as zeros throughout.", panel=_TARGET),
        Option(
            "target_auto",
            ("--target-zero",),
            "See whether the output reads as zeros.",
            "HOW",
            ("auto",),
            False,
            _TARGET,
            ours=True,
        ),
        Option("deterministic", ("--deterministic",), "The same disk makes the same file.", "TEXT", (), True, _TARGET),
        Option("since", ("--since",), "The copy is as of this bitmap, snapshot or digests.", "WHAT", panel=_TARGET),
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
        Option(
            "reflink",
            ("--reflink",),
            "Share blocks instead of copying them.",
            "WHEN",
            ("auto", "always", "never"),
            True,
            _COPY,
            "never; auto with -C",
        ),
        Option("digest", ("--digest",), "Print the disk's digest, made out of the copy.", "NAME", (), True, _COPY),
        Option("verify", ("--verify",), "Read the output back before it gets its name.", panel=_COPY),
        Option("resume", ("--resume",), "Keep what is unfinished, and go on with it.", "FILE", (), True, _COPY),
        Option("mark_every", ("--mark-every",), "Data between marks to go on from.", "SIZE", (), False, _COPY, "252M"),
        Option("spool", ("--spool",), "Make a temporary copy of what comes or goes once.", "DIR", (), True, _COPY),
        Option("salvage", ("--salvage",), "Write zeros for what cannot be read, and go on.", panel=_COPY),
        replace(common.CACHE, flags=("-t", "--target-cache"), default="unsafe"),
        replace(common.SOURCE_CACHE, flags=("-T", "--source-cache")),
        common.PROGRESS,
        replace(common.OUTPUT, ours=True),
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
