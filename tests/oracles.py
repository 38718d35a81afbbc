"""Other programs, asked about images that the kit's suites made: see the fixture ``oracle``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diskmill_testkit.machine import Machine
from tools import qemu_img

CHECKED_BY_QEMU = ("qcow2", "qed", "vdi", "vhdx", "vmdk", "parallels")


def agreed(machine: Machine, format: str, options: Mapping[str, Any], folder: Path) -> None:
    """qemu-img finds at most leaks, and reads what we read."""
    if format not in CHECKED_BY_QEMU or (format == "vdi" and "cluster_size" in options):  # QEMU has blocks of 1 MiB
        return
    for name, content in machine.files.items():
        for path in (folder / name, folder / f"memory:{name}"):  # a descriptor names its extents so
            path.write_bytes(bytes(content))
    done = qemu_img("check", "-f", format, folder / "disk", check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    with machine.open("disk", format) as image:
        disk = image.read(0, image.size)
    qemu_img("convert", "-f", format, "-O", "raw", folder / "disk", folder / "read")
    assert (folder / "read").read_bytes() == disk
