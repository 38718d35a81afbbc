"""The suite for ciphers: ``from diskmill_testkit.ciphers import *``.

Each of the chosen ones is made and opened with the options of its traits (``keys``), its header in memory, and in
each installed format that it fits. That a wrong passphrase only gives noise is said with the trait ``unproven``.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from diskmill.contract import calls
from diskmill.contract.crypto import CryptoRequest, Header, Volume
from diskmill.contract.drivers import CryptoDriver
from diskmill.contract.extents import Extent, Kind
from diskmill.errors import DiskmillError, SecretError
from diskmill.opening.context import Context
from diskmill.sizes import SECTOR, KiB, MiB

from .machine import FORMATS, REGISTRY, Machine
from .selection import Chosen, over
from .suites.garbage import EDGES, bounded
from .traits import traits_of
from .twins import Content, MemoryDriver, MemoryStorage

__all__ = [
    "test_a_cipher_works_in_the_formats_that_it_fits",
    "test_a_closed_volume_has_no_key",
    "test_a_cut_or_damaged_header_is_told_in_one_line",
    "test_details_need_no_passphrase",
    "test_key_slots_change",
    "test_sectors_are_encrypted_one_by_one_and_unlike",
    "test_several_threads_encrypt_at_once",
    "test_what_is_made_opens_again_and_not_with_another_passphrase",
]
"""What a test module takes."""
DAMAGES = 150
_SECRETS = {"key": b"open sesame", "wrong": b"open barley", "new": b"another"}


def installed(chosen: Chosen) -> list[str]:
    """The chosen ciphers."""
    found: list[CryptoDriver] = REGISTRY.all(CryptoDriver.group)
    return [one.name for one in found if one.name in chosen]


def cases(chosen: Chosen) -> list[Any]:
    """Each chosen cipher with each of the ways to make it that its traits have."""
    return [
        pytest.param(name, options, id="-".join([name, *map(str, options.values())]))
        for name in installed(chosen)
        for options in traits_of(name).keys
    ]


def fitting(chosen: Chosen) -> list[Any]:
    """Each case with each installed format that it fits."""
    return [
        pytest.param(*case.values, format, id=f"{case.id}-{format}")
        for case in cases(chosen)
        for format in REGISTRY.crypto(str(case.values[0])).fits
        if format in FORMATS
    ]


def asked(options: Mapping[str, Any], header: Header | None = None, *, secret: str = "key", **more: Any) -> Any:
    """What a format asks with."""
    context = Context(registry=REGISTRY, secrets=_SECRETS)
    return CryptoRequest("disk", context, {"key-secret": secret, **options}, header=header, numbers="host", **more)


def made(name: str, options: Mapping[str, Any]) -> tuple[Volume, Header | None]:
    """A new volume, and its header, if it has one, as a format would keep it: in the middle of a file."""
    volume = calls.crypto_create(REGISTRY, name, asked(options))
    if not volume.header:
        return volume, None
    return volume, kept(volume.header)


def kept(data: bytes) -> Header:
    """*data* in the middle of a file."""
    file = MemoryStorage(MemoryDriver(), "disk", Content(bytes(SECTOR) + data + bytes(SECTOR)), writable=True)
    return Header(file, SECTOR, len(data))


def reopened(name: str, header: Header | None, *, secret: str = "key", **more: Any) -> Volume:
    """What is there, opened."""
    return calls.crypto_open(REGISTRY, name, asked({}, header, secret=secret, **more))


def encrypted(volume: Volume, offset: int, data: bytes) -> bytes:
    """*data* as it is stored at *offset*."""
    return bytes(volume.encrypt(offset, offset, memoryview(bytearray(data))))


def decrypted(volume: Volume, offset: int, data: bytes) -> bytes:
    """What is stored at *offset*, read."""
    extent = Extent(offset, len(data), Kind.ENCODED, None, offset, codec=volume)
    payload = memoryview(bytearray(data))
    return bytes(volume.decode(extent, payload, payload))


@over("name, options", cases)
def test_what_is_made_opens_again_and_not_with_another_passphrase(name: str, options: Mapping[str, Any]) -> None:
    volume, header = made(name, options)
    data = random.Random(1).randbytes(16 * KiB)
    stored = encrypted(volume, MiB, data)
    assert decrypted(reopened(name, header), MiB, stored) == data
    if traits_of(name).unproven:
        assert decrypted(reopened(name, header, secret="wrong"), MiB, stored) != data
    else:
        with pytest.raises(SecretError):
            reopened(name, header, secret="wrong")
    if header is not None:  # two images are never encrypted with one key
        assert encrypted(made(name, options)[0], MiB, data) != stored


@over("name, options", cases)
def test_sectors_are_encrypted_one_by_one_and_unlike(name: str, options: Mapping[str, Any]) -> None:
    volume, _ = made(name, options)
    assert volume.granularity % SECTOR == 0
    step = volume.granularity
    data = random.Random(2).randbytes(8 * step)
    view = memoryview(bytearray(data))
    for offset in (0, 4 * MiB, 1 << 40):
        stored = bytes(volume.encrypt(offset, offset, view))
        assert len(stored) == len(data)
        assert view == data, "what the guest wrote stays as it is"
        for at in range(0, len(data), step):
            one = data[at : at + step]
            assert stored[at : at + step] == encrypted(volume, offset + at, one)
            assert decrypted(volume, offset + at, stored[at : at + step]) == one
        assert decrypted(volume, offset, stored) == data
    same = encrypted(volume, 0, b"\xaa" * 16 * step)
    assert len({same[at : at + step] for at in range(0, len(same), step)}) == 16, "equal sectors look unlike"


@over("name, options", cases)
def test_several_threads_encrypt_at_once(name: str, options: Mapping[str, Any]) -> None:
    volume, _ = made(name, options)
    wrong: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(10):
            offset, data = chance.randrange(1 << 20) * 4 * KiB, chance.randbytes(chance.randrange(1, 5) * 4 * KiB)
            if decrypted(volume, offset, encrypted(volume, offset, data)) != data:
                wrong.append(offset)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@over("name, options", cases)
def test_details_need_no_passphrase(name: str, options: Mapping[str, Any]) -> None:
    _, header = made(name, options)
    volume = reopened(name, header, secret="nobody", shallow=True)
    text = repr(volume.details())
    assert _SECRETS["key"].decode() not in text
    with pytest.raises(SecretError):
        encrypted(volume, 0, bytes(4 * KiB))


@over("name, options", cases)
def test_a_closed_volume_has_no_key(name: str, options: Mapping[str, Any]) -> None:
    volume, _ = made(name, options)
    volume.close()
    volume.close()
    with pytest.raises(SecretError):
        encrypted(volume, 0, bytes(4 * KiB))


@over("name, options", cases)
def test_a_cut_or_damaged_header_is_told_in_one_line(name: str, options: Mapping[str, Any]) -> None:
    _, header = made(name, options)
    if header is None:
        return
    good, chance = header.read(0, header.length), random.Random(3)
    for length in (0, 1, 7, min(SECTOR - 1, len(good) // 2)):
        with pytest.raises(DiskmillError) as told, bounded():
            reopened(name, kept(good[:length]))
        assert "\n" not in str(told.value)
    for number in range(DAMAGES):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(min(len(data), 8 * KiB if number % 2 else 600))
            size = min(chance.choice((1, 2, 4, 8)), len(data) - at)
            data[at : at + size] = (chance.choice(EDGES) % (1 << 8 * size)).to_bytes(
                size, chance.choice(("big", "little"))
            )
        with suppress(DiskmillError), bounded():
            reopened(name, kept(bytes(data)), shallow=True).details()
        if number % 10 == 0:
            with suppress(DiskmillError), bounded():
                reopened(name, kept(bytes(data)))


@over("name, options", cases)
def test_key_slots_change(name: str, options: Mapping[str, Any]) -> None:
    if not hasattr(REGISTRY.crypto(name), "crypto_amend"):
        return
    volume, header = made(name, options)
    stored = encrypted(volume, 0, b"held" * KiB)
    quick = {word: value for word, value in options.items() if word in ("iter-time", "pbkdf", "pbkdf-memory")}
    calls.crypto_amend(REGISTRY, name, asked({"state": "active", "new-secret": "new", **quick}, header))
    for secret in ("key", "new"):
        assert decrypted(reopened(name, header, secret=secret), 0, stored) == b"held" * KiB
    calls.crypto_amend(REGISTRY, name, asked({"state": "inactive", "old-secret": "key"}, header, secret="new"))
    with pytest.raises(SecretError):
        reopened(name, header)
    assert decrypted(reopened(name, header, secret="new"), 0, stored) == b"held" * KiB


@over("name, options, format", fitting)
def test_a_cipher_works_in_the_formats_that_it_fits(name: str, options: Mapping[str, Any], format: str) -> None:
    machine, size = Machine(), MiB
    given = {f"encrypt.{word}": value for word, value in options.items() if format != "qcow"}
    machine.create("disk", format, size, {"encrypt.format": name, **given})
    model, chance = bytearray(size), random.Random(4)
    with machine.open("disk", format, writable=True) as image:
        assert image.encrypted
        for _ in range(30):
            offset, data = chance.randrange(size), b"plain text " * chance.randrange(1, 3000)
            data = data[: size - offset]
            image.write(offset, data)
            model[offset : offset + len(data)] = data
            offset = chance.randrange(size)
            assert image.read(offset, size - offset) == model[offset:]
    machine.check("disk", format)
    assert b"plain text" not in bytes(machine.files["disk"])
    with machine.open("disk", format) as image:
        assert image.read(0, size) == model
        assert (image.details() or {}).get("encrypt", {}).get("format", name) == name
    machine.context.secrets["key"] = b"open barley"
    with suppress(DiskmillError), machine.open("disk", format) as image:
        assert traits_of(name).unproven
        assert image.read(0, size) != model
