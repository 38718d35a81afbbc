"""Making new images: the storage first, under no name yet, then the format driver on top."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ..contract import calls
from ..contract.drivers import FormatDriver, ProtocolDriver
from ..contract.limits import Account
from ..contract.node import Image, Storage
from ..contract.options import Option, Value, validate
from ..contract.place import Place
from ..contract.requests import Backing, CreateRequest
from ..errors import StorageError, UnsupportedError, UsageError, did_you_mean
from ..kit.forward import needs_copy
from ..sizes import SECTOR, round_up
from .context import Context
from .names import DEVICES, new_file
from .places import expect_device, new_place


def create_image(
    name: str,
    format: str,
    size: int,
    options: Mapping[str, Any],
    *,
    context: Context,
    backing: Backing | None = None,
    compressed: bool = False,
    layout: Callable[[], Iterator[tuple[int, int]]] | None = None,
    inputs: Iterable[object] = (),
    unfinished: Callable[[Storage, FormatDriver, CreateRequest], Image] | None = None,
    growing: bool = False,
) -> Image:
    """A new, empty image, open for writing, whose files do not have their names yet.

    The caller fills it and calls :meth:`Image.settle` when it is whole; :meth:`Image.abandon` leaves nothing behind.

    :param size: the guest disk's size in bytes; it is rounded up to whole sectors.
    :param options: the format's and the protocol's ``create`` options, as typed or as values.
    :param layout: as in :class:`~diskmill.contract.requests.CreateRequest`.
    :param inputs: identities (:meth:`Storage.identity`) of files that are read for it, which no output may replace.
    :param unfinished: makes the image, or goes on with one, in storage that may have been left unfinished.
    :param growing: *size* is that of the beginning: nobody knows yet how large the disk becomes.
    :raises UsageError: an output is one of those, or two outputs would be one file.
    """
    registry = context.registry
    driver = registry.format(format)
    if "create" not in driver.capabilities:
        raise UnsupportedError(f"format '{format}' can only be read", file=name)
    if backing is not None and "backing" not in driver.capabilities:
        raise UnsupportedError(f"format '{format}' does not support backing files", file=name)
    place = new_place(name, registry)
    own, below = split_options(driver, place.driver, options, context.habits.idle_options)
    read, taken = frozenset(inputs), set[object]()
    made: list[Storage] = []

    def expect_free(places: Collection[object], where: str) -> None:
        if not read.isdisjoint(places):
            raise UsageError("the output is also an input", file=where)
        if not taken.isdisjoint(places):
            raise UsageError("it would be two files of the new image at once", file=where)

    def output(where: Place) -> Storage:
        if (identity := where.identity()) is not None:  # where it is locked already, it would say so, and not why
            expect_free([identity], where.display())
        known = 0 if growing else round_up(size, SECTOR)
        storage = new_storage(where, below, context, size=known, unfinished=unfinished is not None)
        made.append(storage)
        places = storage.places()
        expect_free(places, where.display())
        taken.update(places)
        return storage

    def beside(path: str, *, leads: bool = False) -> Storage:
        if unfinished is not None:
            raise UnsupportedError("an image of several files cannot be gone on with", file=name)
        file = output(place.beside(path))
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
        storage = output(place)
        settled = validate(driver.options, own, when="create", driver=format)
        foreseen = layout is not None and not compressed
        if storage.forward and not driver.goes_forward(settled, foreseen=foreseen):
            if context.spool is None:
                raise UnsupportedError(
                    f"format '{format}' cannot be written to {storage.one_pass} so: {needs_copy()}", file=name
                )
            from ..storages.spool import Spool

            made.append(storage := Spool(storage, context.spool, writable=True))
        for device in (format, new_file(name).get("driver")):
            if device in DEVICES and context.habits.devices_are_there and not storage.in_place:
                error = StorageError("No such file or directory", file=place.display())  # nobody makes devices
                error.opening = place.display()
                raise error
            expect_device(device, storage, context)
        request = CreateRequest(
            name=name,
            context=context,
            size=round_up(size, SECTOR),
            options=settled,
            file=storage,
            backing=backing,
            sibling=beside,
            header=partial(beside, leads=True),
            compressed=compressed,
            layout=layout,
        )
        make = partial(calls.create_image, registry, driver)
        image = make(request) if unfinished is None else unfinished(storage, driver, request)
    except BaseException:
        for one in made:
            one.abandon()
        raise
    return image


def new_storage(
    place: Place,
    options: Mapping[str, Value],
    context: Context,
    *,
    size: int = 0,
    like: Storage | None = None,
    unfinished: bool = False,
) -> Storage:
    """A new file, empty, which gets its name when it is settled.

    :param size: of the guest disk that it is for, in bytes; 0: that is not known.
    :param like: see :class:`~diskmill.contract.requests.CreateRequest`, as is *unfinished*.
    """
    protocol = place.driver
    if "create" not in protocol.capabilities:
        raise UnsupportedError(f"protocol '{protocol.name}' cannot create files", file=place.display())
    if unfinished:
        expect_unfinished(place)
    request = CreateRequest(
        name=place.display(),
        context=context,
        size=size,
        options=validate(protocol.options, options, when="create", driver=protocol.name),
        like=like,
        place=place,
        unfinished=unfinished,
    )
    storage = calls.create_storage(context.registry, protocol, request)
    storage.charged = Account(context.budget)
    if storage.place is None:
        storage.place = place
    return storage


def expect_unfinished(place: Place) -> None:
    """See that a new file at *place* that was left unfinished could be gone on with.

    :raises UnsupportedError: it could not.
    """
    if "unfinished" not in place.driver.capabilities:
        text = f"what protocol '{place.driver.name}' was left with unfinished cannot be gone on with"
        raise UnsupportedError(text, file=place.display())


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
            hint = did_you_mean(name, {*formats, *protocols})
            raise UsageError(f"format '{driver.name}' has no option '{name}' to create; it has: {known}", hint=hint)
    return own, below
