"""``diskmill glance``, a typer app."""

from typing import Annotated

import diskmill
import typer
from diskmill_cli import options

app = typer.Typer()


@app.command()
def glance(
    name: str,
    count: Annotated[int, typer.Option("--bytes", "-n", help="How many bytes.")] = 16,
    trust: options.Trust = None,
    object: options.Objects = None,
) -> None:
    """Show how a disk begins."""
    with diskmill.open(name, context=options.context(trust=trust, object=object)) as image:
        typer.echo(image.read(0, count).hex(" "))
