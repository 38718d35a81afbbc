"""OVF descriptors: which files are disks. Source: DMTF DSP0243, Open Virtualization Format Specification 2.1.1."""

from __future__ import annotations

from diskmill.errors import ImageError, UsageError
from diskmill.kit.markup import Element, parse
from diskmill.sizes import MiB

MOST = 4 * MiB
"""Bytes of a descriptor at most."""


def disks_of(data: bytes, name: str) -> list[str]:
    """The names of the files that have the disks, in the descriptor's order.

    :raises ImageError: it is damaged, or hostile.
    """
    root = parse(data, file=name, place="descriptor", attributes=("href", "id", "fileRef"))
    files: dict[str, str] = {}
    disks: list[str] = []
    for section in root.children:
        for one in section.children:
            if _local(section) == "References" and _local(one) == "File":
                files[one.attributes.get("id", "")] = one.attributes.get("href", "")
            elif _local(section) == "DiskSection" and _local(one) == "Disk" and "fileRef" in one.attributes:
                disks.append(one.attributes["fileRef"])
    missing = [one for one in disks if not files.get(one)]
    if missing:
        raise ImageError(f"no file has the id '{missing[0]}' of a disk", file=name, place="descriptor")
    return [files[one] for one in disks]


def _local(element: Element) -> str:
    return element.tag.rpartition(":")[2]


def chosen(names: list[str], wanted: str | None, name: str) -> int:
    """The index in *names*, those of disks, of the one that is *wanted*.

    :raises UsageError: it is not told which. ImageError: there is none.
    """
    if not names:
        raise ImageError("there is no disk in it", file=name)
    if wanted is None:
        if len(names) > 1:
            raise UsageError(f"it has several disks: choose one by disk=NAME: {', '.join(names[:50])}", file=name)
        return 0
    if wanted in names:
        return names.index(wanted)
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:6]) <= len(names):
        return int(wanted[:6]) - 1
    raise UsageError(f"there is no disk '{wanted}' in it, but {', '.join(names[:50])}", file=name)
