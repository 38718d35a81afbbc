"""What ``--object`` defines: passphrases and keys (``secret,…``, in every form that QEMU's manual gives, "Secret
objects"), or asked for at the terminal, and groups of nodes that are slowed down together (``throttle-group,…``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diskmill.contract.options import HelpAsked, split
from diskmill.errors import SecretError, UsageError, printable
from diskmill.opening.context import SharedObject
from diskmill.opening.secrets import Secret

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_TLS = ("tls-creds-x509", "tls-creds-psk", "tls-creds-anon", "authz-simple", "authz-list", "authz-list-file")
_OTHERS = ("throttle-group", *_TLS)
"""Types of objects that are no secrets; what they may say is known to the drivers that take them."""
_KNOWN = ("id", "data", "file", "format", "keyid", "iv")


def read_objects(definitions: Sequence[str]) -> tuple[dict[str, bytes], dict[str, SharedObject]]:
    """What *definitions* (one for each ``--object``) define: secrets, and other objects, each by id.

    :raises UsageError: a definition makes no sense.
    :raises SecretError: a secret cannot be decoded or decrypted.
    """
    defined, others = objects_of(definitions)
    secrets: dict[str, bytes] = {}
    for one in defined:
        secrets[one.id] = one.read(secrets)
    return secrets, others


def objects_of(definitions: Sequence[str]) -> tuple[list[Secret], dict[str, SharedObject]]:
    """The same, with the secrets not read yet.

    :raises UsageError: a definition makes no sense.
    """
    secrets: dict[str, Secret] = {}
    others: dict[str, SharedObject] = {}
    for text in definitions:
        properties = _properties(text)
        kind = properties.pop("qom-type", None)
        if kind not in ("secret", *_OTHERS):
            raise UsageError(f"invalid object type '{kind}': only 'secret' and {', '.join(_OTHERS)} are known")
        key = properties.get("id")
        if not key:
            raise UsageError(f"a {kind} object needs an id")
        if not isinstance(key, str) or not _ID.fullmatch(key):
            raise UsageError(f"invalid id '{key}': a letter, then letters, digits, '-', '.' and '_'")
        if key in secrets or key in others:
            raise UsageError(f"the object id '{key}' is given twice")
        if kind in _OTHERS:
            del properties["id"]
            if kind in _TLS:
                properties = dict(_flat("", properties))
            others[key] = SharedObject(kind, properties)
            continue
        if not all(isinstance(one, str) for one in properties.values()):
            raise UsageError("a secret object in JSON must be an object of texts")
        unknown = sorted(set(properties) - set(_KNOWN))
        if unknown:
            raise UsageError(f"a secret object has no property '{unknown[0]}'")
        secrets[key] = Secret(**properties)
    return list(secrets.values()), others


def ask(prompt: str) -> bytes:
    """The line that a person types at the terminal after *prompt*, without echo, as the bytes that were typed.

    :raises SecretError: nothing was typed.
    """
    from getpass import getpass

    try:
        typed = os.fsencode(getpass(printable(prompt)))
    except (EOFError, UnicodeError):
        typed = b""
    if not typed:
        raise SecretError("no passphrase was given")
    return typed


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """A value of JSON as properties: ``rules.0.match`` names what is in a list."""
    if isinstance(value, Mapping | list):
        for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(f"{path}.{key}" if path else str(key), one)
    elif isinstance(value, str | bool):
        yield path, value if isinstance(value, str) else "on" if value else "off"
    else:
        raise UsageError("an object in JSON must be an object of texts")


def _properties(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        import json

        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"cannot parse the object: {error}") from None
        if not isinstance(value, Mapping):
            raise UsageError("cannot parse the object: it is not a JSON object")
        return dict(value)
    kind, _, rest = text.partition(",")
    if "=" in kind:
        kind, rest = "", text
    try:
        pairs = split(rest)
    except HelpAsked:
        raise UsageError(f"properties of a secret: {', '.join(_KNOWN)}") from None
    return {"qom-type": kind} | dict(pairs) if kind else dict(pairs)
