"""``amend``: change options of an image in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..contract import calls
from ..contract.drivers import FormatDriver
from ..contract.options import Option, validate
from ..engine.progress import Report, tell_phase
from ..errors import UnsupportedError, UsageError, said
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from ..sizes import SECTOR, round_up


def amend(
    name: Name,
    options: Mapping[str, Any],
    *,
    format: str | None = None,
    force: bool = False,
    image_opts: bool = False,
    context: Context | None = None,
    progress: Report | None = None,
) -> None:
    """Set *options* of the image *name*.

    :param options: the format's ``amend`` options; those that are not given stay as they are.
    :param force: allow what can make data unreachable, such as erasing the last key slot.
    :param progress: is told the phases; nobody knows how long each takes.
    :raises UnsupportedError: the format has nothing to amend.
    :raises UsageError: an option is unknown or has a bad value.
    """
    name = given_name(name)
    context = context or Context()
    if not options:
        raise UsageError(f"there is nothing to amend: give {said('options', 'options with -o')}", file=name)
    if "backing_file" in options or "backing_fmt" in options:
        raise UsageError("the backing image is not amended: use rebase", file=name)
    with open_image(name, format, context=context, writable=True, image_opts=image_opts) as image:
        driver = image.driver
        assert isinstance(driver, FormatDriver)
        require(driver, name)
        values = validate(driver.options, options, when="amend", driver=driver.name)
        if "size" in values:
            values["size"] = round_up(int(values["size"]), SECTOR)  # as in a new image
        tell_phase(progress, "amend")
        calls.amend(context.registry, image, values, force=force)


def require(driver: FormatDriver, name: str | None = None) -> None:
    """Refuse a format that has nothing to amend."""
    if "amend" not in driver.capabilities:
        raise UnsupportedError(f"format '{driver.name}' does not support option amendment", file=name)


def format_of(name: str, *, image_opts: bool = False, context: Context | None = None) -> str:
    """The format of the image *name*, whose options are asked for.

    :raises DiskmillError: it cannot be opened.
    """
    with open_image(name, context=context or Context(), shallow=True, image_opts=image_opts) as image:
        return image.driver.name


def options_for(format: str, *, context: Context | None = None) -> list[Option]:
    """Every option that *format* takes to amend an image, by name.

    :raises UnsupportedError: it takes none.
    """
    driver = (context or Context()).registry.format(format)
    require(driver)
    return sorted((option for option in driver.options if "amend" in option.when), key=lambda option: option.name)
