"""What is fuzzed: an image as its pieces that are not zeros, so that a mutation seldom hits what nobody reads."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from twins import PAGE, Content

SEALED, WRITTEN, SHOWN = 1, 2, 4
"""Flags: the format's checksums are right all the same; it is written to and repaired, not only read; it is shown, as
command lines show it."""
_HEAD = struct.Struct("<BQ")
_PIECE = struct.Struct("<QI")
_GAP = 24
"""Zeros that end a piece."""
_MOST_PIECES = 300
_LIMITS = (0, 1, 2, 3, 4, 8, 9, 16, 63, 64, 65, 511, 512, 513, 4096, 65535, 65536, 1 << 20)
_LIMITS += tuple(value for bits in (7, 8, 15, 31, 32, 33, 48, 56, 62, 63, 64) for value in ((1 << bits) - 1, 1 << bits))


@dataclass
class Mutant:
    """An image of *size* bytes, zeros but for its *pieces*, (offset, bytes) each; later ones lie over earlier ones."""

    size: int
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    flags: int = 0

    @classmethod
    def of(cls, content: Content, flags: int = 0) -> Mutant:
        """*content*, taken apart where it has stretches of zeros."""
        mutant = cls(content.size, flags=flags)
        for low, high in content.runs(0, content.size):
            data, at = bytes(content.read(low, high - low)), 0
            while at < len(data):
                at += len(data[at : at + PAGE]) - len(data[at : at + PAGE].lstrip(b"\0"))
                if at >= len(data) or not data[at]:
                    continue
                end = data.find(bytes(_GAP), at)
                end = len(data) if end < 0 else end
                mutant.pieces.append((low + at, data[at:end].rstrip(b"\0")))
                at = end
        return mutant

    @classmethod
    def unpack(cls, data: bytes) -> Mutant | None:
        """What :meth:`pack` made; None: it is no such thing."""
        if len(data) < _HEAD.size:
            return None
        flags, size = _HEAD.unpack_from(data)
        mutant, at = cls(size, flags=flags), _HEAD.size
        while at + _PIECE.size <= len(data):
            offset, length = _PIECE.unpack_from(data, at)
            at += _PIECE.size
            mutant.pieces.append((offset, data[at : at + length]))
            at += length
        return mutant if at == len(data) and mutant.possible else None

    @property
    def possible(self) -> bool:
        """Whether a file system would take a file like that."""
        return 0 <= self.size < 1 << 50 and all(at >= 0 and at + len(data) < 1 << 50 for at, data in self.pieces)

    def pack(self) -> bytes:
        parts = [_HEAD.pack(self.flags, self.size)]
        for offset, data in self.pieces:
            parts += (_PIECE.pack(offset, len(data)), data)
        return b"".join(parts)

    def content(self) -> Content:
        """The image as a file in memory."""
        content = Content()
        for offset, data in self.pieces:
            content.write(offset, data)
        content.truncate(self.size)
        return content

    def mutate(self, chance: random.Random, scramble: Callable[[bytes, int], bytes]) -> None:
        """Damage it in a few places.

        :param scramble: (bytes, the most to give) → other bytes: the fuzzing engine's own mutations.
        """
        for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
            self._damage(chance, scramble)
        if len(self.pieces) > _MOST_PIECES:
            self.pieces = Mutant.of(self.content()).pieces

    def _damage(self, chance: random.Random, scramble: Callable[[bytes, int], bytes]) -> None:
        kind = chance.random()
        if kind < 0.05 or not self.pieces:
            self.flags ^= chance.choice((SEALED, WRITTEN, SHOWN))
        elif kind < 0.08:
            self.size = (
                self._number(chance) if chance.random() < 0.5 else max(self.size + chance.randrange(-600, 600), 0)
            )
        else:
            index = chance.randrange(len(self.pieces))
            offset, data = self.pieces[index]
            if kind < 0.60:  # a field of a structure, aligned as fields are
                width = chance.choice((1, 2, 4, 4, 4, 8, 8))
                at = chance.randrange(-min(offset, 16), len(data) + 64) // width * width
                value = self._number(chance)
                if chance.random() < 0.3 and 0 <= at < len(data):
                    value = int.from_bytes(data[at : at + width], "little") + chance.choice((-1, 1, 512, -512, 65536))
                raw = (value & (1 << 8 * width) - 1).to_bytes(width, chance.choice(("little", "big")))  # type: ignore[arg-type]
                self.pieces[index] = self._overlay(offset, data, at, raw)
            elif kind < 0.65:  # one structure over another
                source = chance.choice(self.pieces)[1]
                length = chance.choice((8, 16, 24, 32, 64, 512))
                start = chance.randrange(max(len(source), 1)) // 4 * 4
                self.pieces[index] = self._overlay(
                    offset, data, chance.randrange(len(data) + 8), source[start : start + length]
                )
            elif kind < 0.70:
                self.pieces[index] = (max(offset + chance.choice((-512, 512, -4096, 4096, -8, 8, 65536)), 0), data)
            elif kind < 0.73:
                del self.pieces[index]
            else:  # text grows and shrinks, and the engine knows what the code has compared with
                low = chance.randrange(len(data) + 1)
                high = min(low + chance.choice((0, 1, 4, 8, 20, 64)), len(data))
                part = scramble(data[low:high] or b"\0", high - low + chance.choice((0, 8, 64)) or 8)
                keep = chance.random() < 0.5  # what follows stays where it is
                rest = data[low + len(part) :] if keep else data[high:]
                self.pieces[index] = (offset, data[:low] + part + rest)

    def _number(self, chance: random.Random) -> int:
        kind = chance.random()
        if kind < 0.6:
            return chance.choice(_LIMITS)
        if kind < 0.9:  # a place in the file, in bytes or in what formats count in
            at = chance.choice(self.pieces)[0] if self.pieces and chance.random() < 0.6 else self.size
            return at // chance.choice((1, 1, 512, 4096, 65536)) + chance.choice((0, 0, 0, -1, 1))
        return chance.getrandbits(64)

    @staticmethod
    def _overlay(offset: int, data: bytes, at: int, part: bytes) -> tuple[int, bytes]:
        """The piece with *part* at *at* of it, which may lie before or behind it."""
        if at < 0:
            offset, data, at = offset + at, bytes(-at) + data, 0
        data = data.ljust(at, b"\0")
        return offset, data[:at] + part + data[at + len(part) :]
