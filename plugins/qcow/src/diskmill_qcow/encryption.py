"""Encrypted images: AES, by whatever crypto driver of that name is installed.

Sectors are numbered by their offset in the guest disk, and compressed clusters are never encrypted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diskmill.contract import calls
from diskmill.contract.crypto import CryptoRequest, Volume, sub_options
from diskmill.errors import UsageError

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.options import Value

CIPHER = "aes"
"""The crypto driver, and the only value of ``encrypt.format``."""
_PREFIX = "encrypt."


def asked(options: Mapping[str, Value], name: str) -> bool:
    """Whether the create *options* ask for an encrypted image called *name*."""
    if options.get("encryption") or options.get(_PREFIX + "format"):
        return True
    own = sub_options(options, _PREFIX)
    if own:
        raise UsageError(f"the option '{_PREFIX}{next(iter(own))}' needs {_PREFIX}format", file=name)
    return False


def unlock(
    options: Mapping[str, Value], context: Context, name: str, *, new: bool = False, shallow: bool = False
) -> Volume:
    """The cipher of the image called *name*, which is *new* or is opened."""
    own = sub_options(options, _PREFIX)
    request = CryptoRequest(name, context, own, numbers="guest", shallow=shallow, prefix=_PREFIX)
    ask = calls.crypto_create if new else calls.crypto_open
    return ask(context.registry, CIPHER, request)
