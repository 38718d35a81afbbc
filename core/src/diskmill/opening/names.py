"""Image names: what a user types, or an image holds, turned into a tree of node options.

``disk.qcow2`` is ``{"file": {"driver": "file", "filename": "disk.qcow2"}}``; option strings
(``driver=qcow2,file.filename=disk``) and ``json:{…}`` names say the same in full. Children are nested mappings under
``file``, ``backing`` and so on. The forms are those of the QEMU manual ("Disk image file formats", ``--image-opts``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..contract.drivers import FormatDriver
from ..contract.node import Image
from ..contract.options import HelpAsked, split
from ..errors import UsageError
from ..storages.fileobj import hold

if TYPE_CHECKING:
    from ..contract.place import Place

Spec = dict[str, Any]

Name = str | os.PathLike[str] | BinaryIO | Image
"""What functions take as the name of an image: a name as a user types it; a path, which always is a file's; a binary
file object that can seek; or an image that is open."""

_PROTOCOL = re.compile(r"([^/:]*):")
"""What QEMU takes for a protocol, whatever it is: all before a colon that no slash comes before."""


def parse_name(name: str) -> Spec:
    """The node options that *name* stands for: a path, ``protocol:…``, or ``json:{…}``.

    :raises UsageError: a malformed ``json:`` name.
    """
    if name.startswith("json:"):
        return _parse_json(name)
    for device in DEVICES:
        if name.startswith(f"{device}:"):
            return {"file": {"driver": device, "filename": local_path(name[len(device) + 1 :])}}
    match = _PROTOCOL.match(name)
    if match is None:
        return {"file": {"driver": "file", "filename": name}}
    protocol = match.group(1)
    rest = name[match.end() :]
    if protocol == "file":
        path = rest.removeprefix("//") if rest.startswith("///") else rest
        return {"file": {"driver": "file", "filename": local_path(path)}}
    return {"file": {"driver": protocol, "filename": name}}


def given_name(name: Name) -> str:
    """*name* as a user would type it; of what is open already, a name that holds it.

    :raises UsageError: it is none of what names an image.
    """
    if isinstance(name, str):
        return name
    if isinstance(name, os.PathLike):
        return local_path(os.fsdecode(name))
    held = hold(name)
    if held is None:
        raise UsageError(f"an image's name is a string, a path, a file object or an image, not {type(name).__name__}")
    return held


def given_names(names: Iterable[Name] | Name) -> list[str]:
    """*names*, which may be a single one, as a user would type them."""
    several = isinstance(names, Iterable) and not isinstance(names, str) and not hasattr(names, "read")
    return [given_name(one) for one in (cast("Iterable[Name]", names) if several else [cast("Name", names)])]


def local_path(path: str) -> str:
    """The *path* of a file as a name that is surely one: a protocol is what else ends with the first colon."""
    return f"./{path}" if _PROTOCOL.match(path) else path


def new_file(name: str) -> Spec:
    """The options of the file that an output called *name* becomes: a path, or ``protocol:…``.

    :raises UsageError: *name* is a ``json:`` name, which says how to open what is there.
    """
    if name.startswith("json:"):
        raise UsageError(f"'{name[:200]}' cannot name a new image: name its file")
    return dict(parse_name(name)["file"])


def parse_options(text: str) -> Spec:
    """The node options of an ``--image-opts`` string: ``driver=qcow2,file.filename=disk,…``

    :raises UsageError: it is malformed.
    """
    try:
        return nest(split(text))
    except HelpAsked:
        raise UsageError(f"'{text[:200]}' names no image: an option string has no help") from None


def _parse_json(name: str) -> Spec:
    try:
        import json

        value = json.loads(_double_quoted(name[len("json:") :]), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot parse the name '{name[:200]}': {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"cannot parse the name '{name[:200]}': it is not a JSON object")
    try:
        return nest(value.items())
    except RecursionError:
        raise UsageError(f"cannot parse the name '{name[:200]}': it is nested too deeply") from None


_STRING = r"""("(?:[^"\\]|\\.)*")|'((?:[^'\\]|\\.)*)'"""
_ESCAPED_OR_QUOTE = r"""\\(.)|(")"""


def _double_quoted(text: str) -> str:
    """JSON *text*, in which strings may stand in single quotes, as QEMU's parser takes it, in the standard's form."""
    if "'" not in text:
        return text

    def string(match: re.Match[str]) -> str:
        inside = match[2] if match[2] is not None else match[1][1:-1]
        return f'"{re.sub(_ESCAPED_OR_QUOTE, character, inside, flags=re.DOTALL)}"'

    def character(match: re.Match[str]) -> str:
        return '\\"' if match[2] else "'" if match[1] == "'" else match[0]

    return re.sub(_STRING, string, text, flags=re.DOTALL)


