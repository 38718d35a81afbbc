"""``create``: a new, empty image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..contract.drivers import FormatDriver, ProtocolDriver
from ..contract.options import Option, Value, validate
from ..contract.requests import Backing
from ..errors import UnsupportedError, UsageError, said
from ..opening.context import Context
from ..opening.creation import create_image, split_options
from ..opening.graph import open_image
from ..opening.names import Name, display, given_name, parse_name, relative_to
from ..opening.places import new_place, written_name
from ..sizes import MAX_SIZE, parse_size, whole

if TYPE_CHECKING:
    from ..contract.results import Creation

SIZE = Option("size", "size", "Virtual disk size")
BACKING = (
    Option("backing_file", "str", "File name of a base image"),
    Option("backing_fmt", "str", "Image format of the base image"),
)


def create(
    name: Name,
    size: int | None = None,
    *,
    format: str = "raw",
    options: Mapping[str, Any] | None = None,
    backing: Name | None = None,
    backing_format: str | None = None,
    unsafe: bool = False,
    context: Context | None = None,
) -> Creation:
    """Make the image *name*, which reads as zeros, or as its backing image does.

    :param size: the guest disk's size in bytes; None: the backing image's.
    :param options: the format's ``create`` options, and ``size``, ``backing_file`` and ``backing_fmt``.
    :param backing: the backing image, as it is to be written into the image: a relative path is relative to the
        image's own folder.
    :param unsafe: do not look whether the backing image is there.
    :raises UsageError: there is no size, or no backing format; an option is unknown or has a bad value.
    :raises DiskmillError: the backing image cannot be opened, or the image not be written.
    """
    name = given_name(name)
    backing = None if backing is None else given_name(backing)
    context = context or Context()
    size = None if size is None else whole(size, "size")
    rest = dict(options or {})
    if "size" in rest:
        if size is not None:
            raise UsageError("the image's size is given twice, as an option and as a parameter", file=name)
        given = rest.pop("size")
        size = given if isinstance(given, int) else parse_size(str(given))
    named, kind = rest.pop("backing_file", None), rest.pop("backing_fmt", None)
    backing = named if backing is None else backing
    if backing == "":
        raise UsageError("the backing image's name is empty", file=name)
    backing_format = kind if backing_format is None else backing_format
    if backing_format is not None and not backing:
        raise UsageError("a backing format goes with a backing image", file=name)
    driver = context.registry.format(format)
    if backing_format is not None:
        context.registry.format(backing_format)
    base, inputs = None, set[object]()
    if backing:
        if "backing" not in driver.capabilities:
            raise UnsupportedError(f"format '{format}' does not support backing files", file=name)
        if unsafe and backing_format is None:  # a guess, later, would be the guest's to make
            raise UsageError(
                f"a backing image that is not looked at needs {said('backing_format', 'its format: name it with -F')}",
                file=name,
            )
        base = _backing(name, backing, backing_format, unsafe, context, inputs)
        if size is None:
            size = base.size
    if size is None:
        raise UsageError("a new image needs a size", file=name)
    if not 0 <= size <= MAX_SIZE:
        raise UsageError(f"the size must be 0 to {MAX_SIZE} bytes", file=name)
    image = create_image(name, format, size, rest, context=context, backing=base, inputs=inputs)
    try:
        image.settle()
    except BaseException:
        image.abandon()
        raise
    image.close()
    from ..contract.results import Creation

    protocol: ProtocolDriver = new_place(name, context.registry).driver
    own, below = split_options(driver, protocol, rest, context.habits.idle_options)
    settings = {**_settings(driver, own), **below}
    return Creation(name, format, size, settings, base.name if base else None, backing_format)


def _backing(
    name: str, backing: str, format: str | None, unsafe: bool, context: Context, inputs: set[object]
) -> Backing:
    """The backing image, looked at if *unsafe* does not say otherwise; its files are added to *inputs*."""
    own = new_place(name, context.registry)
    written = written_name(backing, own, context.registry)
    if unsafe:
        return Backing(written, format)
    spec = relative_to(parse_name(backing), own)
    if display(spec) == own.display():
        raise UsageError("an image cannot be its own backing image", file=name)
    from .identity import identities

    # Only its size and format are asked: what it stands on in turn is none of this command's business.
    with open_image(spec, format, context=context, shallow=True) as base:
        if format is None:
            raise UsageError(
                f"the backing image is given without its format: '{base.driver.name}' was detected", file=name
            )
        inputs.update(identities([base]))
        return Backing(written, format, base.size, base.details())


def _settings(driver: FormatDriver, options: Mapping[str, Any]) -> dict[str, Value]:
    """The options that the new image has, defaults included, in the order that the driver declares them."""
    values = validate(driver.options, options, when="create", driver=driver.name)
    return {option.name: values[option.name] for option in driver.options if option.name in values}


def options_for(format: str, name: str | None = None, *, context: Context | None = None) -> list[Option]:
    """Every option that *format* takes to create an image; with *name*, also those of the storage it names.

    :raises DriverError: there is no such format.
    """
    context = context or Context()
    driver = context.registry.format(format)
    found = {option.name: option for option in declared(driver)}
    if name is not None:
        protocol: ProtocolDriver = new_place(name, context.registry).driver
        found = {option.name: option for option in protocol.options if "create" in option.when} | found
    return [found[key] for key in sorted(found)]


def declared(driver: FormatDriver) -> list[Option]:
    """The options of *driver* to create an image, with those that the core takes for every driver."""
    common = [SIZE, *(BACKING if "backing" in driver.capabilities else ())]
    return [*common, *(option for option in driver.options if "create" in option.when)]
