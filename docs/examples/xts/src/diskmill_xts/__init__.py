"""The cipher ``xts``: AES-256 in XTS mode, its key from the passphrase by scrypt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS
from diskmill.contract.crypto import CryptoRequest, SectorCipher, Volume
from diskmill.contract.drivers import CryptoDriver, hookimpl
from diskmill.errors import ImageError, SecretError
from diskmill.kit.structs import Record, Structure, raw
from diskmill.sizes import SECTOR

# The header, which a format keeps inside its images.
MAGIC = b"xts".ljust(32, b"\0")


class Header(Record):
    magic = raw(32)
    salt = raw(32)
    proof = raw(32)


HEADER = Structure("encryption header", "<", Header)


class XtsSectors(SectorCipher):
    """Sectors of 512 bytes, each with its number for a tweak."""

    sector_size = SECTOR

    def __init__(self, key: bytes) -> None:
        self.key = bytearray(key)

    def decrypt(self, number: int, data: memoryview) -> memoryview:
        """In place; called from several threads at once."""
        data[:] = self._crypt(number, data, encrypt=False)
        return data

    def encrypt(self, number: int, data: memoryview) -> memoryview:
        """What is given stays as it is."""
        return memoryview(self._crypt(number, data, encrypt=True))

    def _crypt(self, number: int, data: memoryview, *, encrypt: bool) -> bytearray:
        result = bytearray(len(data))
        for at in range(0, len(data), SECTOR):
            cipher = Cipher(AES(bytes(self.key)), XTS((number + at // SECTOR).to_bytes(16, "little")))
            worker = cipher.encryptor() if encrypt else cipher.decryptor()
            result[at : at + SECTOR] = worker.update(bytes(data[at : at + SECTOR])) + worker.finalize()
        return result

    def wipe(self) -> None:
        """Overwrite the key."""
        self.key[:] = bytes(len(self.key))


class XtsDriver(CryptoDriver):
    """``xts``: an example."""

    contract = 1
    name = "xts"
    title = "the xts cipher"
    fits: Mapping[str, int] = {"qcow2": int.from_bytes(b"xtsa", "big")}

    @hookimpl
    def crypto_open(self, request: CryptoRequest) -> Volume:
        """What the header and the passphrase make; without the latter, where only details are asked for."""
        if request.header is None:
            raise ImageError("it has no encryption header", file=request.name)
        size = min(HEADER.size, request.header.length)
        header = HEADER.unpack(request.header.read(0, size), file=request.name)
        if header.magic != MAGIC:
            raise ImageError("its magic is another", file=request.name, place=HEADER.name)
        if request.shallow:
            return Volume(request.name, None, numbers=request.numbers)
        key, proof = derive(request.passphrase(), header.salt)
        if proof != header.proof:
            raise SecretError("the passphrase is wrong", file=request.name)
        return Volume(request.name, XtsSectors(key), numbers=request.numbers)

    @hookimpl
    def crypto_create(self, request: CryptoRequest) -> Volume:
        """A new salt, so that no two images have one key."""
        salt = os.urandom(32)
        key, proof = derive(request.passphrase(new=True), salt)
        volume = Volume(request.name, XtsSectors(key), numbers=request.numbers)
        volume.header = HEADER.pack(HEADER.new(magic=MAGIC, salt=salt, proof=proof))
        return volume


def derive(passphrase: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """The key, and what proves that the passphrase is right."""
    both = hashlib.scrypt(passphrase, salt=salt, n=1 << 12, r=8, p=1, dklen=96)
    return both[:64], both[64:]


driver = XtsDriver()
