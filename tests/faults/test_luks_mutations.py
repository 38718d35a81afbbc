"""Damaged LUKS headers by the thousand, and those that ask for too much: one clear error, in bounded time."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from diskmill.errors import DiskmillError, ImageError
from diskmill.opening.graph import open_image
from formats import Machine
from mutations import bounded, mutants
from twins import Content

QUICK = {"cipher-alg": "aes-128", "iter-time": 1}
KINDS: list[dict[str, Any]] = [
    {"version": "1", **QUICK},
    {"version": "2", "pbkdf": "pbkdf2", **QUICK},
    {"version": "2", "pbkdf": "argon2id", "pbkdf-memory": 64, **QUICK},
]
DISK = 64 << 10


HEAD = 2 * 16384
"""Bytes that are damaged: the header, and both copies of LUKS2's."""


def image(options: dict[str, Any]) -> Content:
    """A small image."""
    machine = Machine()
    machine.create("disk", "luks", DISK, options)
    return machine.files["disk"]


def changed(content: Content, head: bytes, length: int = HEAD) -> Content:
    """An image that begins with *head* in place of its first *length* bytes; cut short, if that is."""
    twin = content.copy()
    twin.write(0, head)
    if len(head) < length:
        twin.truncate(len(head))
    return twin


def use(content: Content, what: str, *, limit: int = 1) -> str:
    """Open and read a damaged image, as info does and with the passphrase; the error, or nothing."""
    machine = Machine()
    machine.files["disk"] = content
    spec: dict[str, Any] = {"driver": "luks", "file": {"driver": "memory", "filename": "memory:disk"}}
    heard = ""
    with bounded(what):
        for shallow in (True, False):
            more = {} if shallow else {"key-secret": "key", "kdf-limit": limit}
            try:
                with open_image({**spec, **more}, context=machine.context, shallow=shallow) as opened:
                    opened.details()
                    if not shallow:
                        opened.read(0, min(opened.size, DISK))
            except DiskmillError as error:
                heard = str(error)
                assert "\n" not in heard and len(heard) < 500
    return heard


def resealed(content: Content, change: Callable[[dict[str, Any]], None]) -> Content:
    """A LUKS2 image whose JSON metadata *change* altered, with checksums that are right."""
    made = content.read(0, HEAD)
    size = int.from_bytes(made[8:16], "big")
    for at in (0, size):
        meta = json.loads(bytes(made[at + 4096 : at + size]).partition(b"\0")[0])
        change(meta)
        text = json.dumps(meta).encode()
        assert len(text) < size - 4096
        made[at + 4096 : at + size] = text.ljust(size - 4096, b"\0")
        made[at + 448 : at + 512] = bytes(64)
        made[at + 448 : at + 480] = hashlib.sha256(made[at : at + size]).digest()
    return changed(content, made)


def test_mutated_luks1() -> None:
    disk = image(KINDS[0])
    head = bytes(disk.read(0, HEAD))
    for what, mutant in mutants(head, [(0, 208), (208, 384), (4096, 256)], seed=1, count=1000):
        use(changed(disk, mutant), what)


