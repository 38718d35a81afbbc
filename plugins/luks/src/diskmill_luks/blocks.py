"""Block ciphers in ECB mode over whole buffers: the one primitive that all modes of disk encryption are made of here.

AES and CAST5 come from ``cryptography`` (OpenSSL); Serpent and Twofish, which OpenSSL lacks, from Nettle, GnuTLS's
cipher library, which nearly every Linux system has. All of them release the GIL.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

from diskmill.errors import UnsupportedError

KEY_SIZES = {"aes": (16, 24, 32), "cast5": (16,), "serpent": (16, 24, 32), "twofish": (16, 24, 32)}
"""Cipher → its keys' sizes in bytes."""
BLOCK_SIZES = {"aes": 16, "cast5": 8, "serpent": 16, "twofish": 16}
"""Cipher → bytes in a block."""
SLACK = 16
"""Bytes that a target has after the end of what is written to it: OpenSSL's calls ask for room for one more block."""

_NETTLE_NAMES = ("libnettle.so.8", "libnettle.so.9", "libnettle.8.dylib")


class BlockCipher(ABC):
    """One key, for use by one thread. Lengths are whole blocks."""

    @abstractmethod
    def encrypt(self, source: Any, target: memoryview) -> None:
        """Put the encrypted bytes of *source*, any buffer, at the start of *target*, which has :data:`SLACK` more."""

    @abstractmethod
    def decrypt(self, source: Any, target: memoryview) -> None:
        """The way back."""


class _OpenSSL(BlockCipher):
    def __init__(self, algorithm: Any) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        cipher = Cipher(algorithm, modes.ECB())
        self._encrypt: Callable[[Any, Any], int] = cipher.encryptor().update_into
        self._decrypt: Callable[[Any, Any], int] = cipher.decryptor().update_into

    def encrypt(self, source: Any, target: memoryview) -> None:
        self._encrypt(source, target)

    def decrypt(self, source: Any, target: memoryview) -> None:
        self._decrypt(source, target)


_SetKey = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_Crypt = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)


class _NettleCipher(ctypes.Structure):
    """``struct nettle_cipher`` of ``nettle-meta.h``, part of the library's interface."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("context_size", ctypes.c_uint),
        ("block_size", ctypes.c_uint),
        ("key_size", ctypes.c_uint),
        ("set_encrypt_key", _SetKey),
        ("set_decrypt_key", _SetKey),
        ("encrypt", _Crypt),
        ("decrypt", _Crypt),
    ]


@cache
def _nettle() -> ctypes.CDLL | None:
    for name in _NETTLE_NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _nettle_cipher(name: str) -> _NettleCipher | None:
    library = _nettle()
    if library is None:
        return None
    try:
        return _NettleCipher.in_dll(library, f"nettle_{name}")
    except ValueError:
        return None


class _Nettle(BlockCipher):
    def __init__(self, cipher: _NettleCipher, key: bytes | bytearray | memoryview) -> None:
        self._cipher = cipher
        material = (ctypes.c_char * len(key)).from_buffer_copy(key)
        self._encrypt_context = ctypes.create_string_buffer(cipher.context_size)
        self._decrypt_context = ctypes.create_string_buffer(cipher.context_size)
        cipher.set_encrypt_key(ctypes.addressof(self._encrypt_context), ctypes.addressof(material))
        cipher.set_decrypt_key(ctypes.addressof(self._decrypt_context), ctypes.addressof(material))
        ctypes.memset(material, 0, len(key))

    def __del__(self) -> None:
        for context in (self._encrypt_context, self._decrypt_context):
            ctypes.memset(context, 0, len(context))

    def encrypt(self, source: Any, target: memoryview) -> None:
        self._run(self._cipher.encrypt, self._encrypt_context, source, target)

    def decrypt(self, source: Any, target: memoryview) -> None:
        self._run(self._cipher.decrypt, self._decrypt_context, source, target)

    def _run(self, function: Any, context: Any, source: Any, target: memoryview) -> None:
        view = memoryview(source).cast("B")
        into = (ctypes.c_char * len(view)).from_buffer(target)
        if view.readonly:
            ctypes.memmove(into, view.tobytes(), len(view))
            origin = into
        else:
            origin = (ctypes.c_char * len(view)).from_buffer(view)
        function(ctypes.addressof(context), len(view), ctypes.addressof(into), ctypes.addressof(origin))


def block_cipher(name: str, key: bytes | bytearray | memoryview) -> BlockCipher:
    """The cipher *name* with *key*, for one thread; *key* is not needed any more once it is made.

    :raises UnsupportedError: no library at hand has it.
    """
    require(name, len(key))
    if name == "aes":
        from cryptography.hazmat.primitives.ciphers import algorithms

        return _OpenSSL(algorithms.AES(key))
    cipher = _nettle_cipher(_nettle_name(name, len(key)))
    if cipher is not None:
        return _Nettle(cipher, key)
    from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5

    return _OpenSSL(CAST5(bytes(key)))


def _nettle_name(name: str, size: int) -> str:
    return f"{'cast' if name == 'cast5' else name}{size * 8}"


def require(name: str, size: int) -> None:
    """Check that there is a cipher *name* with keys of *size* bytes.

    :raises UnsupportedError: there is not; the message says why.
    """
    if name not in KEY_SIZES:
        raise UnsupportedError(f"cipher '{name}' is not supported: known are {', '.join(KEY_SIZES)}")
    if size not in KEY_SIZES[name]:
        raise UnsupportedError(f"cipher '{name}' with keys of {size * 8} bits is not supported")
    if name in ("serpent", "twofish") and _nettle_cipher(_nettle_name(name, size)) is None:
        raise UnsupportedError(
            f"cipher '{name}-{size * 8}' needs the library Nettle (libnettle), which is not installed"
        )
