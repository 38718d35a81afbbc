"""``diskmill create``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands import create
    from diskmill.contract.options import HelpAsked
    from diskmill.errors import UsageError
    from diskmill.sizes import parse_size

    format = common.format_of(arguments, "format")
    name, size, *more = [*arguments.operands, None, None][: max(len(arguments.operands), 2)]
    context = common.context_of(arguments, session)
    try:
        options = common.driver_options(arguments)
    except HelpAsked:
        found = create.options_for(format, name, context=context)
        return common.show_options(found, "Supported options" if name else f"Supported {format} options", session)
    if name is None:
        raise UsageError("expecting an image file name")
    common.refuse_overridden(arguments, lambda: create.options_for(format, name, context=context))
    if more:
        raise UsageError(f"unexpected argument: '{more[0]}'")
    common.tell_of_raw(arguments, session, "format", "-f", name)
    made = create.create(
        name,
        None if size is None else parse_size(size, what="image size"),
        format=format,
        options=options,
        backing=arguments.one("backing"),
        backing_format=arguments.one("backing_format"),
        unsafe=arguments.has("unsafe"),
        context=context,
    )
    if arguments.one("output") == "json":
        from diskmill.qapi import creation

        session.json(creation(made))
        return 0
    words = session.creation_words(made, options)
    session.print(" ".join((f"Formatting '{made.filename}', fmt={made.format}", *words)))
    return 0


COMMAND = Command(
    "create",
    "Make a new, empty image.",
    "NAME [SIZE]",
    (
        replace(common.FORMAT, help="The new image's format.", default="raw"),
        replace(common.OPTIONS, flags=("-o", "--options")),
        Option("backing", ("-b", "--backing"), "The image that the new one stands on.", "NAME", panel="The output"),
        replace(common.BACKING_FORMAT, flags=("-F", "-B", "--backing-format")),
        Option(
            "unsafe",
            ("-u", "--backing-unsafe"),
            "Do not look whether the backing image is there.",
            panel="The output",
        ),
        *common.OVERWRITE,
        common.OUTPUT,
        common.QUIET,
        *common.ACCESS[:1],
        common.TRUST,
        common.LIMITS,
    ),
    run,
    about="SIZE takes the suffixes k, M, G, T, P and E. With a backing image it may be left out: the backing image's "
    "size holds. The image gets its name when it is whole; an image of that name is replaced, which can be told "
    "otherwise (--in-place, --no-clobber).",
    examples=(
        Example("diskmill create -f qcow2 disk.qcow2 20G", "an image that grows up to 20 GiB"),
        Example("diskmill create -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2", "an overlay: what differs from its base"),
        Example("diskmill create -f qcow2 -o help", "the options of the format"),
    ),
)
