"""``diskmill rebase``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.rebase import rebase
    from diskmill.errors import UsageError

    name = arguments.operand()
    backing = arguments.one("backing")
    if backing is None:
        if not arguments.has("unsafe"):
            raise UsageError("must specify backing file (-b) or use simple rebase mode (-u)")
        backing = ""
    context = common.context_of(arguments, session)
    with shown(arguments, session, "rebase") as report:
        rebase(
            name,
            backing,
            backing_format=arguments.one("backing_format"),
            unsafe=arguments.has("unsafe"),
            compress=arguments.has("compress"),
            format=arguments.one("format"),
            image_opts=arguments.has("image_opts"),
            context=replace(context, share=False),
            source_context=common.other_side(context, arguments, key="source_cache"),
            progress=report,
        )
    if arguments.one("output") == "json":
        session.json(
            {
                "filename": name,
                "backing-filename": backing or None,
                "backing-filename-format": arguments.one("backing_format"),
            }
        )
    return 0


COMMAND = Command(
    "rebase",
    "Give an overlay another backing image.",
    "NAME",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option("backing", ("-b", "--backing"), "The new backing image; '' for none.", "NAME", panel="The image"),
        replace(common.BACKING_FORMAT, flags=("-F", "-B", "--backing-format"), panel="The image"),
        Option("unsafe", ("-u", "--backing-unsafe"), "Only change the name that is written.", panel="The image"),
        Option("compress", ("-c", "--compress"), "Store what is copied compressed.", panel="The image"),
        common.CACHE,
        replace(common.SOURCE_CACHE, flags=("-T", "--backing-cache")),
        common.PROGRESS,
        replace(common.OUTPUT, ours=True),
        common.QUIET,
        *common.ACCESS,
    ),
    run,
    about="The image reads the same as before: what differs between the old and the new backing image is copied into "
    "it. With -u nothing is compared and nothing copied.",
    examples=(
        Example("diskmill rebase -b new-base.qcow2 -F qcow2 disk.qcow2", "onto another base"),
        Example("diskmill rebase -b '' disk.qcow2", "onto none: the image stands alone"),
        Example("diskmill rebase -u -b moved/base.qcow2 -F qcow2 disk.qcow2", "the base was only moved"),
    ),
)
