"""The hashes of LUKS headers, by the names that stand there: what ``hashlib`` has of them.

OpenSSL 3 keeps the old ones (whirlpool, in some builds ripemd160) in its legacy provider, which it loads when told to.
"""

from __future__ import annotations

import hashlib
from functools import cache

from diskmill.errors import UnsupportedError

HASHES = {
    "md5": 16,
    "sha1": 20,
    "sha224": 28,
    "sha256": 32,
    "sha384": 48,
    "sha512": 64,
    "ripemd160": 20,
    "whirlpool": 64,
}
"""Hash → bytes in its digest."""
ONLY_READ = frozenset({"whirlpool"})
"""Hashes that no new image gets: QEMU does not know them."""


def digest_size(name: str, *, new: bool = False) -> int:
    """Bytes in the digest of the hash *name*.

    :param new: for a new image.
    :raises UnsupportedError: there is no such hash here.
    """
    if name not in HASHES or new and name in ONLY_READ or not _there(name):
        raise UnsupportedError(f"hash '{name}' is not supported")
    return HASHES[name]


@cache
def _there(name: str) -> bool:
    return _makes(name) or _load_legacy() and _makes(name)


def _makes(name: str) -> bool:
    try:
        hashlib.new(name)
    except ValueError:
        return False
    return True


@cache
def _load_legacy() -> bool:
    """Load OpenSSL's legacy provider into the library that ``hashlib`` uses; whether that could be done."""
    try:
        import _hashlib  # type: ignore[import-not-found, unused-ignore]
        from ctypes import CDLL, c_char_p, c_void_p

        load = CDLL(_hashlib.__file__).OSSL_PROVIDER_load  # its own symbols, and those of the libcrypto that it needs
    except (ImportError, OSError, AttributeError):
        return False
    load.argtypes, load.restype = [c_void_p, c_char_p], c_void_p
    # Once a provider is loaded by name, the default one no longer comes by itself.
    return bool(load(None, b"default") and load(None, b"legacy"))
