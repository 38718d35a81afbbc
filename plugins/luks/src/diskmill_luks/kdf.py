"""Keys from passphrases: PBKDF2 (RFC 8018) and Argon2 (RFC 9106), and the most time that an image may ask for."""

from __future__ import annotations

import time
from functools import cache

from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.sizes import GiB, KiB, MiB

from .hashes import digest_size

DEFAULT_LIMIT = 60
"""Seconds of key derivation that an image may ask for, over all its key slots, unless the user allows more."""
DEFAULT_MEMORY = GiB
"""Bytes that Argon2 may fill for an image unless the user allows more: the most that cryptsetup takes by itself."""
DEFAULT_MILLISECONDS = 2000
"""Time to spend in the derivation of a new key slot's key; qemu-img's and cryptsetup's default."""
MIN_ITERATIONS = 1000
MAX_ITERATIONS = (1 << 31) - 1
"""OpenSSL counts with a C int."""

# Iterations of one block whose cost is not worth measuring first.
_CHEAP = 1 << 20
_MERGE_SPEED = 500_000  # hashes a second when key material is merged on a slow processor, roughly
_ARGON_SPEED = GiB  # bytes of memory filled in a second by a slow processor's thread, roughly


def pbkdf2(name: str, password: bytes | bytearray, salt: bytes, iterations: int, length: int) -> bytearray:
    """*length* bytes; *name* is the hash.

    :raises UnsupportedError: there is no such hash here, or the library cannot count so far.
    """
    digest_size(name)
    if iterations > MAX_ITERATIONS:
        raise UnsupportedError(f"a key derivation of {iterations} iterations is not supported")
    from cryptography.hazmat.primitives import hashes

    if hasattr(hashes, name.upper()):
        from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

        # Twice as fast as hashlib's.
        return bytearray(PBKDF2HMAC(getattr(hashes, name.upper())(), length, salt, iterations).derive(password))
    import hashlib

    return bytearray(hashlib.pbkdf2_hmac(name, password, salt, iterations, length))


@cache
def speed(name: str) -> float:
    """PBKDF2 iterations a second, for one block of output; measured once, in about 30 ms."""
    iterations = 1 << 13
    while True:
        start = time.thread_time()
        pbkdf2(name, b"speed", bytes(32), iterations, digest_size(name))
        spent = time.thread_time() - start
        if spent > 0.015:
            return iterations / spent
        iterations *= 2


def blocks(name: str, length: int) -> int:
    """How many times PBKDF2 iterates for *length* bytes."""
    return -(-length // digest_size(name))


def iterations_for(name: str, length: int, milliseconds: int) -> int:
    """PBKDF2 iterations that take *milliseconds* here.

    :raises UsageError: they are more than can be counted.
    """
    iterations = int(speed(name) / blocks(name, length) * milliseconds / 1000)
    if iterations > MAX_ITERATIONS:
        raise UsageError(f"the option 'iter-time' is too large: {milliseconds} ms are {iterations} iterations here")
    return max(iterations, MIN_ITERATIONS)


class Budget:
    """The time and the memory that unlocking an image may take.

    :param name: the image, for the error.
    :param seconds: how much time, over all its key slots.
    :param memory: how many bytes at a time.
    """

    def __init__(self, name: str, *, seconds: int, memory: int) -> None:
        self.name = name
        self.seconds = seconds
        self.memory = memory
        self.spent = 0.0

    def pbkdf2(self, place: str, name: str, iterations: int, length: int) -> None:
        """Account for a derivation that the structure *place* asks for.

        :raises ImageError: it takes more time than is left.
        """
        work = iterations * blocks(name, length)
        self._spend(place, work / (speed(name) if work > _CHEAP else _CHEAP), f"{iterations} iterations")

    def argon2(self, place: str, iterations: int, memory: int, lanes: int) -> None:
        """The same for Argon2 with *memory* bytes.

        :raises ImageError: it takes more time than is left, or more memory than it may.
        """
        if memory > self.memory:
            cause = (
                f"deriving its key takes {-(-memory // MiB)} MiB of memory, beyond the limit of "
                f"{self.memory // MiB} MiB for an image (raise it with the option kdf-memory)"
            )
            raise ImageError(cause, file=self.name, place=place)
        self._spend(place, iterations * memory / _ARGON_SPEED, f"{iterations} passes over {memory // KiB} KiB")

    def merge(self, place: str, name: str, stripes: int, length: int) -> None:
        """Account for a key of *length* bytes that is put together of so many *stripes*.

        :raises ImageError: it takes more time than is left.
        """
        self._spend(place, stripes * (blocks(name, length) + 1) / _MERGE_SPEED, f"{stripes} stripes")

    def _spend(self, place: str, seconds: float, what: str) -> None:
        self.spent += seconds
        if self.spent > self.seconds:
            cause = (
                f"deriving its key ({what}) would take about {max(seconds, 1):.0f} s, beyond the limit of "
                f"{self.seconds} s for an image (raise it with the option kdf-limit)"
            )
            raise ImageError(cause, file=self.name, place=place)


def argon2(kind: str, password: bytes, salt: bytes, iterations: int, memory: int, lanes: int, length: int) -> bytearray:
    """*length* bytes; *kind* is ``argon2id`` or ``argon2i``, *memory* counts bytes.

    :raises UnsupportedError: the cryptography library at hand has no Argon2.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2i, Argon2id

    make = Argon2id if kind == "argon2id" else Argon2i
    try:
        derivation = make(salt=salt, length=length, iterations=iterations, lanes=lanes, memory_cost=memory // KiB)
    except UnsupportedAlgorithm:
        raise UnsupportedError(f"key derivation '{kind}' is not supported by the cryptography library here") from None
    try:
        return bytearray(derivation.derive(password))
    except MemoryError:
        raise UnsupportedError(f"there is no room here for the {memory // MiB} MiB of its key derivation") from None


def argon2_passes(kind: str, memory: int, lanes: int, milliseconds: int) -> int:
    """Argon2 passes over *memory* bytes that take *milliseconds* here; at least 4, as LUKS2's authors advise."""
    probe = min(memory, 64 * MiB)
    start = time.perf_counter()
    argon2(kind, b"speed", bytes(32), 1, probe, lanes, 32)
    once = (time.perf_counter() - start) * memory / probe
    return max(int(milliseconds / 1000 / once), 4)
