"""TLS contexts from folders in the layout of QEMU's ``tls-creds-x509`` and ``tls-creds-psk`` objects.

Source: QEMU manual, "TLS setup for network services". ``ca-cert.pem``; ``client-cert.pem`` and ``client-key.pem``, or
``server-cert.pem`` and ``server-key.pem``; ``keys.psk`` with lines of ``user:hexadecimal key``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from diskmill.errors import SecretError, UsageError
from diskmill.records import record

if TYPE_CHECKING:
    import ssl

_MAX_KEYS = 1 << 20


@record(frozen=True)
class Credentials:
    """What one side of a TLS connection has, and asks of the other.

    :param folder: of X.509 certificates; empty: the system's authorities, and no certificate of one's own.
    :param psk_file: of pre-shared keys, instead of certificates.
    :param user: whose key of that file a client uses.
    :param verify: of a client: the server's certificate must be good; of a server: the client needs one.
    """

    folder: str = ""
    psk_file: str = ""
    user: str = "qemu"
    verify: bool = True


def credentials_of(properties: Mapping[str, str]) -> Credentials:
    """The credentials that the properties of a ``tls-creds-x509`` or ``tls-creds-psk`` object say.

    :raises UsageError: it is another object, or lacks its folder.
    """
    kind = properties.get("qom-type", "")
    folder = properties.get("dir", "")
    verify = properties.get("verify-peer", "on") in ("on", "yes", "true", "True")
    if kind == "tls-creds-x509":
        if not folder:
            raise UsageError("a tls-creds-x509 object needs 'dir', the folder of the certificates")
        return Credentials(folder, verify=verify)
    if kind == "tls-creds-psk":
        if not folder:
            raise UsageError("a tls-creds-psk object needs 'dir', the folder of the keys")
        return Credentials(psk_file=os.path.join(folder, "keys.psk"), user=properties.get("username", "qemu"))
    raise UsageError(f"TLS credentials are objects of type tls-creds-x509 or tls-creds-psk, not '{kind}'")


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """The context of a client.

    :raises SecretError: a file is missing or makes no sense.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if credentials.psk_file:
        keys = _keys(credentials.psk_file)
        if credentials.user not in keys:
            raise SecretError(f"no key for user '{credentials.user}'", file=credentials.psk_file)
        key = keys[credentials.user]
        _prepare_psk(context)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_psk_client_callback(lambda hint: (credentials.user, key))  # type: ignore[attr-defined,unused-ignore]
        return context
    if not credentials.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _load(context, credentials.folder, "client", needed=False)
    return context


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """The context of a server.

    :raises SecretError: a file is missing or makes no sense.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if credentials.psk_file:
        keys = _keys(credentials.psk_file)
        _prepare_psk(context)
        context.set_psk_server_callback(lambda user: keys.get(user or "", b""))  # type: ignore[attr-defined,unused-ignore]
        return context
    _load(context, credentials.folder, "server", needed=True)
    if credentials.verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, folder: str, side: str, *, needed: bool) -> None:
    from ssl import SSLError

    if not folder:
        context.load_default_certs()
        return
    path = os.path.join(folder, "ca-cert.pem")
    try:
        context.load_verify_locations(path)
        path = os.path.join(folder, f"{side}-cert.pem")
        key = os.path.join(folder, f"{side}-key.pem")
        if needed or os.path.exists(path):
            context.load_cert_chain(path, key, password=lambda: b"")  # an encrypted key must not ask the terminal
    except (SSLError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SecretError(f"TLS credentials: {why}", file=path) from None


def _prepare_psk(context: ssl.SSLContext) -> None:
    import ssl

    if not hasattr(context, "set_psk_client_callback"):
        raise SecretError("pre-shared keys need Python 3.13 or later")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2  # OpenSSL's callbacks are those of 1.2
    context.set_ciphers("PSK")


def _keys(path: str) -> dict[str, bytes]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_KEYS)
        pairs = [line.strip().split(":", 1) for line in text.splitlines() if line.strip() and line[0] != "#"]
        return {user: bytes.fromhex(key) for user, key in pairs}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it does not consist of lines 'user:hexadecimal key'"
        raise SecretError(f"pre-shared keys: {why}", file=path) from None
