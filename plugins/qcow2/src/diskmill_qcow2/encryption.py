"""Encrypted images: the header's side of it. The ciphers come from whatever crypto driver is installed.

Source: the specification's ``crypt_method`` and section "Full disk encryption header pointer". LUKS numbers sectors by
their offset in the file, the old AES encryption by their offset in the guest disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from diskmill.contract import calls
from diskmill.contract.crypto import CryptoRequest, Header, Volume, sub_options
from diskmill.errors import DriverError, ImageError, UnsupportedError, UsageError
from diskmill.sizes import MiB, round_up

from . import c_qcow2 as c
from . import header as qcow2_header
from .bounds import outside, unaligned

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.node import Node
    from diskmill.contract.options import Value

    from .image import Qcow2Image

_SPECIFIED = {c.CRYPT_AES: "aes", c.CRYPT_LUKS: "luks"}
"""The specification's ``crypt_method`` → ``encrypt.format``, which is also the crypto driver's name. Other numbers are
those that crypto drivers declare (``fits``)."""
PREFIX = "encrypt."
_MAX_HEADER = 64 * MiB


def place(header: qcow2_header.Header, file: Node, name: str) -> tuple[int, int]:
    """Where the encryption header is, offset and length in bytes; (0, 0) where the method has none.

    :raises ImageError: it cannot be there.
    """
    data = header.extension(c.EXT_CRYPTO_HEADER)
    if header.crypt_method <= c.CRYPT_AES or data is None:
        return 0, 0
    pointer = c.CRYPTO_HEADER.unpack(data)
    if unaligned(pointer.offset, header.cluster_size) or not 0 < pointer.length <= _MAX_HEADER:
        cause = f"its {pointer.length} bytes at offset {pointer.offset} are not an encryption header"
        raise ImageError(cause, file=name, place="full disk encryption header pointer")
    if outside(pointer.offset, pointer.length, header.cluster_size, file.size):
        cause = f"the encryption header at offset {pointer.offset} lies outside the file"
        raise ImageError(cause, file=name, place="full disk encryption header pointer")
    return pointer.offset, pointer.length


def _request(image: Qcow2Image, context: Context, options: Mapping[str, Value], shallow: bool = False) -> CryptoRequest:
    """What a crypto driver is asked with: the options of the prefix, and the header where the image has one."""
    offset, length = place(image.header, image.file, image.name)
    return CryptoRequest(
        image.name,
        context,
        sub_options(options, PREFIX),
        Header(image.file, offset, length) if length else None,
        numbers=_numbers(image.header.crypt_method),
        shallow=shallow,
        prefix=PREFIX,
    )


def _numbers(method: int) -> Literal["guest", "host"]:
    return "guest" if method == c.CRYPT_AES else "host"


def _name(context: Context, method: int, image: str) -> str | None:
    """The crypto driver of an image's ``crypt_method``; None: it is not encrypted.

    :raises UnsupportedError: nobody knows.
    """
    if method == c.CRYPT_NONE or method in _SPECIFIED:
        return _SPECIFIED.get(method)
    driver = calls.crypto_numbered(context.registry, "qcow2", method)
    if driver is None:
        raise UnsupportedError(f"encryption method {method} is that of no cipher that is installed", file=image)
    return driver.name


def _method(context: Context, name: str) -> int:
    """The ``crypt_method`` of the crypto driver *name*.

    :raises UsageError: it does not fit.
    :raises DriverError: it claims a number that is not its own.
    """
    method = calls.crypto_for(context.registry, "qcow2", name).fits["qcow2"]
    if _SPECIFIED.get(method, name) != name or not 0 < method < 1 << 32:
        raise DriverError(f"cipher '{name}' claims the number {method}, which is not to be had in qcow2 images")
    return method


def _check_sectors(volume: Volume, cluster_size: int, name: str) -> None:
    if cluster_size % volume.granularity:
        cause = f"sectors of {volume.granularity} bytes cannot be encrypted in clusters of {cluster_size}"
        raise UnsupportedError(cause, file=name)


def unlock(image: Qcow2Image, context: Context, options: Mapping[str, Value], *, shallow: bool) -> None:
    """Give *image* the volume that its encryption header and the user's passphrase make.

    :raises UsageError: the user named another encryption.
    """
    found = _name(context, image.header.crypt_method, image.name)
    wanted = options.get(PREFIX + "format")
    if wanted is not None and wanted != found:
        raise UsageError(f"its encryption is '{found or 'none'}', not '{wanted}'", file=image.name)
    if found is None:
        return
    request = _request(image, context, options, shallow)
    image.volume, image.encryption = calls.crypto_open(context.registry, found, request), found
    _check_sectors(image.volume, image.header.cluster_size, image.name)
    image.unlocking = context, options


def prepare(
    options: Mapping[str, Value], context: Context, name: str, cluster_size: int
) -> tuple[int, str, Volume | None]:
    """For a new image: ``crypt_method``, the crypto driver's name, and the volume, whose header must be put into the
    file."""
    wanted = options.get(PREFIX + "format") or ("aes" if options.get("encryption") else None)
    own = sub_options(options, PREFIX)
    if wanted is None:
        if own:
            raise UsageError(f"the option '{PREFIX}{next(iter(own))}' needs {PREFIX}format", file=name)
        return c.CRYPT_NONE, "", None
    wanted = str(wanted)
    method = _method(context, wanted)
    request = CryptoRequest(name, context, own, numbers=_numbers(method), prefix=PREFIX)
    volume = calls.crypto_create(context.registry, wanted, request)
    _check_sectors(volume, cluster_size, name)
    return method, wanted, volume


def install(image: Qcow2Image, offset: int) -> None:
    """Write the encryption header of a new image at *offset*."""
    volume = image.volume
    assert volume is not None
    if volume.header:
        padded = volume.header.ljust(round_up(len(volume.header), image.header.cluster_size), b"\0")
        image.file.write(offset, padded)
        volume.header = b""


def amend(image: Qcow2Image, options: Mapping[str, Value], force: bool) -> None:
    """Change key slots.

    :raises UnsupportedError: the image has none.
    """
    if image.unlocking is None:
        raise UnsupportedError("it is not encrypted: there are no key slots", file=image.name)
    context, given = image.unlocking
    request = _request(image, context, {**given, **options})
    calls.crypto_amend(context.registry, image.encryption, request, force=force)
