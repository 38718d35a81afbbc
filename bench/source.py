"""The disk that the benchmark works on: half data, half holes, the same bytes on every machine.

Run as a program (`python -m bench.source FILE SIZE`), so that its memory never counts as that of the programs measured.

The data is meant to behave like that of an ordinary disk, for compressors too: runs of random length (4 KiB to 4 MiB,
short ones as frequent as long ones, in blocks of 4 KiB as a file system gives them out) of text, of machine code and
tables, and of bytes that do not compress.
"""

from __future__ import annotations

import random
import sys
from itertools import accumulate

KiB = 1024
MiB = 1024 * KiB
BLOCK = 4 * KiB
LONGEST_RUN = 4 * MiB
POOL = 8 * MiB
SYLLABLES = ("an", "ba", "ce", "der", "di", "en", "fo", "ga", "hin", "ing", "ka", "le", "lo", "mar", "ment", "ne", "or")


def write(path: str, size: int, seed: int = 1) -> None:
    """Write a sparse file of `size` bytes, half of them data."""
    chance = random.Random(seed)
    pool_size = min(POOL, max(size // 4, BLOCK))  # a small disk needs little of each
    pools = (text(chance, pool_size), code(chance, pool_size), chance.randbytes(pool_size))
    with open(path, "wb") as file:
        file.truncate(size)
        offset, data, holes = 0, size // 2 // BLOCK * BLOCK, (size - size // 2) // BLOCK * BLOCK
        while data:
            length = min(run_length(chance), data, pool_size)
            pool = chance.choices(pools, weights=(45, 35, 20))[0]
            file.seek(offset)
            start = chance.randrange(len(pool) - length + 1)
            file.write(memoryview(pool)[start : start + length])
            gap = min(run_length(chance), holes)
            offset, data, holes = offset + length + gap, data - length, holes - gap


def run_length(chance: random.Random) -> int:
    doublings = (LONGEST_RUN // BLOCK).bit_length() - 1
    return int(BLOCK * 2 ** chance.uniform(0, doublings)) // BLOCK * BLOCK


def by_rank(count: int) -> list[float]:
    """Cumulative weights by which the first of `count` things is taken most often, as words of a language are."""
    return list(accumulate(1 / rank for rank in range(1, count + 1)))


def text(chance: random.Random, size: int) -> bytes:
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(20_000)]
    chosen = chance.choices(words, cum_weights=by_rank(len(words)), k=size // 4 + 1)
    ends = chance.choices((" ", " ", " ", " ", " ", ", ", ".\n", '="', "(", "_", "/"), k=len(chosen))
    return "".join(map("".join, zip(chosen, ends, strict=True))).encode()[:size]


def code(chance: random.Random, size: int) -> bytes:
    """Opcodes of one to seven bytes that recur, half of them with an operand: zeros, or one of many."""
    opcodes = [chance.randbytes(chance.randint(1, 7)) for _ in range(3_000)]
    chosen = chance.choices(opcodes, cum_weights=by_rank(len(opcodes)), k=size // 3 + 1)
    operands = [b"", bytes(4), b"\xff\xff\xff", *(chance.randbytes(2) for _ in range(400))]
    ends = chance.choices(operands, weights=(800, 160, 40, *(1.5,) * 400), k=len(chosen))
    return b"".join(map(b"".join, zip(chosen, ends, strict=True)))[:size]


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))
