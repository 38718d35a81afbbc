"""The cipher of old encrypted qcow and qcow2 images (``encrypt.format=aes``).

AES-128 in CBC mode, the sector's number as the vector, and the passphrase itself, cut or filled with zeros to 16
bytes, as the key. It is weak, and meant for reading old images. Source: QEMU's ``docs/interop/qcow2.rst``.
"""

from __future__ import annotations

from diskmill.contract.crypto import CryptoRequest, Volume
from diskmill.errors import SecretError

from .spec import Spec

KEY_BYTES = 16


def open_volume(request: CryptoRequest, *, new: bool = False) -> Volume:
    """The same for images that are there and new ones: nothing tells whether the passphrase is right."""
    if request.shallow:
        return Volume(request.name, None, numbers=request.numbers)
    from .sectors import BulkCipher

    passphrase = request.passphrase(new=new)
    if not passphrase:
        raise SecretError("the passphrase is empty", file=request.name)
    key = bytearray(passphrase[:KEY_BYTES].ljust(KEY_BYTES, b"\0"))
    try:
        return Volume(request.name, BulkCipher(Spec("aes", "cbc"), key), numbers=request.numbers)
    finally:
        key[:] = bytes(KEY_BYTES)
