"""Key slots that change when the power goes: at every moment a passphrase opens the disk, the old one or the new."""

from __future__ import annotations

import random
from typing import Any

import pytest
from diskmill.contract.node import Image
from diskmill.errors import DiskmillError, SecretError
from diskmill.opening.graph import open_image
from diskmill_testkit.journals import Change, crash_states
from formats import Machine
from twins import Content, MemoryStorage

DISK = 64 << 10
STATES = 16
KINDS: list[dict[str, Any]] = [{"version": "1"}, {"version": "2", "pbkdf": "pbkdf2"}]


def opened(machine: Machine, key: str, *, writable: bool = False) -> Image:
    spec = {"driver": "luks", "key-secret": key, "file": {"driver": "memory", "filename": "memory:disk"}}
    return open_image(spec, context=machine.context, writable=writable)


def prepared(options: dict[str, Any]) -> Machine:
    """An image with the secret `key` in slot 0; there are also `new` and `other`."""
    machine = Machine()
    machine.context.secrets.update(new=b"swordfish", other=b"third")
    machine.create("disk", "luks", DISK, {**options, "iter-time": 1})
    with opened(machine, "key", writable=True) as image:
        image.write(0, b"precious" * 64)
    return machine


def amend(machine: Machine, key: str, *, force: bool = False, **options: Any) -> tuple[Content, list[Change]]:
    """Change key slots; what the file held before, and all that was done to it."""
    given = {name.replace("_", "-"): value for name, value in options.items()}
    if given["state"] == "active":
        given["iter-time"] = 1
    journal: list[Change] = []
    before = machine.files["disk"].copy()
    with opened(machine, key, writable=True) as image:
        assert isinstance(image.file, MemoryStorage)
        if given["state"] == "active" and image.details().get("version") == 2:
            given["pbkdf"] = "pbkdf2"  # quicker than Argon2
        image.file.journal = journal
        machine.context.registry.call(image.driver, "amend", image=image, options=given, force=force)
    return before, journal


def opens(machine: Machine, key: str) -> bool:
    """Whether the secret opens the disk, and what is on it is right."""
    try:
        with opened(machine, key) as image:
            assert image.read(0, 512) == b"precious" * 64
            return True
    except SecretError:
        return False


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("slot", [0, 3, 6, 7])
def test_a_key_that_is_added(options: dict[str, Any], slot: int) -> None:
    machine = prepared(options)
    if slot == 0:
        amend(machine, "key", state="active", new_secret="other", keyslot=5)
        amend(machine, "other", state="inactive", keyslot=0)
    kept = "other" if slot == 0 else "key"
    before, journal = amend(machine, kept, state="active", new_secret="new", keyslot=slot)
    assert opens(machine, "new")
    for _, state in crash_states(before, journal, random.Random(slot), STATES):
        machine.files["disk"] = state
        assert opens(machine, kept)


@pytest.mark.parametrize("options", KINDS)
def test_a_key_that_is_erased(options: dict[str, Any]) -> None:
    machine = prepared(options)
    amend(machine, "key", state="active", new_secret="other")
    before, journal = amend(machine, "other", state="inactive", keyslot=0)
    assert not opens(machine, "key")
    for _, state in crash_states(before, journal, random.Random(1), STATES):
        machine.files["disk"] = state
        assert opens(machine, "other")


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("slot", [0, 7])
def test_the_only_key_that_is_replaced_by_force(options: dict[str, Any], slot: int) -> None:
    machine = prepared(options)
    if slot:
        amend(machine, "key", state="active", new_secret="other", keyslot=slot)
        amend(machine, "other", state="inactive", keyslot=0)
    old = "other" if slot else "key"
    before, journal = amend(machine, old, state="active", new_secret="new", keyslot=slot, force=True)
    assert opens(machine, "new") and not opens(machine, old)
    found = set()
    for _, state in crash_states(before, journal, random.Random(slot), 2 * STATES):
        machine.files["disk"] = state
        which = opens(machine, old), opens(machine, "new")
        assert any(which)
        found.add(which)
    assert found >= {(True, False), (False, True)}


@pytest.mark.parametrize("options", KINDS)
def test_a_key_in_the_last_free_slot_replaced_by_force(options: dict[str, Any]) -> None:
    """Where no slot is free to hold the new key meanwhile, the others at least go on to open the disk."""
    machine = prepared(options)
    slots = 8 if options["version"] == "1" else 32
    for _ in range(1, slots):
        amend(machine, "key", state="active", new_secret="other")
    with pytest.raises(DiskmillError, match="in use"):
        amend(machine, "key", state="active", new_secret="new")
    before, journal = amend(machine, "key", state="active", new_secret="new", keyslot=slots - 1, force=True)
    assert opens(machine, "new")
    for _, state in crash_states(before, journal, random.Random(2), 8):
        machine.files["disk"] = state
        assert opens(machine, "key")
