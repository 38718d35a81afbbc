"""LUKS1: the header, and its eight key slots.

Source: LUKS On-Disk Format Specification, version 1.2.3 (cryptsetup, ``docs/on-disk-format.pdf``). A master key
encrypts the payload; each key slot holds the master key, split so that it can be destroyed and encrypted under a
passphrase.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from diskmill.contract.crypto import Header
from diskmill.contract.options import Value
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.structs import Record, Structure, raw, u16, u32
from diskmill.sizes import SECTOR, round_up

from . import afsplit, kdf
from .hashes import digest_size
from .kdf import Budget
from .spec import Spec

MAGIC = b"LUKS\xba\xbe"


class Phdr(Record):
    magic = raw(6)
    version = u16
    cipher_name = raw(32)
    cipher_mode = raw(32)
    hash_spec = raw(32)
    payload_offset = u32
    key_bytes = u32
    mk_digest = raw(20)
    mk_digest_salt = raw(32)
    mk_digest_iter = u32
    uuid = raw(40)


PHDR = Structure("LUKS header", ">", Phdr)


class KeySlot(Record):
    active = u32
    iterations = u32
    salt = raw(32)
    key_material_offset = u32
    stripes = u32


KEY_SLOT = Structure("key slot", ">", KeySlot)

ENABLED = 0x00AC71F3
DISABLED = 0x0000DEAD
SLOTS = 8
STRIPES = 4000
DIGEST_BYTES = 20
SALT_BYTES = 32
_ALIGN = 4096
_MAX_KEY = 512  # bytes, as in cryptsetup
_MAX_STRIPES = 4 * STRIPES  # nobody uses anything but 4000
_SIZE = PHDR.size + SLOTS * KEY_SLOT.size


def text(field: bytes) -> str:
    """A header's text field, up to its first zero byte."""
    return field.partition(b"\0")[0].decode("utf-8", "replace")


