"""Takes the README's picture: runs diskmill under a pseudo-terminal and saves what it shows as SVG, through rich.

Run by `python3 dev.py picture`, which makes the disk first; the argument is the folder with `disk.raw`.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, LINES = 100, 60
COMMANDS = (
    ("convert", "-p", "-O", "qcow2", "-c", "disk.raw", "disk.qcow2"),
    ("info", "disk.qcow2"),
    ("compare", "disk.raw", "disk.qcow2"),
)


def shown(command: list[str], folder: Path, *, columns: int = COLUMNS, env: Mapping[str, str] | None = None) -> str:
    """What a command leaves on a terminal of that width, colours included."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    # The width is the terminal's: COLUMNS and LINES, where somebody set them, would overrule it.
    around = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    env = {**around, "TERM": "xterm-256color", "COLORTERM": "truecolor", **(env or {})}
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    pieces = []
    while True:
        try:
            piece = os.read(leader, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(leader)
    if process.wait():
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return settled(b"".join(pieces).decode())


def settled(output: str) -> str:
    """The output with what was drawn over taken away: a progress bar is there once, at its end."""
    lines = [""]
    for part in re.split(r"(\r\n|\n|\r|\x1b\[1A|\x1b\[2K|\x1b\[\?25[lh])", output):
        if part in ("\r\n", "\n"):
            lines.append("")
        elif part == "\x1b[1A":
            lines.pop()
        elif part in ("\r", "\x1b[2K"):
            lines[-1] = ""
        elif not part.startswith("\x1b[?25"):
            lines[-1] += part
    return "\n".join(lines).rstrip("\n")


def main(folder: Path) -> None:
    target = Path(__file__).parent / "img" / "terminal.svg"
    program = Path(sys.executable).with_name("diskmill")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    for words in COMMANDS:
        console.print(Text.assemble(("$ ", "bold green"), (f"diskmill {' '.join(words)}", "bold")))
        console.print(Text.from_ansi(shown([str(program), *words], folder)))
        console.print()
    target.parent.mkdir(exist_ok=True)
    # The picture stands alone: it fetches no font, the viewer's monospace one will do.
    target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="diskmill"), flags=re.DOTALL))
    print(f"Wrote {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
