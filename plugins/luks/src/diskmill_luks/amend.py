"""Changing key slots: ``amend -o state=active|inactive,new-secret=,old-secret=,keyslot=,iter-time=``.

The rules are those of QAPI's ``QCryptoBlockAmendOptionsLUKS``.
"""

from __future__ import annotations

from diskmill.contract.crypto import CryptoRequest, Header
from diskmill.errors import SecretError, UsageError

from .kdf import Budget
from .luks1 import wipe
from .volume import Luks, check_version, limits, naming, read_header, unlock


def amend(request: CryptoRequest, force: bool) -> None:
    """See the hook ``crypto_amend``."""
    options = request.options
    state = options.get("state")
    if state is None:
        raise UsageError(f"the option '{request.prefix}state' is missing: give active or inactive", file=request.name)
    header = request.own_header()
    with naming(request.name):
        luks = read_header(request)
        luks.check_supported()
        check_version(luks.version, options)
        slot = options.get("keyslot")
        if slot is not None and int(slot) >= luks.slot_count:
            raise UsageError(f"there is no key slot {slot}: they are numbered 0 to {luks.slot_count - 1}")
        if state == "active":
            _activate(luks, header, request, force)
        else:
            _deactivate(luks, header, request, force)


def _activate(luks: Luks, header: Header, request: CryptoRequest, force: bool) -> None:
    options = request.options
    if "old-secret" in options:
        raise UsageError(f"the option '{request.prefix}old-secret' goes with state=inactive only")
    active = luks.active()
    if "keyslot" in options:
        slot = int(options["keyslot"])
        if slot in active and not force:
            raise UsageError(f"key slot {slot} is active: erase it first, or use --force")
    else:
        free = [index for index in range(luks.slot_count) if index not in active and not _used(luks, index)]
        if not free:
            raise UsageError("all key slots are in use: erase one first")
        slot = free[0]
    fresh = request.passphrase("new-secret", new=True)
    key = unlock(luks, header, request.passphrase(), limits(request))
    try:
        luks.set_slot(header, slot, fresh, key, options)
    finally:
        wipe(key)


def _used(luks: Luks, index: int) -> bool:
    """A LUKS2 slot may be there and hold another key than the payload's."""
    return luks.version == 2 and index in luks.slots


def _deactivate(luks: Luks, header: Header, request: CryptoRequest, force: bool) -> None:
    options = request.options
    for name in ("new-secret", "iter-time"):
        if name in options:
            raise UsageError(f"the option '{request.prefix}{name}' goes with state=active only")
    active = luks.active()
    chosen = [int(options["keyslot"])] if "keyslot" in options else active
    if "keyslot" in options and chosen[0] not in active:
        raise UsageError(f"key slot {chosen[0]} is inactive already")
    if "old-secret" in options:
        chosen = _matching(luks, header, chosen, request.passphrase("old-secret"), limits(request))
        if not chosen:
            raise SecretError("the passphrase given as old-secret opens none of these key slots", file=request.name)
    elif "keyslot" not in options:
        raise UsageError(
            f"name what to erase: a number ({request.prefix}keyslot) or a passphrase ({request.prefix}old-secret)"
        )
    if set(chosen) == set(active) and not force:
        raise UsageError(
            "that would erase the last key, and all data with it, for ever: refused (use --force if that is meant)"
        )
    for slot in chosen:
        luks.erase_slot(header, slot)


def _matching(luks: Luks, header: Header, slots: list[int], passphrase: bytes, budget: Budget) -> list[int]:
    found = []
    for slot in slots:
        key = luks.try_slot(header, slot, passphrase, budget)
        if key is not None:
            wipe(key)
            found.append(slot)
    return found