@pytest.mark.parametrize("options", KINDS[1:])
def test_mutated_luks2(options: dict[str, Any]) -> None:
    """Both copies at once, so that there is nothing to fall back on."""
    disk = image(options)
    copy = bytes(disk.read(0, HEAD // 2))
    for what, mutant in mutants(copy, [(0, 512), (4096, 1200)], seed=2, count=250):
        use(changed(disk, mutant, len(copy)), what)
        use(changed(disk, mutant + mutant), what)


@pytest.mark.parametrize("options", KINDS[1:])
def test_mutated_metadata_with_right_checksums(options: dict[str, Any]) -> None:
    disk = image(options)
    chance = random.Random(3)
    odd: list[Any] = [
        None, True, False, -1, 0, 1, 3, 255, 2**31, 2**32, 2**63, 2**64, 10**30, 1.5, "", "0", "-1",
        "18446744073709551616", "x", "dynamic", "aes-xts-plain64", "aes-cbc-essiv", "\u0660", [], ["0"], ["99"], [[]],
        {}, {"0": {}}, {"0": []}, "A" * 600, "AAAA",
    ]  # fmt: skip

    def change(meta: dict[str, Any]) -> None:
        for _ in range(chance.choice((1, 1, 2, 3))):
            places: list[tuple[Any, Any]] = []

            def collect(value: Any, places: list[tuple[Any, Any]] = places) -> None:
                items = (
                    value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
                )
                for key, inner in list(items):
                    places.append((value, key))
                    collect(inner)

            collect(meta)
            if not places:
                return
            owner, key = chance.choice(places)
            if isinstance(owner, dict) and chance.random() < 0.2:
                del owner[key]
            else:
                owner[key] = copy.deepcopy(chance.choice(odd))

    for number in range(500):
        use(resealed(disk, change), f"metadata {number}")


def patched(content: Content, offset: int, value: int) -> Content:
    """The image with a 32-bit big-endian number at *offset*."""
    head = content.read(0, HEAD)
    head[offset : offset + 4] = value.to_bytes(4, "big")
    return changed(content, head)


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (208 + 4, 2**32 - 1, "kdf-limit"),  # iterations of key slot 0
        (164, 2**32 - 1, "kdf-limit"),  # of the master key's digest
        (164, 0, "iterations"),
        (208 + 44, 0, "stripes"),
        (208 + 44, 2**32 - 1, "stripes"),
        (208 + 44, 4200, "overlaps"),
        (208 + 40, 2**32 - 1, "beyond the end"),
        (208 + 40, 0, "overlaps"),
        (208 + 40, 1000, "overlaps"),
        (208 + 0, 7, "state"),
        (108, 0, "key of 0 bytes"),
        (108, 2**31, "key of 2147483648 bytes"),
        (104, 100, "overlaps the payload"),
        (104, 2**32 - 1, "beyond the end"),
    ],
)
def test_luks1_that_asks_for_too_much(offset: int, value: int, says: str) -> None:
    start = time.monotonic()
    assert says in use(patched(image(KINDS[0]), offset, value), says)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("kdf", "says"),
    [
        ({"type": "argon2id", "time": 2**31, "memory": 65536, "cpus": 1}, "kdf-limit"),
        ({"type": "argon2id", "time": 1, "memory": 2**32 - 1, "cpus": 1}, "kdf-memory"),
        ({"type": "argon2id", "time": 1, "memory": 2**20 + 1, "cpus": 1}, "kdf-memory"),
        ({"type": "argon2id", "time": 1, "memory": 1, "cpus": 1}, "memory"),
        ({"type": "argon2id", "time": 1, "memory": 65536, "cpus": 10**6}, "cpus"),
        ({"type": "pbkdf2", "hash": "sha256", "iterations": 2**32 - 1}, "kdf-limit"),
        ({"type": "scrypt"}, "scrypt"),
    ],
)
def test_luks2_that_asks_for_too_much(kdf: dict[str, Any], says: str) -> None:
    def change(meta: dict[str, Any]) -> None:
        meta["keyslots"]["0"]["kdf"] = {"salt": meta["keyslots"]["0"]["kdf"]["salt"], **kdf}

    assert says in use(resealed(image(KINDS[1]), change), says)


def test_the_limit_is_the_users_to_raise() -> None:
    machine = Machine()
    machine.create("disk", "luks", DISK, QUICK)
    spec = {"driver": "luks", "key-secret": "key", "file": {"driver": "memory", "filename": "memory:disk"}}
    with pytest.raises(ImageError, match="kdf-limit"):
        open_image({**spec, "kdf-limit": 0}, context=machine.context)
    with open_image({**spec, "kdf-limit": 30}, context=machine.context) as opened:
        assert opened.size == DISK


def test_the_limit_of_memory_is_the_users_to_set() -> None:
    machine = Machine()
    machine.create("disk", "luks", DISK, {"version": "2", "pbkdf-memory": 2048, **QUICK})
    spec = {"driver": "luks", "key-secret": "key", "file": {"driver": "memory", "filename": "memory:disk"}}
    with pytest.raises(ImageError, match=r"takes 2 MiB of memory.*kdf-memory"):
        open_image({**spec, "kdf-memory": "1M"}, context=machine.context)
    with open_image({**spec, "kdf-memory": "2M"}, context=machine.context) as opened:
        assert opened.size == DISK
