"""What lies beneath an operation: the storages of its images, how they want to be asked, and how they are left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from ..contract.node import Node, Storage
from ..sizes import MiB
from .workers import MAX_THREADS, Order

_NEAR = 6
"""Tasks that may be read at once of what comes once, so that it need not be kept for long."""
_MEMORY = 64 * MiB
"""What the buffers of all workers may take together, where storages want long requests."""


def storages(nodes: Iterable[Node]) -> Iterator[Storage]:
    """The storages at the bottom of *nodes*, each once."""
    seen = set[int]()
    for node in nodes:
        for storage in node.leaves():
            if id(storage) not in seen:
                seen.add(id(storage))
                yield storage


def interrupt(nodes: Iterable[Node]) -> None:
    """Let whoever waits in a call of a storage beneath *nodes* leave it; see :meth:`Storage.interrupt`."""
    seen, stack = set[int](), list(nodes)
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            node.interrupt()  # a filter may wait, too
            stack += node.children()


def threads(nodes: Iterable[Node]) -> int:
    """How many workers pay: one for each processor, or more where a storage waits for a network meanwhile."""
    at_once = max((storage.requests.at_once for storage in storages(nodes)), default=0)
    return min(max(len(os.sched_getaffinity(0)), at_once), MAX_THREADS)


def order(nodes: Iterable[Node]) -> Order:
    """In which order tasks have to be read of *nodes*: of what only goes forward, near each other."""
    return Order(_NEAR if any(storage.forward for storage in storages(nodes)) else sys.maxsize)


def chunk(nodes: Iterable[Node], least: int, count: int) -> int:
    """Bytes that each of *count* workers should deal with at once: *least*, or more where a storage wants that."""
    best = max((storage.requests.best for storage in storages(nodes)), default=0)
    return max(least, min(best, _MEMORY // count))
