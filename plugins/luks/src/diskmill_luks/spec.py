"""How sectors are encrypted, as LUKS headers write it down: cipher, mode, IV generator, hashes."""

from __future__ import annotations

from diskmill.errors import UnsupportedError
from diskmill.records import record

from .blocks import BLOCK_SIZES, KEY_SIZES, require
from .hashes import digest_size

MODES = ("xts", "cbc", "ctr", "ecb")
IVS = ("plain", "plain64", "essiv")


@record(frozen=True)
class Spec:
    """How sectors are encrypted: all but the key.

    :param cipher: a name of :data:`~diskmill_luks.blocks.KEY_SIZES`.
    :param mode: one of :data:`MODES`.
    :param iv: one of :data:`IVS`.
    :param iv_hash: the hash of *essiv*.
    """

    cipher: str
    mode: str
    iv: str = "plain64"
    iv_hash: str | None = None

    @classmethod
    def parse(cls, cipher: str, chain: str) -> Spec:
        """The specification that LUKS headers hold: *chain* is ``xts-plain64``, ``cbc-essiv:sha256``, …

        :raises UnsupportedError: a mode or generator that is not known; it is named.
        """
        mode, _, generator = chain.partition("-")
        iv, _, iv_hash = generator.partition(":")
        if mode == "ecb" and not iv:
            iv = "plain64"  # ECB has no use for one
        return cls(cipher, mode, iv, (iv_hash or None) if iv == "essiv" else None)

    def __str__(self) -> str:
        return f"{self.cipher}-{self.chain}"

    @property
    def chain(self) -> str:
        """Mode and generator as LUKS headers hold them."""
        return f"{self.mode}-{self.iv}" + (f":{self.iv_hash}" if self.iv_hash else "")

    def check(self, key_size: int) -> None:
        """Whether all of it can be done with a key of *key_size* bytes.

        :raises UnsupportedError: it cannot; what is lacking is named.
        """
        if self.mode not in MODES:
            raise UnsupportedError(f"cipher mode '{self.mode}' is not supported: known are {', '.join(MODES)}")
        if self.iv not in IVS:
            raise UnsupportedError(f"IV generator '{self.iv}' is not supported: known are {', '.join(IVS)}")
        require(self.cipher, key_size // 2 if self.mode == "xts" else key_size)
        if self.mode == "xts" and (key_size % 2 or BLOCK_SIZES[self.cipher] != 16):
            raise UnsupportedError(f"cipher '{self.cipher}' cannot be used in mode xts")
        if self.iv == "essiv":
            if self.iv_hash is None:
                raise UnsupportedError("IV generator 'essiv' needs a hash")
            if len(KEY_SIZES[self.cipher]) == 1:
                raise UnsupportedError(f"cipher '{self.cipher}' is not supported with IV generator 'essiv'")
            require(self.cipher, digest_size(self.iv_hash))
