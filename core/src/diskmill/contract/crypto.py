"""Encryption, as formats use it.

A crypto driver (entry-point group ``diskmill.crypto``) says which formats it fits, and by what number their images
name it (:attr:`diskmill.contract.drivers.CryptoDriver.fits`). It turns a key and parameters into a :class:`Volume`: the
codec of extents that are stored encrypted, and the cipher of placements. A format that keeps an encryption header
inside itself asks for the driver by name and hands it a :class:`Header`, the stretch of its file where the header is::

    request = CryptoRequest(name, context, sub_options(options), header=Header(file, offset, length), numbers="host")
    volume = calls.crypto_open(context.registry, "luks", request)
    Extent(start, length, Kind.ENCODED, file, offset, codec=volume)
    Placement(start, length, file, offset, cipher=volume)

Sector numbers, from which initialisation vectors are made, always count 512 bytes, whatever the size of the sectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DriverError, ImageError, SecretError, printable
from ..records import field, record, replace
from ..sizes import SECTOR
from .extents import Extent
from .node import Node, ReadBuffer
from .options import Option, Value

if TYPE_CHECKING:
    from ..opening.context import Context

CRYPTO_OPTIONS = (
    Option("key-secret", "str", "id of the secret that holds the passphrase", when=("create", "open")),
    Option("kdf-limit", "int", "most seconds that deriving the key may take", when=("open",)),
    Option("kdf-memory", "size", "most memory that deriving the key may take", when=("open",)),
    Option("cipher-alg", "str", "cipher, with the key's bits: aes-256, serpent-256, twofish-256, …"),
    Option("cipher-mode", "str", "how the cipher is chained: xts, cbc, ctr, ecb"),
    Option("ivgen-alg", "str", "how a sector's initialisation vector is made: plain64, plain, essiv"),
    Option("ivgen-hash-alg", "str", "hash for ivgen-alg=essiv"),
    Option("hash-alg", "str", "hash for the key derivation and the anti-forensic split"),
    Option("iter-time", "int", "milliseconds to spend in the key derivation", when=("create", "amend")),
    Option("state", "str", "new state of the key slots", choices=("active", "inactive"), when=("amend",)),
    Option("new-secret", "str", "id of the secret for the slot that becomes active", when=("amend",)),
    Option("old-secret", "str", "only slots that this secret's passphrase opens", when=("amend",)),
    Option("keyslot", "int", "only the key slot of this number", when=("amend",)),
)
"""The options that every format with encryption takes, under QAPI's names."""


def encrypt_options(*formats: str) -> tuple[Option, ...]:
    """:data:`CRYPTO_OPTIONS` as ``encrypt.…`` options of a format whose ``encrypt.format`` is one of *formats*, or any
    other crypto driver that declares that it fits (:func:`diskmill.contract.calls.crypto_for`)."""
    when = ("create", "open")
    chosen = Option("encrypt.format", "str", "how the image is encrypted", choices=formats, when=when, others=True)
    return (chosen, *(replace(option, name=f"encrypt.{option.name}") for option in CRYPTO_OPTIONS))


def sub_options(options: Mapping[str, Value], prefix: str = "encrypt.") -> dict[str, Value]:
    """The options under *prefix*, without it and without ``format``: what a :class:`CryptoRequest` takes."""
    own = {name.removeprefix(prefix): value for name, value in options.items() if name.startswith(prefix)}
    own.pop("format", None)
    return own


class Header:
    """The stretch of a node that holds an encryption header, with bounds that nothing gets past.

    :param node: the file (or whatever holds it).
    :param offset: where the header begins, in bytes.
    :param length: how many bytes it may take.
    """

    def __init__(self, node: Node, offset: int, length: int) -> None:
        self.node = node
        self.offset = offset
        self.length = length

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            cause = f"bytes {offset} to {offset + length} lie beyond its end at {self.length}"
            raise ImageError(cause, file=self.node.name, place="encryption header")

    def read(self, offset: int, length: int) -> bytes:
        """*length* bytes from byte *offset* of the header.

        :raises ImageError: they are not all inside.
        """
        self._check(offset, length)
        return self.node.read(self.offset + offset, length)

    def write(self, offset: int, data: ReadBuffer) -> None:
        """Put *data* at byte *offset* of the header."""
        self._check(offset, len(data))
        self.node.write(self.offset + offset, data)

    def barrier(self) -> None:
        """What was written before reaches the disk before what is written after."""
        self.node.barrier()


