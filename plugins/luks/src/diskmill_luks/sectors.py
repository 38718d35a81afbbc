"""Runs of sectors, encrypted and decrypted in bulk.

A mode of disk encryption is a few exclusive-ors around a block cipher. One call into a cipher library for each
sector would cost more than the encryption itself, so the exclusive-ors are done here for a whole run of sectors at
once, with numpy, and the block cipher is called once for the run (in CBC encryption, whose blocks depend on one
another, once for the first blocks of all sectors, once for the second, …).

Modes: XTS (IEEE Std 1619), CBC, CTR and ECB (NIST SP 800-38A). Initialisation vectors as dm-crypt makes them: *plain*
is the sector's number, 32 bits, little-endian; *plain64* the same with 64 bits; *essiv* is plain64 encrypted with
the hash of the key.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import numpy as np
from diskmill.contract.crypto import SectorCipher
from diskmill.sizes import SECTOR, KiB
from numpy.typing import NDArray

from .blocks import BLOCK_SIZES, SLACK, BlockCipher, block_cipher
from .spec import Spec

_PIECE = 512 * KiB
"""Bytes that are worked on at once. Smaller fits the caches better, but then threads wait for the interpreter's lock
more than they compute: each numpy call gives it up and takes it again."""
_KEEP = 1024 * KiB
"""Results up to this many bytes share one buffer a thread."""

Words = NDArray[np.uint64]

_WORD = np.uint64
_SHIFTS = np.arange(32, dtype=_WORD)
_COUNTER_SHIFTS = _WORD(64) - _SHIFTS  # numpy shifts a 64-bit word by 64 to zero


class BulkCipher(SectorCipher):
    """:class:`~diskmill.contract.crypto.SectorCipher` for a :class:`Spec`.

    :param key: copied, and overwritten by :meth:`wipe`.
    :param sector_size: bytes in a sector, a multiple of 512.
    :param tweak: added to every sector's number.
    :raises UnsupportedError: see :meth:`Spec.check`.
    """

    def __init__(self, spec: Spec, key: bytes | bytearray, sector_size: int = SECTOR, *, tweak: int = 0) -> None:
        spec.check(len(key))
        self._tweak = tweak
        self.spec = spec
        self.sector_size = sector_size
        self._key = bytearray(key)
        self._local = threading.local()
        self._workspaces: list[_Workspace] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<BulkCipher {self.spec}>"

    def _workspace(self) -> _Workspace:
        try:
            return self._local.workspace  # type: ignore[no-any-return]
        except AttributeError:
            self._local.workspace = workspace = _KINDS[self.spec.mode](self.spec, self._key, self.sector_size)
            with self._lock:
                self._workspaces.append(workspace)
            return workspace

    def decrypt(self, number: int, data: memoryview) -> memoryview:
        workspace = self._workspace()
        number += self._tweak
        step = self.sector_size // SECTOR
        for at in range(0, len(data), _PIECE):
            workspace.decrypt(number + at // self.sector_size * step, data[at : at + _PIECE])
        return data

    def encrypt(self, number: int, data: memoryview) -> memoryview:
        workspace = self._workspace()
        number += self._tweak
        step = self.sector_size // SECTOR
        result = workspace.result(len(data))
        for at in range(0, len(data), _PIECE):
            workspace.encrypt(number + at // self.sector_size * step, data[at : at + _PIECE], result[at:])
        return result[: len(data)]

    def wipe(self) -> None:
        self._key[:] = bytes(len(self._key))
        with self._lock:
            for workspace in self._workspaces:
                workspace.wipe()
            self._workspaces.clear()
        self._local = threading.local()


class _Workspace:
    """What one thread needs: contexts of the block ciphers, and buffers that are used again for each piece."""

    def __init__(self, spec: Spec, key: bytearray, sector_size: int) -> None:
        self.block = BLOCK_SIZES[spec.cipher]
        self.words = self.block // 8
        """64-bit words in a cipher block."""
        self.sector_size = sector_size
        self.blocks = sector_size // self.block
        """Cipher blocks in a sector."""
        self.step = sector_size // SECTOR
        self.spec = spec
        half = len(key) // 2 if spec.mode == "xts" else len(key)
        self.cipher: BlockCipher | None = block_cipher(spec.cipher, memoryview(key)[:half])
        self.salted: BlockCipher | None = None
        if spec.iv == "essiv":
            assert spec.iv_hash is not None
            self.salted = block_cipher(spec.cipher, hashlib.new(spec.iv_hash, key).digest())
        self._room = 0
        self._result = bytearray()
        self.buffers: list[bytearray] = []

    def result(self, length: int) -> memoryview:
        """A buffer for *length* encrypted bytes, with :data:`SLACK`."""
        if length > _KEEP:
            return memoryview(bytearray(length + SLACK))
        if len(self._result) < length + SLACK:
            self._result = bytearray(length + SLACK)
        return memoryview(self._result)

    def reserve(self, sectors: int) -> None:
        """Make buffers for pieces of *sectors* sectors."""
        if sectors > self._room:
            self.wipe_buffers()
            self._room = sectors
            self.prepare(sectors)

    def prepare(self, sectors: int) -> None:
        """Make the mode's own buffers."""

    def buffer(self, size: int) -> tuple[memoryview, Words]:
        """A new buffer of *size* bytes, and :data:`SLACK`; as bytes, and as words."""
        made = bytearray(size + SLACK)
        self.buffers.append(made)
        return memoryview(made), np.frombuffer(made, _WORD, count=size // 8)

    def wipe_buffers(self) -> None:
        for one in self.buffers:
            one[:] = bytes(len(one))
        self.buffers.clear()

    def wipe(self) -> None:
        self.wipe_buffers()
        self.cipher = self.salted = None

    def vectors(self, number: int, count: int) -> Words:
        """The initialisation vectors of *count* sectors from 512-byte sector *number* on: an array [count, words]."""
        vectors = np.zeros((count, self.words), dtype=_WORD)
        vectors[:, 0] = np.arange(number, number + count * self.step, self.step, dtype=_WORD)
        if self.spec.iv == "plain":
            vectors[:, 0] &= _WORD(0xFFFFFFFF)
        vectors = vectors.astype("<u8", copy=False)
        if self.salted is not None:
            vectors = _encrypted(self.salted, vectors)
        return vectors

    def decrypt(self, number: int, data: memoryview) -> None:
        raise NotImplementedError

    def encrypt(self, number: int, data: memoryview, result: memoryview) -> None:
        raise NotImplementedError


def _encrypted(cipher: BlockCipher, words: Words) -> Words:
    """*words* encrypted, as a new array."""
    target = bytearray(words.nbytes + SLACK)
    cipher.encrypt(np.ascontiguousarray(words).view(np.uint8).reshape(-1), memoryview(target))
    return np.frombuffer(target, _WORD, count=words.size).reshape(words.shape)


class _ECB(_Workspace):
    def prepare(self, sectors: int) -> None:
        self.scratch, _ = self.buffer(sectors * self.sector_size)

    def decrypt(self, number: int, data: memoryview) -> None:
        assert self.cipher is not None
        self.reserve(len(data) // self.sector_size)
        self.cipher.decrypt(data, self.scratch)
        data[:] = self.scratch[: len(data)]

    def encrypt(self, number: int, data: memoryview, result: memoryview) -> None:
        assert self.cipher is not None
        self.cipher.encrypt(data, result)


class _XTS(_Workspace):
    """The tweak of a sector's first block is its encrypted vector; that of each next block is the one before, times x
    in the field of 2**128 elements modulo x**128 + x**7 + x**2 + x + 1."""

    def __init__(self, spec: Spec, key: bytearray, sector_size: int) -> None:
        super().__init__(spec, key, sector_size)
        self.tweaker: BlockCipher | None = block_cipher(spec.cipher, memoryview(key)[len(key) // 2 :])
        # Tweaks are made from their first by shifts of up to 31, so a sector is cut into groups of 32 blocks.
        self.groups = self.blocks // 32

    def prepare(self, sectors: int) -> None:
        size = sectors * self.sector_size
        self.scratch, self.scratch_words = self.buffer(size)
        tweaks = self.buffer(size)[1]
        self.tweaks = tweaks.reshape(sectors * self.groups, 32, 2)
        self.low = self.buffer(size // 2)[1].reshape(sectors * self.groups, 32)
        self.high = self.buffer(size // 2)[1].reshape(sectors * self.groups, 32)

    def wipe(self) -> None:
        super().wipe()
        self.tweaker = None

    def decrypt(self, number: int, data: memoryview) -> None:
        assert self.cipher is not None
        tweaks = self.tweak(number, len(data))
        words = np.frombuffer(data, _WORD)
        np.bitwise_xor(words, tweaks, out=words)
        self.cipher.decrypt(data, self.scratch)
        np.bitwise_xor(self.scratch_words[: len(words)], tweaks, out=words)

    def encrypt(self, number: int, data: memoryview, result: memoryview) -> None:
        assert self.cipher is not None
        tweaks = self.tweak(number, len(data))
        words = np.frombuffer(data, _WORD)
        np.bitwise_xor(words, tweaks, out=self.scratch_words[: len(words)])
        self.cipher.encrypt(self.scratch[: len(data)], result)
        done = np.frombuffer(result, _WORD, count=len(words))
        np.bitwise_xor(done, tweaks, out=done)

    def tweak(self, number: int, length: int) -> Words:
        """The tweaks of all blocks in *length* bytes from 512-byte sector *number* on, one after the other."""
        assert self.tweaker is not None
        sectors = length // self.sector_size
        self.reserve(sectors)
        first = _encrypted(self.tweaker, self.vectors(number, sectors)).astype(_WORD, copy=False)
        if self.groups > 1:
            first = self.first_of_groups(first)
        count = len(first)
        low, high = first[:, 0:1].copy(), first[:, 1:2].copy()
        tweaks, a, b = self.tweaks[:count], self.low[:count], self.high[:count]
        low_out, high_out = tweaks[:, :, 0], tweaks[:, :, 1]
        # Times x**k: shift the 128 bits left by k, and add what fell out, times x**7 + x**2 + x + 1.
        np.right_shift(high, _COUNTER_SHIFTS, out=a)
        np.left_shift(a, 1, out=b)
        np.bitwise_xor(b, a, out=b)
        np.left_shift(a, 2, out=high_out)
        np.bitwise_xor(b, high_out, out=b)
        np.left_shift(a, 7, out=a)
        np.bitwise_xor(b, a, out=b)
        np.left_shift(low, _SHIFTS, out=a)
        np.bitwise_xor(a, b, out=low_out)
        np.left_shift(high, _SHIFTS, out=a)
        np.right_shift(low, _COUNTER_SHIFTS, out=b)
        np.bitwise_or(a, b, out=high_out)
        return tweaks.reshape(-1)[: length // 8]

    def first_of_groups(self, first: Words) -> Words:
        """The tweaks of the blocks 0, 32, 64, … of each sector, whose first are *first*."""
        made = np.empty((len(first), self.groups, 2), dtype=_WORD)
        low, high = first[:, 0].copy(), first[:, 1].copy()
        for group in range(self.groups):
            made[:, group, 0], made[:, group, 1] = low, high
            out = high >> _WORD(32)
            high = high << _WORD(32) | low >> _WORD(32)
            low = low << _WORD(32) ^ out ^ out << _WORD(1) ^ out << _WORD(2) ^ out << _WORD(7)
        return made.reshape(-1, 2)


class _CBC(_Workspace):
    def prepare(self, sectors: int) -> None:
        self.scratch, self.scratch_words = self.buffer(sectors * self.sector_size)
        self.column, self.column_words = self.buffer(sectors * self.block)
        self.column_out, self.column_out_words = self.buffer(sectors * self.block)

    def decrypt(self, number: int, data: memoryview) -> None:
        assert self.cipher is not None
        sectors = len(data) // self.sector_size
        self.reserve(sectors)
        self.cipher.decrypt(data, self.scratch)
        words = np.frombuffer(data, _WORD).reshape(sectors, self.blocks, self.words)
        plain = self.scratch_words[: words.size].reshape(words.shape)
        np.bitwise_xor(plain[:, 1:], words[:, :-1], out=plain[:, 1:])
        plain[:, 0] ^= self.vectors(number, sectors)
        words[:] = plain

    def encrypt(self, number: int, data: memoryview, result: memoryview) -> None:
        assert self.cipher is not None
        sectors = len(data) // self.sector_size
        self.reserve(sectors)
        words = np.frombuffer(data, _WORD).reshape(sectors, self.blocks, self.words)
        done = np.frombuffer(result, _WORD, count=words.size).reshape(words.shape)
        size = sectors * self.block
        column = self.column_words[: size // 8].reshape(sectors, self.words)
        previous = self.vectors(number, sectors)
        out = self.column_out_words[: size // 8].reshape(sectors, self.words)
        for index in range(self.blocks):
            np.bitwise_xor(words[:, index], previous, out=column)
            self.cipher.encrypt(self.column[:size], self.column_out)
            done[:, index] = out
            previous = out


class _CTR(_Workspace):
    """The vector is a big-endian counter, which goes up by one a block."""

    def prepare(self, sectors: int) -> None:
        self.stream, self.stream_words = self.buffer(sectors * self.sector_size)

    def keystream(self, number: int, length: int) -> Words:
        assert self.cipher is not None
        sectors = length // self.sector_size
        self.reserve(sectors)
        start = np.ascontiguousarray(self.vectors(number, sectors)).view(">u8").astype(_WORD)
        counters = np.empty((sectors, self.blocks, self.words), dtype=">u8")
        low = start[:, -1:] + np.arange(self.blocks, dtype=_WORD)
        counters[:, :, -1] = low
        if self.words == 2:
            counters[:, :, 0] = start[:, :1] + (low < start[:, -1:])
        self.cipher.encrypt(counters.view(np.uint8).reshape(-1), self.stream)
        return self.stream_words[: length // 8]

    def decrypt(self, number: int, data: memoryview) -> None:
        words = np.frombuffer(data, _WORD)
        np.bitwise_xor(words, self.keystream(number, len(data)), out=words)

    def encrypt(self, number: int, data: memoryview, result: memoryview) -> None:
        words = np.frombuffer(data, _WORD)
        done: Any = np.frombuffer(result, _WORD, count=len(words))
        np.bitwise_xor(words, self.keystream(number, len(data)), out=done)


_KINDS = {"ecb": _ECB, "xts": _XTS, "cbc": _CBC, "ctr": _CTR}
