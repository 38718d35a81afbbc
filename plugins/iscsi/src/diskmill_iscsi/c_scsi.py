"""Commands of SCSI that are used, and what answers to them mean: SBC-3 (blocks) and SPC-4 (what all have)."""

from __future__ import annotations

from struct import pack
from typing import NamedTuple

TYPE_DISK = 0x00
TYPE_ROM = 0x05
TYPE_OPTICAL = 0x07
TYPES = (TYPE_DISK, TYPE_ROM, TYPE_OPTICAL)
"""Peripheral device types that hold blocks."""

KEY_NOT_READY = 2
KEY_MEDIUM_ERROR = 3
KEY_ILLEGAL_REQUEST = 5
KEY_UNIT_ATTENTION = 6
KEY_DATA_PROTECT = 7

ASC_RESET = 0x29
"""Additional sense code of power on, or a reset."""
ASC_NO_MEDIUM = 0x3A
ASCQ_SPACE_ALLOCATION_FAILED = 0x2707

PAGE_SUPPORTED = 0x00
PAGE_BLOCK_LIMITS = 0xB0
PAGE_PROVISIONING = 0xB2

STATUS_MAPPED = 0
"""Provisioning status of a block: it may be data. Others are deallocated, and anchored."""


def inquiry(page: int | None, length: int) -> bytes:
    """INQUIRY, or one of its pages of vital product data."""
    return pack(">BBBHB", 0x12, page is not None, page or 0, length, 0)


def mode_sense(length: int) -> bytes:
    """MODE SENSE(6) of all pages."""
    return pack(">BBBBBB", 0x1A, 0, 0x3F, 0, length, 0)


def read_capacity_10() -> bytes:
    return pack(">BBIHBB", 0x25, 0, 0, 0, 0, 0)


def read_capacity_16(length: int) -> bytes:
    return pack(">BBQIBB", 0x9E, 0x10, 0, length, 0, 0)


def get_lba_status(lba: int, length: int) -> bytes:
    return pack(">BBQIBB", 0x9E, 0x12, lba, length, 0, 0)


class Blocks(NamedTuple):
    """Commands that name blocks: of 10 bytes, or, where *wide*, of 16."""

    wide: bool

    def _of(self, short: int, long: int, flags: int, lba: int, count: int) -> bytes:
        if self.wide:
            return pack(">BBQIBB", long, flags, lba, count, 0, 0)
        return pack(">BBIBHB", short, flags, lba, 0, count, 0)

    @property
    def most(self) -> int:
        """Blocks that one command names at most."""
        return 0xFFFFFFFF if self.wide else 0xFFFF

    def read(self, lba: int, count: int) -> bytes:
        return self._of(0x28, 0x88, 0, lba, count)

    def write(self, lba: int, count: int) -> bytes:
        return self._of(0x2A, 0x8A, 0, lba, count)

    def synchronize_cache(self) -> bytes:
        """Of all blocks."""
        return self._of(0x35, 0x91, 0, 0, 0)


def write_same_16(lba: int, count: int, *, unmap: bool) -> bytes:
    return pack(">BBQIBB", 0x93, 0x08 if unmap else 0, lba, count, 0, 0)


def unmap(ranges: list[tuple[int, int]]) -> tuple[bytes, bytes]:
    """UNMAP of *ranges* (block, count): the command, and what goes with it."""
    body = b"".join(pack(">QII", lba, count, 0) for lba, count in ranges)
    data = pack(">HHI", len(body) + 6, len(body), 0) + body
    return pack(">BBIBHB", 0x42, 0, 0, 0, len(data), 0), data


class Answer(NamedTuple):
    """Why a target did not do what it was asked for.

    :ivar ascq: the additional sense code, and its qualifier in the lower byte.
    """

    key: int
    ascq: int