@record
class CryptoRequest:
    """Open or make an encryption header.

    :param name: the image, for messages.
    :param options: the crypto driver's options for the operation, without a prefix.
    :param header: to open: where the header is; None for ciphers that have none.
    :param numbers: what numbers the sectors: the ``guest`` offset of the data, or its ``host`` offset in the file.
    :param shallow: to open: only :meth:`Volume.details` will be asked, so that no passphrase is needed.
    :param prefix: what stands before option names where the user types them, for messages.
    """

    name: str
    context: Context
    options: Mapping[str, Value] = field(default_factory=dict)
    header: Header | None = None
    numbers: Literal["guest", "host"] = "guest"
    shallow: bool = False
    prefix: str = ""

    def own_header(self) -> Header:
        """``header``, for drivers whose volumes have one: who asks them always gives it."""
        if self.header is None:
            raise DriverError(f"'{self.name}' was to be unlocked without its encryption header")
        return self.header

    def passphrase(self, option: str = "key-secret", *, new: bool = False) -> bytes:
        """What the secret that *option* names holds; asked for where there is no such option and someone can be asked.

        :param new: the passphrase is to be chosen: who is asked for it types it twice.
        :raises SecretError: there is none, or what was typed is not twice the same.
        """
        if option in self.options:
            given = self.context.secret(str(self.options[option]))
            if new and not given:  # what it came from was empty, or had been read before
                raise SecretError(f"the new passphrase ({self.prefix}{option}) is empty", file=self.name)
            return given
        ask = self.context.ask
        if ask is None:
            hint = f"give it with --object secret,id=ID,… and the option {self.prefix}{option}=ID"
            raise SecretError(f"a passphrase is needed: {hint}", file=self.name)
        image = printable(self.name)
        typed = ask(f"{'New passphrase' if new else 'Passphrase'} for '{image}': ")
        if new and ask(f"Once more, the new passphrase for '{image}': ") != typed:
            raise SecretError("the two passphrases differ", file=self.name)
        return typed


class SectorCipher(ABC):
    """Encrypts and decrypts runs of sectors with one key. Called from several threads at once."""

    sector_size: int
    """Bytes that are encrypted together."""

    @abstractmethod
    def decrypt(self, number: int, data: memoryview) -> memoryview:
        """Decrypt *data*, whole sectors, in place. The first begins at 512-byte sector *number*. Gives *data*."""

    @abstractmethod
    def encrypt(self, number: int, data: memoryview) -> memoryview:
        """*data*, whole sectors, encrypted. *data* stays; what is returned holds until this thread's next call."""

    @abstractmethod
    def wipe(self) -> None:
        """Forget the key, overwriting it where Python allows."""


class Volume:
    """Encrypted guest data, unlocked: a :class:`~diskmill.contract.extents.Codec` and a
    :class:`~diskmill.contract.extents.Cipher`.

    :param name: the image, for messages.
    :param sectors: the cipher; None: opened without a passphrase, so that nothing can be decrypted.
    :param numbers: as in :class:`CryptoRequest`.
    """

    header: bytes = b""
    """After ``crypto_create``: what the format writes where it keeps the header, all of it."""
    payload_offset: int = 0
    """Bytes from the header's first byte to the guest data, for formats that keep nothing else."""

    def __init__(
        self, name: str, sectors: SectorCipher | None, *, numbers: str = "guest", granularity: int = SECTOR
    ) -> None:
        self.name = name
        self.granularity = granularity
        self._sectors = sectors
        self._host = numbers == "host"

    @property
    def sectors(self) -> SectorCipher:
        """The cipher.

        :raises SecretError: opened without a passphrase.
        """
        if self._sectors is None:
            raise SecretError("the image is encrypted, and it was opened without a passphrase", file=self.name)
        return self._sectors

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> memoryview:
        """See :class:`~diskmill.contract.extents.Codec`."""
        return self.sectors.decrypt((extent.offset if self._host else extent.start) // SECTOR, payload)

    def encrypt(self, start: int, offset: int, data: memoryview) -> memoryview:
        """See :class:`~diskmill.contract.extents.Cipher`."""
        return self.sectors.encrypt((offset if self._host else start) // SECTOR, data)

    def details(self) -> dict[str, Any]:
        """QAPI's ``QCryptoBlockInfo`` of the format, without ``format``: what ``info`` shows. Never a key."""
        return {}

    def close(self) -> None:
        """Forget the key."""
        if self._sectors is not None:
            self._sectors.wipe()
            self._sectors = None
