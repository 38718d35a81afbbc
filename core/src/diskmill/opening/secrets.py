"""Secrets as values: what is known of one before it is read, so that it can be sent to another process."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import SecretError, StorageError, UsageError
from ..records import field, record

_MAX = 1 << 20
"""Bytes of a secret file that are read at most; keys and passphrases are far smaller."""


@record(frozen=True)
class Secret:
    """How a secret is come by, as QEMU's manual has it ("Secret objects").

    :param id: what options call it (``key-secret=ID``).
    :param file: the path of a file that holds it. It is read where the job runs, once.
    :param data: the secret itself, which then goes wherever this object goes; either it or *file* is given.
    :param format: how it is written: ``raw`` or ``base64``.
    :param keyid: the id of a secret of 32 bytes that it is encrypted under; *iv*: its initialisation vector, base64.
    """

    id: str
    file: str | None = None
    data: str | None = field(default=None, repr=False)
    format: str = "raw"
    keyid: str | None = None
    iv: str | None = None

    def __post_init__(self) -> None:
        if self.format not in ("raw", "base64"):
            raise UsageError(f"secret '{self.id}': the format is 'raw' or 'base64', not '{self.format}'")
        if (self.data is None) == (self.file is None):
            raise UsageError(f"secret '{self.id}': give either 'data' or 'file'")
        if self.iv is not None and self.keyid is None:
            raise UsageError(f"secret '{self.id}': 'iv' goes with 'keyid'")

    def read(self, known: Mapping[str, bytes]) -> bytes:
        """What it is. A pipe gives it only once.

        :param known: the secrets that were read before, of which one may be its key.
        :raises StorageError: its file cannot be read.
        :raises SecretError: it cannot be decoded or decrypted.
        """
        content = _from_file(self.file) if self.file is not None else _encoded(self.data or "", self.id)
        if self.format == "base64":
            content = _base64(content, self.id)
        return content if self.keyid is None else self._decrypted(content, known.get(self.keyid))

    def _decrypted(self, content: bytes, master: bytes | None) -> bytes:
        """AES-256-CBC with PKCS#7 padding, under *master*."""
        if self.iv is None:
            raise UsageError(f"secret '{self.id}': 'iv' is needed to decrypt it")
        if master is None:
            raise SecretError(f"secret '{self.id}': no secret with id '{self.keyid}' is defined before it")
        if len(master) != 32:
            raise SecretError(f"secret '{self.keyid}': a key must be 32 bytes, not {len(master)}")
        iv = _base64(_encoded(self.iv, self.id), self.id)
        if len(iv) != 16:
            raise SecretError(f"secret '{self.id}': the iv must be 16 bytes, not {len(iv)}")
        if not content or len(content) % 16:
            raise SecretError(f"secret '{self.id}': encrypted content must be whole blocks of 16 bytes")
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher
            from cryptography.hazmat.primitives.ciphers.algorithms import AES
            from cryptography.hazmat.primitives.ciphers.modes import CBC
        except ImportError:
            hint = "install diskmill-cli[secrets]"
            raise SecretError(f"encrypted secrets need the package cryptography: {hint}") from None
        decryptor = Cipher(AES(master), CBC(iv)).decryptor()
        plain = decryptor.update(content) + decryptor.finalize()
        padding = plain[-1]
        if not 1 <= padding <= 16 or not plain.endswith(bytes([padding]) * padding):
            raise SecretError(f"secret '{self.id}': it cannot be decrypted with the key '{self.keyid}'")
        return plain[:-padding]


def _encoded(text: str, key: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"secret '{key}': its text has characters that there are not") from None


def _from_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX + 1)
    except OSError as error:
        raise StorageError.from_os(error, path) from None
    except ValueError:  # a NUL character, or one that no file name can hold
        raise UsageError("it is not a possible file name", file=path) from None
    if len(content) > _MAX:
        raise SecretError(f"a secret is at most {_MAX} bytes", file=path)
    return content


def _base64(content: bytes, key: str) -> bytes:
    import binascii

    try:
        return binascii.a2b_base64(content.replace(b"\n", b""), strict_mode=True)
    except (binascii.Error, ValueError):
        raise SecretError(f"secret '{key}': its content is not valid base64") from None
