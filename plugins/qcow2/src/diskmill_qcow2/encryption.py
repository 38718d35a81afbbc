"""Encrypted images: the header's side of it. The ciphers come from whatever crypto driver is installed.

Source: the specification's ``crypt_method`` and section "Full disk encryption header pointer". LUKS numbers sectors by
their offset in the file, the old AES encryption by their offset in the guest disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from diskmill.contract import calls
from diskmill.contract.crypto import CryptoRequest, Header, Volume, sub_options
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.sizes import MiB, round_up

from . import c_qcow2 as c
from . import header as qcow2_header
from .bounds import outside, unaligned

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.node import Node
    from diskmill.contract.options import Value

    from .image import Qcow2Image

FORMATS = {c.CRYPT_AES: "aes", c.CRYPT_LUKS: "luks"}
"""``crypt_method`` → ``encrypt.format``, which is also the crypto driver's name."""
PREFIX = "encrypt."
_MAX_HEADER = 64 * MiB


def place(header: qcow2_header.Header, file: Node, name: str) -> tuple[int, int]:
    """Where the encryption header is, offset and length in bytes; (0, 0) where the method has none.

    :raises ImageError: it cannot be there.
    """
    data = header.extension(c.EXT_CRYPTO_HEADER)
    if header.crypt_method != c.CRYPT_LUKS or data is None:
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
    return "host" if method == c.CRYPT_LUKS else "guest"


def unlock(image: Qcow2Image, context: Context, options: Mapping[str, Value], *, shallow: bool) -> None:
    """Give *image* the volume that its encryption header and the user's passphrase make.

    :raises UsageError: the user named another encryption.
    """
    found = FORMATS.get(image.header.crypt_method)
    wanted = options.get(PREFIX + "format")
    if wanted is not None and wanted != found:
        raise UsageError(f"its encryption is '{found or 'none'}', not '{wanted}'", file=image.name)
    if found is None:
        return
    request = _request(image, context, options, shallow)
    image.volume = calls.crypto_open(context.registry, found, request)
    image.unlocking = context, options


def prepare(options: Mapping[str, Value], context: Context, name: str) -> tuple[int, Volume | None]:
    """For a new image: ``crypt_method``, and the volume, whose header must be put into the file."""
    wanted = options.get(PREFIX + "format") or ("aes" if options.get("encryption") else None)
    own = sub_options(options, PREFIX)
    if wanted is None:
        if own:
            raise UsageError(f"the option '{PREFIX}{next(iter(own))}' needs {PREFIX}format", file=name)
        return c.CRYPT_NONE, None
    method = next(method for method, word in FORMATS.items() if word == wanted)
    request = CryptoRequest(name, context, own, numbers=_numbers(method), prefix=PREFIX)
    return method, calls.crypto_create(context.registry, str(wanted), request)


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
    if image.header.crypt_method != c.CRYPT_LUKS or image.unlocking is None:
        raise UnsupportedError("it is not encrypted with LUKS: there are no key slots", file=image.name)
    context, given = image.unlocking
    request = _request(image, context, {**given, **options})
    calls.crypto_amend(context.registry, "luks", request, force=force)
