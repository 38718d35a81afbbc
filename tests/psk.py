"""Pre-shared keys for the ``ssl`` of a Python before 3.13, which has none: OpenSSL's own functions, by ctypes.

Only for tests: the pointer to OpenSSL's context is taken out of CPython's, whose first member it is.
"""

from __future__ import annotations

import _ssl  # the library that is loaded is the one that ssl stands on
import ctypes
import ssl
import sys
from collections.abc import Callable

import pytest

_CLIENT = ctypes.CFUNCTYPE(
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_uint,
)
_SERVER = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint)
_OPENSSL = ctypes.CDLL(_ssl.__file__)  # the symbols of what it is linked with come along


def _pointer(context: ssl.SSLContext) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__)


def _set_client(self: ssl.SSLContext, callback: Callable[[str | None], tuple[str, bytes]]) -> None:
    def answer(_ssl, hint, identity, identity_room, key, key_room) -> int:
        name, secret = callback(hint.decode() if hint else None)
        if len(name) >= identity_room or len(secret) > key_room:
            return 0
        ctypes.memmove(identity, name.encode() + b"\0", len(name) + 1)
        ctypes.memmove(key, secret, len(secret))
        return len(secret)

    self.kept = _CLIENT(answer)  # OpenSSL holds no reference
    _OPENSSL.SSL_CTX_set_psk_client_callback(_pointer(self), self.kept)


def _set_server(self: ssl.SSLContext, callback: Callable[[str | None], bytes]) -> None:
    def answer(_ssl, identity, key, key_room) -> int:
        secret = callback(identity.decode() if identity else None)
        if len(secret) > key_room:
            return 0
        ctypes.memmove(key, secret, len(secret))
        return len(secret)

    self.kept = _SERVER(answer)
    _OPENSSL.SSL_CTX_set_psk_server_callback(_pointer(self), self.kept)


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ssl`` has pre-shared keys."""
    if sys.version_info < (3, 13):
        monkeypatch.setattr(ssl.SSLContext, "set_psk_client_callback", _set_client, raising=False)
        monkeypatch.setattr(ssl.SSLContext, "set_psk_server_callback", _set_server, raising=False)
