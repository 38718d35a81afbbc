"""The program of a worker: takes jobs from standard input, and tells on standard output what became of them."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time
from typing import Any

from diskmill.jobs import Settings

from .work import perform

_OFTEN = 0.5
"""Seconds between two reports of progress."""
_TIDYING = 10.0
"""Seconds that a job has to end where nobody is left to be told."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints goes elsewhere
    given = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # orders are for nobody else: neither an image that is called so, nor a program that is started
    os.close(nothing)

    def answer(kind: str, value: object) -> None:
        data = pickle.dumps((kind, value))
        answers.write(len(data).to_bytes(4, "big") + data)
        answers.flush()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader, whom a terminal tells too, says what is to be done
    orders: queue.Queue[Any] = queue.Queue()
    gone = threading.Event()
    settings: Settings = pickle.load(given)

    def listen() -> None:
        try:
            while True:
                orders.put(pickle.load(given))
        except (EOFError, OSError, pickle.UnpicklingError):
            gone.set()
            orders.put(None)
            time.sleep(_TIDYING)
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while (order := orders.get()) is not None and not gone.is_set():
        line, terms = order
        told = 0.0

        def report(done: int, total: int) -> None:
            nonlocal told
            if (now := time.monotonic()) - told >= _OFTEN:
                told = now
                answer("progress", (done, total))

        record = perform(line, settings, terms, progress=report, cancel=gone)
        try:
            answer("done", record)
        except OSError:
            break


if __name__ == "__main__":
    main()
