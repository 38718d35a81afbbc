"""Making new images: the storage first, under no name yet, then the format driver on top."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from .context import Context
from .drivers import FormatDriver, ProtocolDriver
from .errors import DriverError, UnsupportedError, UsageError
from .names import new_file
from .node import Image, Storage
from .options import Option, Value, validate
from .requests import Backing, CreateRequest
from .sizes import SECTOR, round_up


def create_image(
    name: str,
    format: str,
    size: int,
    options: Mapping[str, Any],
    *,
    context: Context,
    backing: Backing | None = None,
    compressed: bool = False,
    inputs: Iterable[object] = (),
) -> Image:
    """A new, empty image, open for writing, whose files do not have their names yet.

    The caller fills it and calls :meth:`Image.settle` when it is whole; :meth:`Image.abandon` leaves nothing behind.

    :param size: the guest disk's size in bytes; it is rounded up to whole sectors.
    :param options: the format's and the protocol's ``create`` options, as typed or as values.
    :param inputs: identities (:meth:`Storage.identity`) of files that are read for it, which no output may replace.
    :raises UsageError: an output is one of those, or two outputs would be one file.
    """
    registry = context.registry
    driver = registry.format(format)
    if "create" not in driver.capabilities:
        raise UnsupportedError(f"format '{format}' can only be read", file=name)
    if backing is not None and "backing" not in driver.capabilities:
        raise UnsupportedError(f"format '{format}' does not support backing files", file=name)
    spec = new_file(name)
    protocol = registry.protocol(str(spec["driver"]))
    own, below = split_options(driver, protocol, options, context.idle_options)
    read, taken = frozenset(inputs), set[object]()
    made: list[Storage] = []

    def expect_free(places: Collection[object], where: str) -> None:
        if not read.isdisjoint(places):
            raise UsageError("the output is also an input", file=where)
        if not taken.isdisjoint(places):
            raise UsageError("it would be two files of the new image at once", file=where)

    def output(where: str) -> Storage:
        if protocol.name == "file":  # where it is locked already, it would say so, and not why
            with suppress(OSError, ValueError):
                info = os.stat(where)
                expect_free([(info.st_dev, info.st_ino)], where)
        storage = new_storage(protocol, where, below, context)
        made.append(storage)
        places = storage.places()
        expect_free(places, where)
        taken.update(places)
        return storage

    def beside(path: str, *, leads: bool = False) -> Storage:
        file = output(os.path.join(os.path.dirname(str(spec["filename"])), path))
        first, second = (file, storage) if leads else (storage, file)
        if first.replaces and second.in_place and not first.in_place:
            raise UnsupportedError(
                f"it is written in place, and '{first.name}', which may go with it, would be replaced only afterwards: "
                "remove that first",
                file=second.name,
            )
        second.follow(first)
        return file

    try:
        storage = output(str(spec["filename"]))
        request = CreateRequest(
            name=name,
            context=context,
            size=round_up(size, SECTOR),
            options=validate(driver.options, own, when="create", driver=format),
            file=storage,
            backing=backing,
            sibling=beside,
            header=partial(beside, leads=True),
            compressed=compressed,
        )
        image = cast("Image | None", registry.call(driver, "create", request=request))
        if image is None:
            raise DriverError(f"format driver '{format}' cannot create images", file=name)
    except BaseException:
        for one in made:
            one.abandon()
        raise
    return image


def new_storage(
    protocol: ProtocolDriver,
    where: str,
    options: Mapping[str, Value],
    context: Context,
    *,
    like: Storage | None = None,
) -> Storage:
    """A new file, empty, which gets its name when it is settled.

    :param like: see :class:`~diskmill.requests.CreateRequest`.
    """
    if "create" not in protocol.capabilities:
        raise UnsupportedError(f"protocol '{protocol.name}' cannot create files", file=where)
    request = CreateRequest(
        name=where,
        context=context,
        size=0,
        options=validate(protocol.options, options, when="create", driver=protocol.name),
        like=like,
    )
    return cast(Storage, context.registry.call(protocol, "create", request=request))


def split_options(
    driver: FormatDriver, protocol: ProtocolDriver, options: Mapping[str, Any], idle: Sequence[Option] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """*options* that are the format driver's, and those that are the protocol driver's.

    :param idle: options, or values of theirs, that are taken without effect where neither has them.
    :raises UsageError: an option that nobody has.
    """
    formats = {option.name: option for option in driver.options if "create" in option.when}
    protocols = {option.name: option for option in protocol.options if "create" in option.when}
    spare = {option.name: option for option in idle}
    own: dict[str, Any] = {}
    below: dict[str, Any] = {}
    for name, value in options.items():
        option, other = formats.get(name) or protocols.get(name), spare.get(name)
        if other is not None and (option is None or (value in other.choices and value not in option.choices)):
            other.parse(value)
        elif name in formats:
            own[name] = value
        elif name in protocols:
            below[name] = value
        else:
            known = ", ".join(sorted({*formats, *protocols})) or "none"
            raise UsageError(f"format '{driver.name}' has no option '{name}' to create; it has: {known}")
    return own, below
