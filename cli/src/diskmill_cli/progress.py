"""How far an operation is: percent lines, a bar, JSON lines, and an answer to SIGUSR1."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arguments import Arguments
    from .session import Session

_AT_ONCE = ("convert", "rebase")
"""Commands whose progress qemu-img shows before it opens an image."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name))


class State:
    """The last that was reported, and when it began."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def phase(self, name: str) -> None:
        """Another part of the work begins: called *name*, and as long as it takes."""

    @property
    def percent(self) -> float:
        return 100 * self.done / self.total if self.total else 0.0

    def start(self) -> None:
        """Before the first report."""

    def repeat(self, beyond: int) -> None:
        """Once more, below a line that was printed meanwhile, if more than *beyond* bytes were reported."""

    def finish(self) -> None:
        """After success."""

    def stop(self) -> None:
        """Whatever happened."""

    def answer(self, number: int, frame: object) -> None:
        """A signal asks how far it is."""
        sys.stderr.write(f"    ({self.percent:3.2f}/100%)\n")
        sys.stderr.flush()


class _Percent(State):
    """qemu-img's lines: rewritten in place, at most one for each hundredth.

    :param at_once: begin before anything is known; otherwise with the first report, when all images are open.
    :param ends: end the line even where none was begun.
    :param completes: success is 100 %, however much was reported; otherwise there is an end that comes earlier.
    """

    def __init__(self, *, at_once: bool = False, ends: bool = False, completes: bool = True) -> None:
        super().__init__()
        self.at_once = at_once
        self.ends = ends
        self.completes = completes
        self.out = sys.stdout
        self.shown: float | None = None

    def start(self) -> None:
        if self.at_once:
            self._print(0.0)

    def __call__(self, done: int, total: int) -> None:
        super().__call__(done, total)
        if self.shown is None:
            self._print(0.0)
        elif self.percent >= self.shown + 1 or self.shown < self.percent == 100:
            self._print(self.percent)

    def repeat(self, beyond: int) -> None:
        if self.shown is not None and self.done > beyond:
            self._print(self.percent)

    def finish(self) -> None:
        if self.completes:
            if self.shown is None:
                self._print(0.0)
            self._print(100.0)

    def stop(self) -> None:
        if self.ends or self.shown is not None:
            self.out.write("\n")
            self.out.flush()

    def _print(self, percent: float) -> None:
        self.shown = percent
        self.out.write(f"    ({percent:3.2f}/100%)\r")
        self.out.flush()


class _Json(State):
    """One JSON object a line on stderr, ten a second at most, and one at the end."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self._phase = phase
        self._last = 0.0
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        super().__call__(done, total)
        now = time.monotonic()
        with self._lock:
            if now < self._last + 0.1:
                return
            self._last = now
        self._print(self._phase)

    def phase(self, name: str) -> None:
        with self._lock:
            self._phase = name
        self._print(name)

    def answer(self, number: int, frame: object) -> None:
        self._print(self._phase)

    def finish(self) -> None:
        self.done = self.total
        self._print("done")

    def _print(self, phase: str) -> None:
        import json

        seconds = max(time.monotonic() - self.began, 1e-6)
        rate = int(self.done / seconds)
        remaining = round((self.total - self.done) / rate, 3) if rate else None
        line = {"bytes": self.done, "total": self.total, "rate": rate, "remaining": remaining, "phase": phase}
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()


class _Bar(State):
    """A bar with rate and remaining time, and one more for each phase of the work."""

    def __init__(self, session: Session, phase: str) -> None:
        super().__init__()
        from diskmill.sizes import format_size
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Percent(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(f"{task.percentage:5.1f} %" if task.fields["measured"] else "", "progress.percentage")

        class Amount(ProgressColumn):
            def render(self, task: Any) -> Text:
                if not task.fields["measured"]:
                    return Text()
                text = f"{format_size(int(task.completed))} of {format_size(int(task.total))}"
                return Text(text, "progress.download")

        class Rate(ProgressColumn):
            def render(self, task: Any) -> Text:
                if not task.fields["measured"]:
                    return Text()
                rate = task.finished_speed or task.speed or task.completed / max(task.elapsed or 0, 0.001)
                return Text(f"{format_size(int(rate))}/s", "progress.data.speed")

        console = session.console()
        wide = (Amount(), Rate()) if console.width >= 70 else ()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            Percent(),
            *wide,
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            expand=True,
        )
        self._name = phase
        self._task: Any = None
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        super().__call__(done, total)
        with self._lock:
            if self._task is None:
                self._begin(self._name, total)
        self._bar.update(self._task, completed=done, total=total)

    def phase(self, name: str) -> None:
        with self._lock:
            self._end()
            self._begin(name, None)

    def _begin(self, name: str, total: int | None) -> None:
        self._bar.start()  # not before: a passphrase may have to be typed first
        self._task = self._bar.add_task(name, total=total, measured=total is not None)

    def _end(self) -> None:
        """What is shown last is done."""
        if self._task is not None:
            total = self._bar.tasks[-1].total or 1  # of a phase without a measure: a full bar, too
            self._bar.update(self._task, completed=total, total=total)

    def finish(self) -> None:
        with self._lock:
            self._end()

    def stop(self) -> None:
        self._bar.stop()

    def answer(self, number: int, frame: object) -> None:
        self._bar.refresh()


@contextlib.contextmanager
def shown(arguments: Arguments, session: Session, phase: str) -> Iterator[State]:
    """Show the progress of *phase* as the options ask; gives what to report it to (a :data:`Report`).

    Without ``-p`` nothing is shown until the process gets SIGUSR1 (or SIGINFO).
    """
    state = _state(arguments, session, phase)
    before = _on_signal(state.answer)
    try:
        state.start()
        yield state
        state.finish()
    finally:
        state.stop()
        for number, handler in before:
            signal.signal(number, handler)


def _state(arguments: Arguments, session: Session, phase: str) -> State:
    if not arguments.has("progress") or session.quiet:
        return State()
    if arguments.one("progress") == "json":
        return _Json(phase)
    if sys.stdout.isatty() and not session.plain and not session.as_json:
        return _Bar(session, phase)
    # What callers of qemu-img read where it fails: of commands that open images first, an empty line or nothing.
    lines = _Percent(
        at_once=session.plain and phase in _AT_ONCE,
        ends=session.plain and phase != "commit",
        completes=phase != "compare",
    )
    if session.as_json:  # which is alone on stdout
        lines.out = sys.stderr
    return lines


def _on_signal(handler: Any) -> list[tuple[int, Any]]:
    """Let the signals that ask for progress call *handler*; gives what they did before."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [(number, signal.signal(number, handler)) for number in _SIGNALS]
