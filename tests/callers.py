"""Programs of others that call qemu-img get the drop-in instead, and what they call it with is written down."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tools import SEARCH_PATH


class Dropin:
    """A folder with a `qemu-img` that is ours, as first of a PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls"
        self.log.touch()
        program = folder / "qemu-img"
        ours = Path(sys.executable).with_name("qemu-img")
        program.write_text(f'#!/bin/sh\necho "$@" >>"{self.log}"\nexec "{ours}" "$@"\n')
        program.chmod(0o755)
        self.env = {"PATH": f"{folder}{os.pathsep}{SEARCH_PATH}", "HOME": str(folder)}

    def calls(self) -> list[str]:
        """The command lines since the last time that this was asked."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines
