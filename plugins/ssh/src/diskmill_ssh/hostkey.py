"""A program that ``ssh`` asks which keys it knows of a machine (``KnownHostsCommand``): the one with a given hash.

It stands alone: ``ssh`` runs it as ``python hostkey.py TYPE HASH HOST KEYTYPE KEY``, with the key that the machine has
just shown, in base64, and takes it for known if it is printed as a line of a known_hosts file. So the very connection
that will be used is checked, by ``ssh`` itself. See KnownHostsCommand and TOKENS in ssh_config(5); OpenSSH 8.5 has it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import sys


def known(kind: str, digits: str, host: str, key_type: str, key: str) -> str:
    """The line for *host*, if *key* has the hash *digits* of the *kind*; otherwise nothing."""
    try:
        data = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        return ""  # asked for an order of types, there is no key yet
    same = hmac.compare_digest(hashlib.new(kind, data, usedforsecurity=False).hexdigest(), digits)
    return f"{host} {key_type} {key}\n" if same else ""


if __name__ == "__main__":
    sys.stdout.write(known(*sys.argv[1:6]))
