"""Reads the disk of an image from its beginning to its end, in one process: ``python -m bench.reading LIBRARY IMAGE``.

LIBRARY is diskmill, or dissect: https://docs.dissect.tools, whose readers of disk images are Python's best known.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
"""Bytes that are asked for at once."""


def with_diskmill(path: Path) -> int:
    import diskmill
    from diskmill.sizes import new_buffer

    buffer = memoryview(new_buffer(CHUNK))
    at = 0
    with diskmill.open(path, path.name) as disk:
        while at < disk.size:
            part = buffer[: disk.size - at]
            disk.read_into(at, part)
            at += len(part)
    return at


def with_dissect(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        disk = opened(path, file)
        while data := disk.read(CHUNK):
            found += len(data)
    return found


def opened(path: Path, file: Any) -> Any:
    """The disk of the image at *path*, which *file* reads, and whose name is its format, by dissect."""
    from dissect.hypervisor import vdi, vhd, vhdx, vmdk  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from dissect.hypervisor.disk import qcow2  # type: ignore[import-not-found, import-untyped, unused-ignore]

    readers: dict[str, Callable[[], Any]] = {
        "qcow2": lambda: qcow2.QCow2(file).open(),
        "vmdk": lambda: vmdk.VMDK(file),
        "vdi": lambda: vdi.VDI(file),
        "vpc": lambda: vhd.VHD(file),
        "vhdx": lambda: vhdx.VHDX(path),
    }
    disk = readers[path.name]()
    return disk.open() if hasattr(disk, "open") else disk


if __name__ == "__main__":
    library, image = sys.argv[1:]
    print({"diskmill": with_diskmill, "dissect": with_dissect}[library](Path(image)))
