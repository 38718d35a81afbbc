"""Takes the pictures of README and docs: runs diskmill under a pseudo-terminal and saves what it shows as SVG.

Run by `python3 dev.py picture`, which makes the disk first; the argument is the folder with `disk.raw`.
"""

from __future__ import annotations

import fcntl
import html
import io
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
PICTURES = {
    "terminal": (
        ("convert", "-p", "-O", "qcow2", "-c", "disk.raw", "disk.qcow2"),
        ("info", "disk.qcow2"),
        ("compare", "disk.raw", "disk.qcow2"),
    ),
    "info": (("info", "overlay.qcow2"),),
    "map": (("map", "--start-offset=128M", "overlay.qcow2"),),
    "check": (("check", "overlay.qcow2"), ("check", "damaged.qcow2")),
    "snapshot": (("snapshot", "-l", "overlay.qcow2"),),
    "drivers": (("drivers",),),
}
"""What each picture shows."""


def shown(
    command: list[str],
    folder: Path,
    *,
    columns: int = COLUMNS,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> str:
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
    if process.wait() and check:
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


def prepare(program: str, folder: Path) -> None:
    """The images of the pictures, out of `disk.raw`."""
    for words in (
        ("convert", "-O", "qcow2", "disk.raw", "base.qcow2"),
        ("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "overlay.qcow2"),
        ("snapshot", "-c", "before-upgrade", "overlay.qcow2"),
        ("bench", "-q", "-w", "-d", "1", "-c", "400", "-s", "64k", "-S", "64k", "-o", "300M", "overlay.qcow2"),
        (
            "bench",
            "-q",
            "-w",
            "-d",
            "1",
            "-c",
            "100",
            "-s",
            "64k",
            "-S",
            "64k",
            "-o",
            "800M",
            "--pattern=7",
            "overlay.qcow2",
        ),
        ("snapshot", "-c", "after-upgrade", "overlay.qcow2"),
    ):
        subprocess.run([program, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    damaged = bytearray((folder / "overlay.qcow2").read_bytes())
    (first,) = struct.unpack_from(">Q", damaged, struct.unpack_from(">Q", damaged, 40)[0])  # l1_table_offset
    struct.pack_into(">QQ", damaged, (first & 0xFFFFFFFFFE00) + 0x1000, 1 << 63 | 1 << 40, 1 << 63 | 1 << 41)
    (folder / "damaged.qcow2").write_bytes(damaged)


def words_of(text: str) -> set[str]:
    """The words in what a command printed, without numbers, units, paths and drawings."""
    text = re.sub(r"\x1b\[[0-9;]*m|[^ \n]*/[^ \n]*", " ", text)
    units = {"bytes", "KiB", "MiB", "GiB"}
    return {word for word in re.findall(r"[^\W\d_]{3,}", text) if word not in units}


def text_of(picture: Path) -> str:
    """The text that a picture shows."""
    lines: dict[str, list[str]] = {}
    for y, text in re.findall(r'<text [^>]*? y="([\d.]+)"[^>]*>([^<]*)</text>', picture.read_text()):
        lines.setdefault(y, []).append(html.unescape(text).replace("\xa0", " "))
    return "\n".join(" ".join(parts) for parts in lines.values())


def main(folder: Path) -> None:
    program = str(Path(sys.executable).with_name("diskmill"))
    for name in ("disk.qcow2", "overlay.qcow2"):
        (folder / name).unlink(missing_ok=True)
    prepare(program, folder)
    for name, commands in PICTURES.items():
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        for words in commands:
            console.print(Text.assemble(("$ ", "bold green"), (f"diskmill {' '.join(words)}", "bold")))
            console.print(Text.from_ansi(shown([program, *words], folder, check=False)))
            console.print()
        target = Path(__file__).parent / "img" / f"{name}.svg"
        target.parent.mkdir(exist_ok=True)
        # The picture stands alone: it fetches no font, the viewer's monospace one will do.
        target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="diskmill"), flags=re.DOTALL))
        print(f"Wrote {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
