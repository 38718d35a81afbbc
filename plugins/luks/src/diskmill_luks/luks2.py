"""LUKS2: two copies of a binary header with JSON metadata, and key slots that the metadata describe.

Source: LUKS2 On-Disk Format Specification, version 1.1.1 (cryptsetup, ``docs/on-disk-format-luks2.pdf``).

Reencryption, integrity protection and segments other than ``crypt`` are refused by name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from diskmill.contract.crypto import Header
from diskmill.contract.options import Value
from diskmill.errors import DiskmillError, ImageError, UnsupportedError, UsageError
from diskmill.kit.structs import Record, Structure, raw, u16, u64
from diskmill.records import record
from diskmill.sizes import SECTOR, KiB, MiB, round_up

from . import afsplit, kdf
from .hashes import digest_size
from .kdf import Budget
from .luks1 import MAGIC, milliseconds, text, wipe
from .spec import Spec

MAGIC_2ND = b"SKUL\xba\xbe"


class BinaryHeader(Record):
    magic = raw(6)
    version = u16
    hdr_size = u64
    seqid = u64
    label = raw(48)
    csum_alg = raw(32)
    salt = raw(64)
    uuid = raw(40)
    subsystem = raw(48)
    hdr_offset = u64
    _padding = raw(184)
    csum = raw(64)
    _padding4096 = raw(3584)


BINARY_HEADER = Structure("LUKS2 header", ">", BinaryHeader)
HEADER_SIZES = tuple(KiB << shift for shift in range(4, 13))
"""Sizes that one copy of the header may have, and so the offsets at which the second copy may lie."""
SECTOR_SIZES = (512, 1024, 2048, 4096)
SLOTS = 32
STRIPES = 4000
_MAX_MATERIAL = 8 * MiB
_MOST_VALUES = 20_000
"""In the metadata; 32 key slots and as many tokens have about a thousand."""
_DEEPEST = 32
"""Arrays and objects inside one another, as far as json-c, with which cryptsetup reads them, follows."""
_SALT_BYTES = 32
_ALIGN = 4096
_NEW_PAYLOAD = 16 * MiB  # where cryptsetup puts the payload
_NEW_MEMORY = 64 * KiB  # KiB: the second choice of RFC 9106, for a small machine

Json = dict[str, Any]


@record
class _Slot:
    """One key slot, checked."""

    key_size: int
    stripes: int
    hash: str
    offset: int
    size: int
    spec: Spec
    area_key_size: int
    kdf: Json
    salt: bytes


@record
class _Digest:
    hash: str
    iterations: int
    salt: bytes
    digest: bytes
    keyslots: list[int]


class Luks2:
    """A LUKS2 header in memory."""

    version = 2
    slot_count = SLOTS

    def __init__(self, name: str, binary: BinaryHeader, meta: Json, *, length: int) -> None:
        self.name = name
        self.binary = binary
        self.meta = meta
        self.damaged = ""
        """Which of the two copies could not be read; the other one is this."""
        self._length = length
        self._parse()

    # -- reading ------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, header: Header, name: str, warn: Callable[[str], None]) -> Luks2:
        """The newer of the two copies, checked.

        :raises ImageError: neither copy is whole, or what they say breaks the format.
        """
        first: tuple[BinaryHeader, Json] | None = None
        second: tuple[BinaryHeader, Json] | None = None
        trouble: DiskmillError | None = None
        try:
            first = _read_copy(header, 0, MAGIC, name)
        except ImageError as error:
            trouble = error
        for offset in HEADER_SIZES if first is None else (first[0].hdr_size,):
            try:
                second = _read_copy(header, offset, MAGIC_2ND, name)
                break
            except ImageError as error:
                trouble = trouble or error
        if first is None and second is None:
            assert trouble is not None
            raise trouble
        best = max((copy for copy in (first, second) if copy is not None), key=lambda copy: int(copy[0].seqid))
        luks = cls(name, *best, length=header.length)
        if first is None or second is None:
            luks.damaged = "first" if first is None else "second"
            warn(f"'{name}': the {luks.damaged} copy of the LUKS2 header is damaged; the other one is used")
        return luks

    def _damaged(self, cause: str, place: str = "LUKS2 metadata") -> ImageError:
        return ImageError(cause, file=self.name, place=place)

    def _field(self, owner: Json, place: str, key: str, kind: type) -> Any:
        value = owner.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._damaged(f"{place} has no valid '{key}'")
        return value

    def _number(self, owner: Json, place: str, key: str, low: int = 0, high: int = 1 << 63) -> int:
        """A number, which the metadata hold as a decimal string where it may be large."""
        value = owner.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
            raise self._damaged(f"{place} has no valid '{key}'")
        return value

    def _binary(self, owner: Json, place: str, key: str) -> bytes:
        try:
            data = base64.b64decode(self._field(owner, place, key, str), validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if not 0 < len(data) <= 512:
            raise self._damaged(f"{place} has no valid '{key}'")
        return data

    def _numbered(self, key: str) -> dict[int, Json]:
        found = self._field(self.meta, "the top level", key, dict)
        for number, value in found.items():
            if not (number.isascii() and number.isdigit() and len(number) < 4 and isinstance(value, dict)):
                raise self._damaged(f"'{key}' has an entry that is not a numbered object")
        return {int(number): value for number, value in found.items()}

    def _references(self, owner: Json, place: str, key: str) -> list[int]:
        found = self._field(owner, place, key, list)
        if not all(isinstance(one, str) and one.isascii() and one.isdigit() and len(one) < 4 for one in found):
            raise self._damaged(f"{place} has no valid '{key}'")
        return [int(one) for one in found]

    def _parse(self) -> None:
        config = self._field(self.meta, "the top level", "config", dict)
        requirements = config.get("requirements", {})
        mandatory = requirements.get("mandatory", []) if isinstance(requirements, dict) else []
        if mandatory:
            names = ", ".join(str(one)[:40] for one in mandatory) if isinstance(mandatory, list) else "unknown"
            raise UnsupportedError(f"LUKS2 feature '{names}' is not supported", file=self.name)
        self.area_start: int = 2 * self.binary.hdr_size
        self.area_end = self.area_start + self._number(config, "config", "keyslots_size", high=1 << 32)
        self._parse_segment()
        digests = {number: self._digest(number, value) for number, value in self._numbered("digests").items()}
        assigned = [
            digest for digest, segments in digests.values() if self.segment_number in segments
        ]  # what tells whether a key is the payload's
        if len(assigned) != 1:
            raise self._damaged(f"segment {self.segment_number} has {len(assigned)} digests, not one")
        self.digest = assigned[0]
        self.slots = {number: self._slot(number, value) for number, value in self._numbered("keyslots").items()}
        if len(self.slots) > SLOTS or any(number >= SLOTS for number in self.slots):
            raise self._damaged(f"it has key slots beyond the {SLOTS} that are allowed")
        ends = sorted((slot.offset, slot.offset + slot.size, number) for number, slot in self.slots.items())
        for (_, end, one), (start, _, other) in pairwise(ends):
            if start < end:
                raise self._damaged(f"its area overlaps that of key slot {one}", f"key slot {other}")
        sizes = {self.slots[number].key_size for number in self.digest.keyslots if number in self.slots}
        if len(sizes) > 1:
            raise self._damaged("its key slots disagree on the size of the key")
        self.key_size = sizes.pop() if sizes else 0

    def _parse_segment(self) -> None:
        segments = self._numbered("segments")
        if len(segments) != 1:
            raise UnsupportedError(f"LUKS2 with {len(segments)} segments is not supported", file=self.name)
        (self.segment_number, segment), *_ = segments.items()
        kind = segment.get("type")
        place = f"segment {self.segment_number}"
        if kind != "crypt":
            raise UnsupportedError(f"LUKS2 segment type '{str(kind)[:40]}' is not supported", file=self.name)
        if "integrity" in segment:
            raise UnsupportedError("LUKS2 integrity protection is not supported", file=self.name)
        if segment.get("flags"):
            raise UnsupportedError(
                "LUKS2 segment flags are not supported: an image that is being reencrypted?", file=self.name
            )
        self.payload_offset = self._number(segment, place, "offset")
        self.payload_size = None if segment.get("size") == "dynamic" else self._number(segment, place, "size")
        self.tweak = self._number(segment, place, "iv_tweak")
        self.sector_size = self._number(segment, place, "sector_size")
        if self.sector_size not in SECTOR_SIZES:
            raise self._damaged(f"{place} has sectors of {self.sector_size} bytes")
        if self.payload_offset % SECTOR or (self.payload_size or 0) % self.sector_size:
            raise self._damaged(f"{place} does not consist of whole sectors")
        self.spec = self._spec(self._field(segment, place, "encryption", str))
        if self.payload_offset and self.payload_offset < self.area_end:
            raise self._damaged(f"{place} overlaps the key slots")

    def _spec(self, encryption: str) -> Spec:
        cipher, _, chain = encryption.partition("-")
        return Spec.parse(cipher, chain)

    def _digest(self, number: int, value: Json) -> tuple[_Digest, list[int]]:
        place = f"digest {number}"
        if value.get("type") != "pbkdf2":
            kind = str(value.get("type"))[:40]
            raise UnsupportedError(f"LUKS2 digest type '{kind}' is not supported", file=self.name)
        digest = _Digest(
            self._field(value, place, "hash", str),
            self._number(value, place, "iterations", 1, 1 << 32),
            self._binary(value, place, "salt"),
            self._binary(value, place, "digest"),
            self._references(value, place, "keyslots"),
        )
        return digest, self._references(value, place, "segments")

    def _slot(self, number: int, value: Json) -> _Slot:
        place = f"key slot {number}"
        if value.get("type") != "luks2":
            kind = str(value.get("type"))[:40]
            raise UnsupportedError(f"LUKS2 key slot type '{kind}' is not supported", file=self.name, place=place)
        af = self._field(value, place, "af", dict)
        area = self._field(value, place, "area", dict)
        derivation = self._field(value, place, "kdf", dict)
        if af.get("type") != "luks1" or area.get("type") != "raw":
            raise UnsupportedError("its way to keep the key is not supported", file=self.name, place=place)
        kind = derivation.get("type")
        if kind == "pbkdf2":
            self._field(derivation, place, "hash", str)
            numbers = {"iterations": self._number(derivation, place, "iterations", 1, 1 << 32)}
        elif kind in ("argon2i", "argon2id"):
            lanes = self._number(derivation, place, "cpus", 1, 256)
            memory = self._number(derivation, place, "memory", 8 * lanes, 1 << 32)
            numbers = {"time": self._number(derivation, place, "time", 1, 1 << 32), "cpus": lanes, "memory": memory}
        else:
            raise UnsupportedError(f"key derivation '{str(kind)[:40]}' is not supported", file=self.name, place=place)
        salt = self._binary(derivation, place, "salt")
        if len(salt) < 8:
            raise self._damaged("its salt is too short", place)
        slot = _Slot(
            self._number(value, place, "key_size", 1, 513),
            self._number(af, place, "stripes", 1, 1 << 16),
            self._field(af, place, "hash", str),
            self._number(area, place, "offset"),
            self._number(area, place, "size"),
            self._spec(self._field(area, place, "encryption", str)),
            self._number(area, place, "key_size", 1, 513),
            {**derivation, **numbers},
            salt,
        )
        material = round_up(slot.key_size * slot.stripes, SECTOR)
        if material > min(slot.size, _MAX_MATERIAL):
            raise self._damaged("its area is too small for its stripes", place)
        if not self.area_start <= slot.offset or slot.offset + slot.size > min(self.area_end, self._length):
            raise self._damaged(f"its area at byte {slot.offset} is not inside the space for key slots", place)
        return slot

    def active(self) -> list[int]:
        """The numbers of the slots that hold the payload's key."""
        return sorted(number for number in self.digest.keyslots if number in self.slots)

    def check_supported(self) -> None:
        """Whether the image can be unlocked with the libraries at hand.

        :raises UnsupportedError: what is lacking is named.
        """
        if self.key_size:
            self.spec.check(self.key_size)
        digest_size(self.digest.hash)

    def try_slot(self, header: Header, index: int, passphrase: bytes, budget: Budget) -> bytearray | None:
        """The master key, if *passphrase* opens the slot."""
        from .sectors import BulkCipher

        slot = self.slots[index]
        digest_size(slot.hash)
        slot.spec.check(slot.area_key_size)
        budget.merge(f"key slot {index}", slot.hash, slot.stripes, slot.key_size)
        wrapping = self._derive(f"key slot {index}", slot, passphrase, budget)
        cipher = BulkCipher(slot.spec, wrapping)
        material = bytearray(header.read(slot.offset, round_up(slot.key_size * slot.stripes, SECTOR)))
        try:
            cipher.decrypt(0, memoryview(material))
            key = afsplit.merge(material, slot.stripes, slot.key_size, slot.hash)
        finally:
            cipher.wipe()
            wipe(wrapping, material)
        digest = self.digest
        size = len(digest.digest)
        budget.pbkdf2("LUKS2 metadata", digest.hash, digest.iterations, size)
        if kdf.pbkdf2(digest.hash, key, digest.salt, digest.iterations, size) == digest.digest:
            return key
        wipe(key)
        return None

    def _derive(self, place: str, slot: _Slot, passphrase: bytes, budget: Budget) -> bytearray:
        how, size = slot.kdf, slot.area_key_size
        if how["type"] == "pbkdf2":
            digest_size(how["hash"])
            budget.pbkdf2(place, how["hash"], how["iterations"], size)
            return kdf.pbkdf2(how["hash"], passphrase, slot.salt, how["iterations"], size)
        memory = how["memory"] * KiB
        budget.argon2(place, how["time"], memory, how["cpus"])
        return kdf.argon2(how["type"], passphrase, slot.salt, how["time"], memory, how["cpus"], size)

    # -- writing ------------------------------------------------------------------------------------------------

    @classmethod
    def new(cls, name: str, spec: Spec, key: bytearray, options: Mapping[str, Value], *, detached: bool) -> Luks2:
        """A header without key slots for the master key *key*, laid out as cryptsetup does."""
        hash_name = str(options.get("hash-alg", "sha256"))
        spec.check(len(key))
        sector = int(options.get("sector-size", SECTOR))
        if sector not in SECTOR_SIZES:
            raise UsageError(f"invalid value '{sector}' for 'sector-size': choose from 512, 1024, 2048, 4096")
        size = digest_size(hash_name, new=True)
        iterations = kdf.iterations_for(hash_name, size, milliseconds(options) // 8)
        salt = os.urandom(_SALT_BYTES)
        header_size = HEADER_SIZES[0]
        label = os.fsencode(str(options.get("label", "")))
        if len(label) > 47:
            raise UsageError("the option 'label' is longer than 47 bytes")
        meta: Json = {
            "keyslots": {},
            "tokens": {},
            "segments": {
                "0": {
                    "type": "crypt",
                    "offset": str(0 if detached else _NEW_PAYLOAD),
                    "size": "dynamic",
                    "iv_tweak": "0",
                    "encryption": str(spec),
                    "sector_size": sector,
                }
            },
            "digests": {
                "0": {
                    "type": "pbkdf2",
                    "keyslots": [],
                    "segments": ["0"],
                    "hash": hash_name,
                    "iterations": iterations,
                    "salt": _base64(salt),
                    "digest": _base64(kdf.pbkdf2(hash_name, key, salt, iterations, size)),
                }
            },
            "config": {
                "json_size": str(header_size - BINARY_HEADER.size),
                "keyslots_size": str(_NEW_PAYLOAD - 2 * header_size),
            },
        }
        binary = BINARY_HEADER.new(
            version=2,
            hdr_size=header_size,
            label=label,
            csum_alg=b"sha256",
            uuid=str(uuid.uuid4()).encode(),
        )
        return cls(name, binary, meta, length=_NEW_PAYLOAD)

    @staticmethod
    def header_size(key_size: int) -> int:
        """Bytes from the header's start to the payload."""
        return _NEW_PAYLOAD

    def store(self, header: Header) -> None:
        """Write both copies: first the one that is not needed should this be interrupted."""
        self.binary.seqid += 1
        order = [(0, MAGIC), (self.binary.hdr_size, MAGIC_2ND)]
        if self.damaged != "first":
            order.reverse()
        for offset, magic in order:
            header.write(offset, self._packed(offset, magic))
            header.barrier()
        self.damaged = ""

    def _packed(self, offset: int, magic: bytes) -> bytes:
        binary = self.binary
        data = json.dumps(self.meta, separators=(",", ":")).encode()
        room = binary.hdr_size - BINARY_HEADER.size
        if len(data) >= room:
            raise self._damaged("its space for metadata is full")
        data += bytes(room - len(data))
        binary.magic, binary.hdr_offset, binary.salt = magic, offset, os.urandom(64)
        binary.csum = bytes(64)
        name = text(binary.csum_alg)
        binary.csum = hashlib.new(name, BINARY_HEADER.pack(binary) + data).digest()
        return BINARY_HEADER.pack(binary) + data

    def set_slot(
        self, header: Header, index: int, passphrase: bytes, key: bytearray, options: Mapping[str, Value]
    ) -> None:
        """Let *passphrase* open the slot."""
        from .sectors import BulkCipher

        hash_name = self.digest.hash
        size = round_up(len(key) * STRIPES, _ALIGN)
        old = self.slots.get(index)
        offset = self._space(size, old)
        spec, area_key_size = Spec("aes", "xts"), 64
        derivation = _new_derivation(hash_name, area_key_size, options)
        slot: Json = {
            "type": "luks2",
            "key_size": len(key),
            "af": {"type": "luks1", "stripes": STRIPES, "hash": hash_name},
            "area": {
                "type": "raw",
                "offset": str(offset),
                "size": str(size),
                "encryption": str(spec),
                "key_size": area_key_size,
            },
            "kdf": derivation,
        }
        made = self._slot(index, slot)
        unlimited = Budget(self.name, seconds=1 << 40, memory=1 << 42)
        wrapping = self._derive(f"key slot {index}", made, passphrase, unlimited)
        material = afsplit.split(key, STRIPES, hash_name)
        material += bytes(round_up(len(material), SECTOR) - len(material))
        cipher = BulkCipher(spec, wrapping)
        try:
            header.write(offset, cipher.encrypt(0, memoryview(material)))
        finally:
            cipher.wipe()
            wipe(wrapping, material)
        header.barrier()  # the key is on disk before the slot that names it
        self.meta["keyslots"][str(index)] = slot
        for digest in self.meta["digests"].values():
            if str(self.segment_number) in digest["segments"] and str(index) not in digest["keyslots"]:
                digest["keyslots"].append(str(index))
        self._parse()
        self.store(header)
        if old is not None and old.offset != offset:
            self._overwrite(header, old)

    def _space(self, size: int, old: _Slot | None) -> int:
        """Where in the space for key slots *size* bytes are free; where *old* is, if need be."""
        at = self.area_start
        for start, end in sorted((slot.offset, slot.offset + slot.size) for slot in self.slots.values()):
            if start - at >= size:
                return at
            at = max(at, round_up(end, _ALIGN))
        if min(self.area_end, self._length) - at >= size:
            return at
        if old is not None and old.size >= size:
            return old.offset
        raise UnsupportedError("the space for key slots is full", file=self.name)

    def erase_slot(self, header: Header, index: int) -> None:
        """Overwrite the slot's key material, then take the slot out of the metadata."""
        self._overwrite(header, self.slots[index])
        del self.meta["keyslots"][str(index)]
        for group in ("digests", "tokens"):
            for owner in self.meta.get(group, {}).values():
                if isinstance(owner, dict) and str(index) in owner.get("keyslots", []):
                    owner["keyslots"].remove(str(index))
        self._parse()
        self.store(header)

    @staticmethod
    def _overwrite(header: Header, slot: _Slot) -> None:
        for at in range(0, slot.size, MiB):
            header.write(slot.offset + at, os.urandom(min(MiB, slot.size - at)))
        header.barrier()

    # -- what info shows ----------------------------------------------------------------------------------------

    def details(self) -> dict[str, Any]:
        """In the manner of QAPI's ``QCryptoBlockInfoLUKS``, which knows only LUKS1."""
        bits = self.key_size * 8 // (2 if self.spec.mode == "xts" else 1)
        found: dict[str, Any] = {
            "version": 2,
            "ivgen-alg": self.spec.iv,
            "detached-header": self.payload_offset == 0,
            "hash-alg": self.digest.hash,
            "cipher-alg": f"{self.spec.cipher}-{bits}",
            "uuid": text(self.binary.uuid),
            "cipher-mode": self.spec.mode,
            "sector-size": self.sector_size,
            "slots": [self._slot_details(index) for index in sorted(self.slots)],
            "payload-offset": self.payload_offset,
            "master-key-iters": self.digest.iterations,
        }
        if self.spec.iv_hash:
            found["ivgen-hash-alg"] = self.spec.iv_hash
        if text(self.binary.label):
            found["label"] = text(self.binary.label)
        return found

    def _slot_details(self, index: int) -> dict[str, Any]:
        slot = self.slots[index]
        found = {"keyslot": index, "active": True, "key-offset": slot.offset, "stripes": slot.stripes}
        found["kdf"] = slot.kdf["type"]
        if slot.kdf["type"] == "pbkdf2":
            found["iters"] = slot.kdf["iterations"]
        else:
            found |= {"time": slot.kdf["time"], "memory": slot.kdf["memory"], "cpus": slot.kdf["cpus"]}
        return found


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def _new_derivation(hash_name: str, length: int, options: Mapping[str, Value]) -> Json:
    """The ``kdf`` object of a new key slot."""
    kind = str(options.get("pbkdf", "argon2id"))
    salt = _base64(os.urandom(_SALT_BYTES))
    spend = milliseconds(options)
    if kind == "pbkdf2":
        iterations = kdf.iterations_for(hash_name, length, spend)
        return {"type": kind, "hash": hash_name, "iterations": iterations, "salt": salt}
    memory = int(options.get("pbkdf-memory", _NEW_MEMORY))
    lanes = min(4, len(os.sched_getaffinity(0)))
    if not 8 * lanes <= memory <= 4 * MiB:
        raise UsageError(f"invalid value '{memory}' for 'pbkdf-memory': from {8 * lanes} to {4 * MiB} KiB")
    passes = kdf.argon2_passes(kind, memory * KiB, lanes, spend)
    return {"type": kind, "time": passes, "memory": memory, "cpus": lanes, "salt": salt}


def _read_copy(header: Header, offset: int, magic: bytes, name: str) -> tuple[BinaryHeader, Json]:
    """One copy of the header.

    :raises ImageError: it is not there, or damaged.
    """
    place = f"LUKS2 header at byte {offset}"
    if offset + BINARY_HEADER.size > header.length:
        raise ImageError("it lies beyond the end of the file", file=name, place=place)
    data = header.read(offset, BINARY_HEADER.size)
    binary = BINARY_HEADER.unpack(data, file=name)
    if binary.magic != magic or binary.version != 2:
        raise ImageError("it does not begin with the magic of LUKS2", file=name, place=place)
    if binary.hdr_size not in HEADER_SIZES or offset + binary.hdr_size > header.length:
        raise ImageError(f"its size of {binary.hdr_size} bytes is impossible", file=name, place=place)
    if binary.hdr_offset != offset or offset not in (0, binary.hdr_size):
        raise ImageError(f"it says that it lies at byte {binary.hdr_offset}", file=name, place=place)
    whole = bytearray(header.read(offset, binary.hdr_size))
    at = BINARY_HEADER.offsets["csum"]
    whole[at : at + 64] = bytes(64)
    algorithm = text(binary.csum_alg)
    if algorithm not in ("sha1", "sha256", "sha384", "sha512"):
        raise ImageError(f"its checksum algorithm '{algorithm}' is not known", file=name, place=place)
    if hashlib.new(algorithm, whole).digest() != binary.csum[: digest_size(algorithm)]:
        raise ImageError("its checksum does not match", file=name, place=place)
    return binary, _metadata(bytes(whole[BINARY_HEADER.size :]).partition(b"\0")[0], name, place)


def _metadata(source: bytes, name: str, place: str) -> Json:
    """The JSON object *source*, in which nothing is larger than metadata are.

    :raises ImageError: it is none, or has too many values, or values too deep inside one another.
    """
    # Each value but the first stands behind one of these, so that this bounds what is built.
    if sum(source.count(sign) for sign in (b"[", b"{", b",", b":")) > _MOST_VALUES:
        raise ImageError(f"its metadata have more than {_MOST_VALUES} values", file=name, place=place)
    try:
        meta = json.loads(source)
        json.dumps(meta, ensure_ascii=False).encode()  # halves of characters stand for none, and nobody could show them
    except (ValueError, RecursionError):
        raise ImageError("its metadata are not JSON", file=name, place=place) from None
    if not isinstance(meta, dict):
        raise ImageError("its metadata are not a JSON object", file=name, place=place)
    level: list[Any] = [meta]
    for _ in range(_DEEPEST):
        level = [
            value
            for owner in level
            for value in (owner.values() if isinstance(owner, dict) else owner)
            if isinstance(value, dict | list)
        ]
        if not level:
            return meta
    raise ImageError(f"its metadata are nested more than {_DEEPEST} deep", file=name, place=place)