def _object(pairs: list[tuple[str, Any]]) -> Spec:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice")
    return result


def _constant(name: str) -> Any:
    raise ValueError(f"'{name}' is no JSON value")


def nest(pairs: Iterable[tuple[str, Any]], *, depth: int = 0) -> Spec:
    """*pairs* with dotted names as nested mappings: ``file.filename=x`` is ``{"file": {"filename": "x"}}``.

    Children are what all formats have; the options of what else a driver stands on stay flat (``raw.filename``) until
    the driver is known, and :func:`~diskmill.opening.spec.node_spec` gathers them.

    :raises UsageError: options contradict each other, or are nested more than 32 deep.
    """
    result: Spec = {}
    for name, value in pairs:
        path, last = _path(name)
        if depth + len(path) > 32 or last.count(".") > _DOTS:
            raise UsageError(f"option '{name[:80]}' is nested too deeply")
        level = result
        for part in path:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise UsageError(f"option '{name}' and option '{part}' contradict each other")
        if isinstance(value, list) or isinstance(value, Mapping) and value and last not in FormatDriver.children:
            flat = flatten({last: value})
            if any(key.count(".") > _DOTS for key in flat):
                raise UsageError(f"option '{name[:80]}' is nested too deeply")
            level.update(flat)
        elif isinstance(value, Mapping):
            merged = level.setdefault(last, {})
            if not isinstance(merged, dict):
                raise UsageError(f"option '{name}' is given twice")
            merged.update(nest(value.items(), depth=depth + len(path) + 1))
        else:
            level[last] = value
    return result


def _path(name: str) -> tuple[list[str], str]:
    """The children that the dotted *name* leads through, and the option that it names there, which may have dots."""
    path = []
    head, dot, rest = name.partition(".")
    while dot and head in FormatDriver.children:
        path.append(head)
        name = rest
        head, dot, rest = name.partition(".")
    return path, name


DEVICES = ("host_device", "host_cdrom")
"""Other names of ``file``, which QEMU has for devices."""

_DOTS = 64
"""Dots that the name of an option may have: what filters stand on is no deeper, either."""


def child_options(value: object) -> Spec:
    """The node options of a child, given as options or by name. A plain name is a file without a format on top.

    :raises UsageError: it is neither.
    """
    if isinstance(value, str):
        spec = parse_name(value)
        return spec if value.startswith("json:") else dict(spec["file"])
    if isinstance(value, Mapping):
        return dict(value)
    raise UsageError("a child node is given by its options, or by a name")


def relative_to(reference: Spec, place: Place | None) -> Spec:
    """*reference*, a name out of an image at *place*, with relative names of files taken from there.

    What lies beside the image is held by the same protocol.

    :raises UnsupportedError: nothing lies beside *place*.
    """
    result: Spec = {
        key: relative_to(value, place) if isinstance(value, dict) else value for key, value in reference.items()
    }
    path = result.get("filename")
    is_file = result.get("driver", "file") in ("file", *DEVICES) and isinstance(path, str)
    if is_file and place is not None and not os.path.isabs(str(path)):
        beside = place.beside(str(path))
        if result.get("driver") not in DEVICES:
            result["driver"] = beside.driver.name
        result["filename"], result["place"] = beside.display(), beside
    return result


def display(spec: Mapping[str, Any]) -> str:
    """*spec* as a user would type it: the plain path where it is one, else a ``json:`` name."""
    file = spec.get("file", spec)
    if (
        isinstance(file, Mapping)
        and set(file) <= {"driver", "filename", "place"}
        and set(spec) <= {"driver", "file", "filename", "place"}
        and "filename" in file
    ):
        return str(file["filename"])
    import json

    return "json:" + json.dumps(_typed(spec))


def _typed(spec: Mapping[str, Any]) -> Spec:
    """*spec* without what the core has put in."""
    return {
        key: _typed(value) if isinstance(value, Mapping) else value for key, value in spec.items() if key != "place"
    }


def flatten(options: Mapping[str, Any], prefix: str = "") -> Spec:
    """*options* without nesting, as drivers declare them: ``{"encrypt": {"format": x}}`` is ``encrypt.format=x``, and
    ``{"server": [x]}`` is ``server.0=x``. What is empty stays, for who checks the options."""
    result: Spec = {}
    for key, value in options.items():
        if isinstance(value, list):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping) and value:
            result.update(flatten(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result
