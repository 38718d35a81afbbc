"""``diskmill peek``, a `Command` as our own are: its options as data."""

from diskmill_cli import common
from diskmill_cli.arguments import Arguments, Command, Example, Option
from diskmill_cli.session import Session


def run(arguments: Arguments, session: Session) -> int:
    import diskmill

    context = common.context_of(arguments, session)
    with diskmill.open(arguments.operand(), arguments.one("format"), context=context) as image:
        session.print(image.read(0, arguments.size("bytes", "length", 16)).hex(" "))
    return 0


COMMAND = Command(
    "peek",
    "Show how a disk begins.",
    "NAME",
    (
        common.FORMAT,
        Option("bytes", ("-n", "--bytes"), "How many bytes; default 16.", "SIZE"),
        *common.ACCESS,
    ),
    run,
    examples=(Example("diskmill peek -n 512 disk.qcow2", "its first sector"),),
)
