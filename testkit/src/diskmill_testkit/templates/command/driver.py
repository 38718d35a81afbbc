"""``diskmill sample``: the declaration, which is imported for help; and what it does, which imports the rest."""

from __future__ import annotations

from diskmill_cli import common
from diskmill_cli.arguments import Arguments, Command
from diskmill_cli.session import Session


def run(arguments: Arguments, session: Session) -> int:
    import diskmill

    context = common.context_of(arguments, session)
    with diskmill.open(arguments.operand(), arguments.one("format"), context=context) as image:
        session.print(f"{image.size} bytes")  # FILL IN
    return 0


driver = Command("sample", "Tell how large a disk is.", "NAME", (common.FORMAT, *common.ACCESS), run)
