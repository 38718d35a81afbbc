"""What lies below a folder of a protocol that can tell: a bucket of an object store, say."""

from __future__ import annotations

from collections.abc import Iterator

from ..contract import calls
from ..contract.options import validate
from ..contract.requests import OpenRequest
from ..opening.context import Context
from ..opening.names import flatten, parse_name
from ..opening.places import protocol_of


def listing(name: str, *, context: Context | None = None) -> Iterator[str]:
    """The names of the files below the folder *name* (``s3://bucket/2024/``), in whatever depth, one after the other.

    Their names have no secrets: what opens them is given with each (see :class:`~diskmill.Settings`).

    :raises UnsupportedError: the protocol cannot tell them.
    :raises StorageError: the service does not tell them.
    """
    context = context or Context()
    options = flatten(parse_name(name)["file"])
    driver = protocol_of(str(options.pop("driver", "file")), context.registry, shown=name)
    place = driver.place(options)
    options.pop("filename", None)
    request = OpenRequest(
        name=place.display(),
        context=context,
        options=validate(driver.options, options, when="open", driver=driver.name),
        place=place,
    )
    for found in calls.listing(context.registry, driver, request):
        yield found.display()
