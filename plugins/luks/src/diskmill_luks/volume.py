"""Opening and making LUKS volumes, of either version: what the crypto driver does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diskmill.contract.crypto import CryptoRequest, Header, SectorCipher, Volume
from diskmill.contract.ids import is_derived
from diskmill.contract.options import Value
from diskmill.errors import DiskmillError, ImageError, SecretError, UnsupportedError, UsageError

from . import LUKS2_OPTIONS
from .hashes import digest_size
from .kdf import DEFAULT_LIMIT, DEFAULT_MEMORY, Budget
from .luks1 import MAGIC, PHDR, Luks1, wipe
from .luks2 import Luks2
from .spec import Spec

Luks = Luks1 | Luks2


class LuksVolume(Volume):
    """A LUKS volume: see :class:`~diskmill.contract.crypto.Volume`."""

    def __init__(self, name: str, luks: Luks, sectors: SectorCipher | None, *, numbers: str) -> None:
        super().__init__(name, sectors, numbers=numbers, granularity=luks.sector_size)
        self.payload_offset = luks.payload_offset
        self.payload_size = luks.payload_size
        self._luks = luks

    def details(self) -> dict[str, Any]:
        return self._luks.details()


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors from below, where nobody knows the image, name it."""
    try:
        yield
    except DiskmillError as error:
        if error.file is None and not isinstance(error, SecretError):
            error.file = name
        raise


def read_header(request: CryptoRequest) -> Luks:
    """The header that the request points to, of either version.

    :raises ImageError: it is none, or damaged.
    """
    header = request.own_header()
    start = header.read(0, min(8, header.length))
    version = int.from_bytes(start[6:8], "big") if start.startswith(MAGIC) else 0
    if version == 1:
        return Luks1.read(header, request.name)
    if version > 2 and len(start) == 8:
        try:  # a damaged first copy of LUKS2, perhaps
            return Luks2.read(header, request.name, request.context.warn)
        except ImageError:
            raise UnsupportedError(f"LUKS version {version} is not supported", file=request.name) from None
    try:
        return Luks2.read(header, request.name, request.context.warn)
    except ImageError:
        if version == 2:
            raise
        raise ImageError("it is not a LUKS image", file=request.name, place=PHDR.name) from None


def unlock(luks: Luks, header: Header, passphrase: bytes, budget: Budget) -> bytearray:
    """The master key.

    :raises SecretError: no key slot opens with the passphrase.
    """
    slots = luks.active()
    if not slots:
        raise ImageError("it has no active key slot: its key is lost", file=luks.name)
    for index in slots:
        key = luks.try_slot(header, index, passphrase, budget)
        if key is not None:
            return key
    raise SecretError("the passphrase is wrong: it opens no key slot", file=luks.name)


def limits(request: CryptoRequest) -> Budget:
    """What the request's options allow an image to ask for."""
    options = request.options
    return Budget(
        request.name,
        seconds=int(options.get("kdf-limit", DEFAULT_LIMIT)),
        memory=int(options.get("kdf-memory", DEFAULT_MEMORY)),
    )


def open_volume(request: CryptoRequest) -> LuksVolume:
    """See the hook ``crypto_open``."""
    with naming(request.name):
        luks = read_header(request)
        if luks.version == 2 and request.numbers == "host":
            raise UnsupportedError("LUKS2 inside another format is not supported")
        if request.shallow:
            return LuksVolume(request.name, luks, None, numbers=request.numbers)
        luks.check_supported()
        key = unlock(luks, request.own_header(), request.passphrase(), limits(request))
        return LuksVolume(request.name, luks, _bulk(luks, key), numbers=request.numbers)


def _bulk(luks: Luks, key: bytearray) -> SectorCipher:
    from .sectors import BulkCipher

    try:
        return BulkCipher(luks.spec, key, luks.sector_size, tweak=luks.tweak)
    finally:
        wipe(key)


class _Memory:
    """Stands in for a file while a new header is made."""

    name = "new header"

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: Any) -> None:
        self.data[offset : offset + len(data)] = data

    def barrier(self) -> None:
        """There is no disk below."""


def spec_of(options: Mapping[str, Value]) -> tuple[Spec, int]:
    """The cipher that ``create`` options choose, and its key's size in bytes; all have qemu-img's defaults.

    :raises UnsupportedError: no such cipher, mode, generator or hash; it is named.
    """
    name = str(options.get("cipher-alg", "aes-256"))
    cipher, _, bits = name.rpartition("-")
    if not cipher or not bits.isascii() or not bits.isdigit():
        raise UnsupportedError(f"cipher '{name}' is not supported")
    mode = str(options.get("cipher-mode", "xts"))
    iv = str(options.get("ivgen-alg", "plain64"))
    iv_hash = str(options.get("ivgen-hash-alg", "sha256"))
    digest_size(iv_hash)
    spec = Spec(cipher, mode, iv, iv_hash if iv == "essiv" else None)
    size = int(bits[:6]) // 8 * (2 if mode == "xts" else 1)
    spec.check(size)
    return spec, size


def check_version(version: int, options: Mapping[str, Value]) -> None:
    """Whether LUKS of this version has a use for all of *options*.

    :raises UsageError: it has not.
    """
    for option in LUKS2_OPTIONS:
        if version == 1 and option.name in options:
            raise UsageError(f"the option '{option.name}' is for LUKS2, and this is LUKS1")


def header_size(options: Mapping[str, Value]) -> int:
    """Bytes that the header of an image with these ``create`` options takes."""
    kind = Luks2 if options.get("version") == "2" else Luks1
    return kind.header_size(spec_of(options)[1])


def create_volume(request: CryptoRequest) -> LuksVolume:
    """See the hook ``crypto_create``.

    :raises UsageError: the same ids are to come again: no key may.
    """
    if is_derived():
        raise UsageError("what is encrypted is never the same twice: its key is random", file=request.name)
    with naming(request.name):
        options = request.options
        spec, size = spec_of(options)
        kind = Luks2 if options.get("version") == "2" else Luks1
        check_version(kind.version, options)
        passphrase = request.passphrase(new=True)
        key = bytearray(os.urandom(size))
        detached = bool(options.get("detached-header")) or bool(options.get("header"))
        luks = kind.new(request.name, spec, key, options, detached=detached)
        memory: Any = _Memory(kind.header_size(size))
        luks.set_slot(Header(memory, 0, len(memory.data)), 0, passphrase, key, options)
        volume = LuksVolume(request.name, luks, _bulk(luks, key), numbers=request.numbers)
        volume.header = bytes(memory.data)
        return volume
