"""What a crash leaves of an image: every state that the storage may be in when the power goes.

The twin storage keeps a journal of its changes. What was written before a barrier is on disk; of what came after it,
any part may be, in any order, and the last write may have been torn between two sectors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diskmill.contract.node import Image

from .twins import Content, MemoryStorage

SECTOR = 512

Change = tuple[Any, ...]


def apply(content: Content, change: Change) -> None:
    """Make one change of a journal to *content*."""
    if change[0] == "write":
        content.write(change[1], change[2])
    elif change[0] == "zero":
        content.write(change[1], bytes(change[2]))
    elif change[0] == "truncate":
        content.truncate(change[1])


def crash_states(
    before: Content, journal: list[Change], chance: random.Random, count: int
) -> Iterator[tuple[int, Content]]:
    """*count* states after a crash, each with the number of changes of *journal* that had been asked for by then.

    Half of them when a barrier had been asked for and had done nothing yet: then most is loose at once. All barriers
    come up about equally often.
    """
    barriers = [at for at, change in enumerate(journal) if change[0] == "barrier"] or [len(journal)]
    chance.shuffle(barriers)
    points = sorted(
        barriers[number // 2 % len(barriers)] if number % 2 else chance.randrange(len(journal) + 1)
        for number in range(count)
    )
    content, done = before.copy(), 0
    for point in points:
        barrier = max((at for at in range(done, point) if journal[at][0] == "barrier"), default=done)
        for change in journal[done:barrier]:
            apply(content, change)
        done = max(done, barrier)
        state = content.copy()
        loose = journal[done:point]
        manner = chance.choice(("all", "some", "some", "late", "shuffled", "torn"))
        if manner == "some":
            keep = chance.random()
            loose = [change for change in loose if chance.random() < keep]
        elif manner == "late":  # what was asked for last came first
            loose = loose[chance.randrange(len(loose) + 1) :]
        elif manner == "shuffled":
            chance.shuffle(loose)
            loose = loose[: chance.randrange(len(loose) + 1)]
        elif manner == "torn" and loose and loose[-1][0] == "write":
            _, offset, data = loose[-1]
            cut = chance.randrange(len(data) // SECTOR + 1) * SECTOR - offset % SECTOR
            loose[-1] = ("write", offset, data[: max(cut, 0)])
        for change in loose:
            apply(state, change)
        yield point, state


def spoilt_states(before: Content, journal: Sequence[Change], chance: random.Random, magic: bytes) -> Iterator[Content]:
    """At each barrier: what begins with *magic* and was being written is neither what was there nor what should come.

    Against that, formats keep something twice, and do not write both at once.
    """
    content, loose = before.copy(), []
    for change in [*journal, ("barrier",)]:
        if change[0] != "barrier":
            loose.append(change)
            continue
        state = content.copy()
        for one in loose:
            spoilt = one[0] == "write" and one[2].startswith(magic)
            apply(state, ("write", one[1], chance.randbytes(len(one[2]))) if spoilt else one)
            apply(content, one)
        loose.clear()
        yield state


def crash_of_several(
    before: Mapping[str, Content], journal: Sequence[tuple[str, Change]], chance: random.Random | None
) -> dict[str, Content]:
    """The files after a crash when all of *journal*, changes of several files, had been asked for.

    A barrier holds for one file; the next change, of whatever file, was asked for after it had returned. So it is
    with a new file that gets its name ("settle", with what was flushed of it), and with one that is removed.

    :param chance: which of the sectors that changed since each file's last barrier are on disk; None: all.
    """
    after = {}
    for name in [*before, *({file for file, _ in journal} - set(before))]:
        content: Content | None = before.get(name)
        changes = [change for file, change in journal if file == name]
        named = max((at for at, change in enumerate(changes) if change[0] in ("settle", "remove")), default=-1)
        if named >= 0:
            content = changes[named][1] if changes[named][0] == "settle" else None
            changes = changes[named + 1 :]
        if content is None:
            assert not changes
            continue
        barrier = max((at for at, change in enumerate(changes) if change[0] == "barrier"), default=0)
        sure, loose = changes[:barrier], changes[barrier:]
        if chance is not None:
            keep = chance.random()
            loose = [part for change in loose for part in _sectors(change) if chance.random() < keep]
            chance.shuffle(loose)
        after[name] = content.copy()
        for change in sure + loose:
            apply(after[name], change)
    return after


def _sectors(change: Change) -> Iterator[Change]:
    """A write as the sectors that it is made of: only one is written whole or not at all."""
    if change[0] != "write":
        yield change
        return
    _, offset, data = change
    at = 0
    while at < len(data):
        length = SECTOR - (offset + at) % SECTOR
        yield "write", offset + at, data[at : at + length]
        at += length


@dataclass
class Workload:
    """Writes and flushes to an image, and what its guest disk may hold after a crash."""

    image: Image
    model: bytearray
    """What the guest disk holds now."""
    journal: list[Change] = field(default_factory=list)
    before: Content = field(default_factory=Content)
    writes: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(changes asked for before, guest offset, bytes)"""
    flushed: list[tuple[int, bytes, int]] = field(default_factory=list)
    """(changes asked for, the guest disk, how many writes it has)"""

    def __post_init__(self) -> None:
        storage = self.image.file
        assert isinstance(storage, MemoryStorage)
        self.before = storage.content.copy()
        storage.journal = self.journal
        self.flushed.append((0, bytes(self.model), 0))

    def write(self, offset: int, data: bytes) -> None:
        """Whole sectors."""
        self.writes.append((len(self.journal), offset, data))
        self.model[offset : offset + len(data)] = data
        if data.strip(b"\0"):
            self.image.write(offset, data)
        else:
            self.image.zero(offset, len(data))

    def flush(self) -> None:
        self.image.flush()
        self.flushed.append((len(self.journal), bytes(self.model), len(self.writes)))

    def verify(self, point: int, disk: bytes) -> None:
        """Fail unless *disk* is what the guest disk may hold after a crash at *point*."""
        _, base, since = next(entry for entry in reversed(self.flushed) if entry[0] <= point)
        loose: dict[int, list[bytes]] = {}
        for asked, offset, data in self.writes[since:]:
            if asked <= point:
                for at in range(0, len(data), SECTOR):
                    loose.setdefault(offset + at, []).append(data[at : at + SECTOR])
        expected = bytearray(base)
        for at, values in loose.items():
            if disk[at : at + SECTOR] in values:
                expected[at : at + SECTOR] = disk[at : at + SECTOR]
        assert len(disk) == len(expected)
        wrong = [at for at in range(0, len(disk), SECTOR) if disk[at : at + SECTOR] != expected[at : at + SECTOR]]
        assert not wrong, f"crash after change {point}: sectors at {wrong[:8]} hold what was never there"


def random_workload(load: Workload, chance: random.Random, *, steps: int, longest: int) -> None:
    """Writes, zeros and flushes at random places."""
    size = load.image.size
    for _ in range(steps):
        start = chance.randrange(size // SECTOR) * SECTOR
        length = min(chance.randrange(1, longest // SECTOR) * SECTOR, size - start)
        data = bytes(length) if chance.random() < 0.2 else chance.randbytes(length)
        load.write(start, data)
        if chance.random() < 0.25:
            load.flush()
