"""LUKS: disk images in the encryption format of Linux; and the ciphers that other formats ask for by name.

This module is light: what it promises is in :mod:`.image`, :mod:`.volume`, :mod:`.amend` and :mod:`.legacy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.crypto import CRYPTO_OPTIONS, CryptoRequest, Volume
from diskmill.contract.drivers import CryptoDriver, FormatDriver, hookimpl
from diskmill.contract.options import Option, Value

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import Measurement

    from .image import LuksImage

_MAGIC = b"LUKS\xba\xbe"

LUKS2_OPTIONS = (
    Option("sector-size", "int", "bytes in an encryption sector: 512, 1024, 2048, 4096", versions="2"),
    Option(
        "pbkdf",
        "str",
        "key derivation of a new key slot: argon2id (the default), argon2i, pbkdf2",
        choices=("argon2id", "argon2i", "pbkdf2"),
        when=("create", "amend"),
        versions="2",
    ),
    Option("pbkdf-memory", "int", "KiB of memory for Argon2; 65536", when=("create", "amend"), versions="2"),
    Option("label", "str", "a name for the volume", versions="2"),
)
"""Options that LUKS1 has no use for."""


class LuksDriver(FormatDriver):
    """The format ``luks``."""

    contract = 1
    name = "luks"
    title = "LUKS, Linux's disk encryption, versions 1 and 2"
    capabilities = frozenset({"create", "write", "resize", "shrink", "amend", "encryption", "preallocation", "pipe"})
    options = (
        *CRYPTO_OPTIONS,
        Option("version", "str", "version of LUKS", default="1", choices=("1", "2")),
        *LUKS2_OPTIONS,
        Option("detached-header", "bool", "make a header without a payload", default=False),
        Option("header", "str", "file for the header, beside the image, which then is payload alone"),
        Option(
            "preallocation",
            "str",
            "how space is claimed: off, falloc (allocated, not written), full (written)",
            default="off",
            choices=("off", "falloc", "full"),
        ),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """By the magic and the version."""
        return 100 if data.startswith(_MAGIC) and data[6:8] in (b"\0\1", b"\0\2") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> LuksImage:
        """A header, its own or a child's, and a payload."""
        from .image import open_image

        return open_image(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> LuksImage:
        """A new master key, and one key slot."""
        from .image import create_image

        return create_image(self, request)

    @hookimpl
    def amend(self, image: LuksImage, options: Mapping[str, Value], force: bool) -> bool:
        """Key slots."""
        image.amend(options, force)
        return True

    @hookimpl
    def preflight(self, image: LuksImage, action: str, options: Mapping[str, Any]) -> bool | None:
        """Whether its size can change."""
        if action != "resize":
            return None
        image.growing_file()
        return True

    @hookimpl
    def resize(self, image: LuksImage, size: int, preallocation: str) -> bool:
        """The payload's size is the file's."""
        image.resize(size, preallocation)
        return True

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """The payload and the header."""
        from diskmill.contract.results import Measurement

        from .volume import header_size

        total = request.size + header_size(request.options)
        return Measurement(total, total)


class LuksCrypto(CryptoDriver):
    """``luks`` for formats that keep a LUKS header inside: qcow2 with ``encrypt.format=luks``."""

    contract = 1
    name = "luks"
    title = "LUKS, versions 1 and 2"
    options = (*CRYPTO_OPTIONS, *LUKS2_OPTIONS)
    fits: Mapping[str, int] = {"qcow2": 2}

    def header_size(self, options: Mapping[str, Value]) -> int:
        """As much as all key slots take."""
        from .volume import header_size

        return header_size(options)

    @hookimpl
    def crypto_open(self, request: CryptoRequest) -> Volume:
        """Find the key slot that the passphrase opens."""
        from .volume import open_volume

        return open_volume(request)

    @hookimpl
    def crypto_create(self, request: CryptoRequest) -> Volume:
        """A new master key, and one key slot."""
        from .volume import create_volume

        return create_volume(request)

    @hookimpl
    def crypto_amend(self, request: CryptoRequest, force: bool) -> bool:
        """Key slots."""
        from .amend import amend

        amend(request, force)
        return True


class AesCrypto(CryptoDriver):
    """``aes``: the weak encryption of old qcow and qcow2 images."""

    contract = 1
    name = "aes"
    title = "AES-128-CBC keyed with the passphrase itself"
    fits: Mapping[str, int] = {"qcow": 1, "qcow2": 1}

    @hookimpl
    def crypto_open(self, request: CryptoRequest) -> Volume:
        """The passphrase is the key."""
        from .legacy import open_volume

        return open_volume(request)

    @hookimpl
    def crypto_create(self, request: CryptoRequest) -> Volume:
        """There is no header to make."""
        from .legacy import open_volume

        return open_volume(request, new=True)


driver = LuksDriver()
crypto = LuksCrypto()
aes = AesCrypto()