class Luks1:
    """A LUKS1 header in memory."""

    version = 1
    slot_count = SLOTS
    sector_size = SECTOR
    tweak = 0

    def __init__(self, name: str, phdr: Phdr, slots: list[KeySlot]) -> None:
        self.name = name
        self.phdr = phdr
        self.slots = slots
        self.spec = Spec.parse(text(phdr.cipher_name), text(phdr.cipher_mode))
        self.hash = text(phdr.hash_spec)
        self.key_size: int = phdr.key_bytes
        self.payload_offset: int = phdr.payload_offset * SECTOR
        self.payload_size: int | None = None

    # -- reading ------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, header: Header, name: str) -> Luks1:
        """The header, checked.

        :raises ImageError: it breaks the format.
        """
        data = header.read(0, min(_SIZE, header.length))
        phdr = PHDR.unpack(data, file=name)
        slots = [KEY_SLOT.unpack(data, PHDR.size + index * KEY_SLOT.size, file=name) for index in range(SLOTS)]
        luks = cls(name, phdr, slots)
        luks._check(header.length)
        return luks

    def _damaged(self, cause: str, slot: int | None = None) -> ImageError:
        return ImageError(cause, file=self.name, place="LUKS header" if slot is None else f"key slot {slot}")

    def _check(self, length: int) -> None:
        phdr = self.phdr
        if not 0 < phdr.key_bytes <= _MAX_KEY:
            raise self._damaged(f"a master key of {phdr.key_bytes} bytes")
        if not phdr.mk_digest_iter:
            raise self._damaged("the master key's digest has no iterations")
        taken: list[tuple[int, int, int]] = [(0, _SIZE, -1)]
        for index, slot in enumerate(self.slots):
            if slot.active not in (ENABLED, DISABLED):
                raise self._damaged(f"its state is {slot.active:#x}, neither active nor inactive", index)
            if not 0 < slot.stripes <= _MAX_STRIPES:
                raise self._damaged(f"it has {slot.stripes} stripes, not {STRIPES}", index)
            if slot.active == ENABLED and not slot.iterations:
                raise self._damaged("its key derivation has no iterations", index)
            start = slot.key_material_offset * SECTOR
            end = start + self.material_size(index)
            if slot.active == ENABLED and end > length:
                raise self._damaged(f"its key material at byte {start} lies beyond the end of the file", index)
            if self.payload_offset and end > self.payload_offset:
                raise self._damaged("its key material overlaps the payload", index)
            taken.append((start, end, index))
        taken.sort()
        for (_, end, before), (start, _, index) in pairwise(taken):
            if start < end:
                with_what = "the header" if min(before, index) < 0 else f"that of key slot {min(before, index)}"
                raise self._damaged(f"its key material overlaps {with_what}", max(before, index))

    def material_size(self, index: int) -> int:
        """Bytes that the slot's key material takes, in whole sectors."""
        return round_up(self.key_size * self.slots[index].stripes, SECTOR)

    def active(self) -> list[int]:
        """The numbers of the slots in use."""
        return [index for index, slot in enumerate(self.slots) if slot.active == ENABLED]

    def check_supported(self) -> None:
        """Whether the image can be unlocked with the libraries at hand.

        :raises UnsupportedError: what is lacking is named.
        """
        digest_size(self.hash)
        self.spec.check(self.key_size)

    def try_slot(self, header: Header, index: int, passphrase: bytes, budget: Budget) -> bytearray | None:
        """The master key, if *passphrase* opens the slot."""
        from .sectors import BulkCipher

        slot = self.slots[index]
        budget.merge(f"key slot {index}", self.hash, slot.stripes, self.key_size)
        budget.pbkdf2(f"key slot {index}", self.hash, slot.iterations, self.key_size)
        wrapping = kdf.pbkdf2(self.hash, passphrase, slot.salt, slot.iterations, self.key_size)
        cipher = BulkCipher(self.spec, wrapping)
        material = bytearray(header.read(slot.key_material_offset * SECTOR, self.material_size(index)))
        try:
            cipher.decrypt(0, memoryview(material))
            key = afsplit.merge(material, slot.stripes, self.key_size, self.hash)
        finally:
            cipher.wipe()
            wipe(wrapping, material)
        phdr = self.phdr
        budget.pbkdf2("LUKS header", self.hash, phdr.mk_digest_iter, DIGEST_BYTES)
        if self._digest(key) == phdr.mk_digest:
            return key
        wipe(key)
        return None

    def _digest(self, key: bytearray) -> bytes:
        phdr = self.phdr
        return bytes(kdf.pbkdf2(self.hash, key, phdr.mk_digest_salt, phdr.mk_digest_iter, DIGEST_BYTES))

    # -- writing ------------------------------------------------------------------------------------------------

    @classmethod
    def new(cls, name: str, spec: Spec, key: bytearray, options: Mapping[str, Value], *, detached: bool) -> Luks1:
        """A header without key slots for the master key *key*, laid out as qemu-img and cryptsetup do."""
        hash_name = str(options.get("hash-alg", "sha256"))
        digest_size(hash_name, new=True)
        spec.check(len(key))
        iterations = kdf.iterations_for(hash_name, DIGEST_BYTES, milliseconds(options) // 8)
        each = round_up(len(key) * STRIPES, _ALIGN)
        phdr = PHDR.new(
            magic=MAGIC,
            version=1,
            cipher_name=spec.cipher.encode(),
            cipher_mode=spec.chain.encode(),
            hash_spec=hash_name.encode(),
            payload_offset=0 if detached else (_ALIGN + SLOTS * each) // SECTOR,
            key_bytes=len(key),
            mk_digest_salt=os.urandom(SALT_BYTES),
            mk_digest_iter=iterations,
            uuid=str(uuid.uuid4()).encode(),
        )
        slots = [
            KEY_SLOT.new(active=DISABLED, key_material_offset=(_ALIGN + index * each) // SECTOR, stripes=STRIPES)
            for index in range(SLOTS)
        ]
        luks = cls(name, phdr, slots)
        phdr.mk_digest = luks._digest(key)
        return luks

    @staticmethod
    def header_size(key_size: int) -> int:
        """Bytes from the header's start to the payload, for a master key of *key_size* bytes."""
        return _ALIGN + SLOTS * round_up(key_size * STRIPES, _ALIGN)

    def store(self, header: Header) -> None:
        """Write the header and the slots' descriptions, without key material."""
        header.write(0, PHDR.pack(self.phdr) + b"".join(KEY_SLOT.pack(slot) for slot in self.slots))
        header.barrier()

    def set_slot(
        self, header: Header, index: int, passphrase: bytes, key: bytearray, options: Mapping[str, Value]
    ) -> None:
        """Let *passphrase* open the slot."""
        from .sectors import BulkCipher

        slot = self.slots[index]
        salt = os.urandom(SALT_BYTES)
        iterations = kdf.iterations_for(self.hash, self.key_size, milliseconds(options))
        wrapping = kdf.pbkdf2(self.hash, passphrase, salt, iterations, self.key_size)
        material = afsplit.split(key, slot.stripes, self.hash)
        material += bytes(self.material_size(index) - len(material))
        cipher = BulkCipher(self.spec, wrapping)
        try:
            stored = cipher.encrypt(0, memoryview(material))
            if slot.active == ENABLED:  # until it is written, the new key is good in another slot too
                spare = self._spare(slot.stripes)
                if spare is not None:
                    self._fill(header, spare, salt, iterations, stored)
                self._fill(header, index, salt, iterations, stored)
                if spare is not None:
                    self.erase_slot(header, spare)
            else:
                self._fill(header, index, salt, iterations, stored)
        finally:
            cipher.wipe()
            wipe(wrapping, material)

    def _spare(self, stripes: int) -> int | None:
        """A slot that is not in use, and holds as much as any of *stripes* stripes."""
        for index, slot in enumerate(self.slots):
            if slot.active == DISABLED and slot.stripes == stripes:
                return index
        return None

    def _fill(self, header: Header, index: int, salt: bytes, iterations: int, material: memoryview) -> None:
        """Put the encrypted *material* into the slot, and the slot into use."""
        slot = self.slots[index]
        header.write(slot.key_material_offset * SECTOR, material)
        header.barrier()  # the key is on disk before the slot that names it
        slot.active, slot.iterations, slot.salt = ENABLED, iterations, salt
        self.store(header)

    def erase_slot(self, header: Header, index: int) -> None:
        """Overwrite the slot's key material, then take the slot out of use."""
        slot = self.slots[index]
        header.write(slot.key_material_offset * SECTOR, os.urandom(self.material_size(index)))
        header.barrier()
        slot.active, slot.iterations, slot.salt = DISABLED, 0, bytes(SALT_BYTES)
        self.store(header)

    # -- what info shows ----------------------------------------------------------------------------------------

    def details(self) -> dict[str, Any]:
        """QAPI's ``QCryptoBlockInfoLUKS``."""
        bits = self.key_size * 8 // (2 if self.spec.mode == "xts" else 1)
        found: dict[str, Any] = {
            "ivgen-alg": self.spec.iv,
            "detached-header": self.payload_offset == 0,
            "hash-alg": self.hash,
            "cipher-alg": f"{self.spec.cipher}-{bits}",
            "uuid": text(self.phdr.uuid),
            "cipher-mode": self.spec.mode,
            "slots": [self._slot_details(index) for index in range(SLOTS)],
            "payload-offset": self.payload_offset,
            "master-key-iters": self.phdr.mk_digest_iter,
        }
        if self.spec.iv_hash:
            found["ivgen-hash-alg"] = self.spec.iv_hash
        return found

    def _slot_details(self, index: int) -> dict[str, Any]:
        slot = self.slots[index]
        found = {"active": slot.active == ENABLED, "key-offset": slot.key_material_offset * SECTOR}
        if found["active"]:
            found |= {"iters": slot.iterations, "stripes": slot.stripes}
        return found


def milliseconds(options: Mapping[str, Value]) -> int:
    """The option ``iter-time``.

    :raises UnsupportedError: it is zero.
    """
    value = int(options.get("iter-time", kdf.DEFAULT_MILLISECONDS))
    if not value:
        raise UnsupportedError("the option 'iter-time' must be at least 1")
    return value


def wipe(*buffers: bytearray) -> None:
    """Overwrite keys that are no longer needed."""
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))
