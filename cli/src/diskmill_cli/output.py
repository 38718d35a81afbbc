"""Results as text, in qemu-img's words, and as JSON, in its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diskmill.contract.results import Snapshot


def to_json(value: Any) -> str:
    """*value* as indented JSON, members in the order in which QEMU prints them: ASCII, U+FFFD for a byte of a
    name that is not UTF-8, and names without credentials."""
    import json
    import re

    from diskmill.qapi import ordered

    text = json.dumps(_shown(ordered(value)), indent=4, ensure_ascii=False)
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\N{REPLACEMENT CHARACTER}", text)  # a byte's are \udc80 to \udcff
    text = text.encode(errors="surrogateescape").decode(errors="replace")
    return re.sub("[^ -~\n]", lambda match: "\\u007F" if match[0] == "\x7f" else json.dumps(match[0])[1:-1], text)


def _shown(value: Any) -> Any:
    from diskmill.errors import shown

    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {key: _shown(one) for key, one in value.items()}
    return [_shown(one) for one in value] if isinstance(value, list | tuple) else value


def tree(value: Any, indent: int = 4) -> Iterator[str]:
    """Nested *value* as indented lines: what follows ``Format specific information:``."""
    from diskmill.qapi import ordered

    pairs: Iterator[tuple[str, Any]]
    if isinstance(value, Mapping):
        pairs = ((key.replace("-", " "), one) for key, one in ordered(value).items())
    else:
        pairs = ((f"[{index}]", one) for index, one in enumerate(value))
    for key, one in pairs:
        if isinstance(one, Mapping | list | tuple):
            yield f"{' ' * indent}{key}:"
            yield from tree(one, indent + 4)
        else:
            yield f"{' ' * indent}{key}: {scalar(one)}"


def scalar(value: Any) -> str:
    """A plain value, booleans in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_SNAPSHOT = "{} {} {:>8}{:>20}{:>13}{:>11}".format


def snapshot_lines(snapshots: Sequence[Snapshot], *, plain: bool = False) -> Iterator[str]:
    """The table of internal snapshots.

    :param plain: columns are as wide as qemu-img makes them: in bytes.
    """
    from diskmill.sizes import format_size

    yield _SNAPSHOT("ID".ljust(9), "TAG".ljust(16), "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
    for one in snapshots:
        icount = "" if one.icount is None else str(one.icount)
        pad = _in_bytes if plain else str.ljust
        id, name = pad(one.id, 9), pad(one.name, 16)
        yield _SNAPSHOT(id, name, format_size(one.vm_state_size), date(one), clock(one), icount)


def _in_bytes(text: str, width: int) -> str:
    """*text* with as many spaces behind it as make *width* bytes."""
    return text + " " * (width - len(text.encode(errors="surrogateescape")))


def date(snapshot: Snapshot) -> str:
    """When *snapshot* was taken, in local time."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.date_sec))


def clock(snapshot: Snapshot) -> str:
    """The guest's clock at *snapshot*: hours, minutes, seconds and milliseconds."""
    seconds = snapshot.vm_clock_sec
    millis = snapshot.vm_clock_nsec // 1_000_000
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{millis:03d}"
