"""The structures of EWF files, in the names of their specification.

Source: Joachim Metz, "Expert Witness Compression Format specification" (libewf's documentation), after ASR Data's
"Expert Witness Compression Format". All numbers are little-endian; checksums are Adler-32. A segment file is a file
header, then sections: each a descriptor and what it holds, which often ends with the checksum of the rest.
"""

from __future__ import annotations

from typing import Any

from diskmill.kit.structs import Record, Structure, raw, u8, u16, u32, u64

SIGNATURE = b"EVF\x09\x0d\x0a\xff\0"


class FileHeader(Record):
    signature = raw(8)
    fields_start = u8
    segment_number = u16
    fields_end = u16


FILE_HEADER = Structure("file header", "<", FileHeader)


class SectionDescriptor(Record):
    type = raw(16)
    next_offset = size = u64
    _padding = raw(40)
    checksum = u32


SECTION_DESCRIPTOR = Structure("section descriptor", "<", SectionDescriptor)
"""Some writers leave ``size`` 0. ``next_offset`` of the last section means nothing."""


class Volume(Record):
    media_type = u8
    _unknown1 = raw(3)
    number_of_chunks = sectors_per_chunk = bytes_per_sector = u32
    number_of_sectors = u64
    _geometry_and_acquisition = raw(40)
    set_identifier = raw(16)
    _unknown = raw(963)
    signature = raw(5)
    checksum = u32


VOLUME = Structure("volume section", "<", Volume)


class VolumeSmart(Record):
    _reserved = raw(4)
    number_of_chunks = sectors_per_chunk = bytes_per_sector = number_of_sectors = u32
    _unknown = raw(65)
    signature = raw(5)
    checksum = u32


VOLUME_SMART = Structure("volume section", "<", VolumeSmart)
"""As ASR Data has it. All others are like EnCase's."""


class TableHeader(Record):
    number_of_entries = u32
    _padding1 = raw(4)
    base_offset = u64
    _padding2 = raw(4)
    checksum = u32


TABLE_HEADER = Structure("table header", "<", TableHeader)
"""Before the entries: 4 bytes for each chunk, the top bit of which tells that it is compressed, the others where it
is, from ``base_offset`` on. Behind them their checksum, if the chunks are in a section ``sectors`` and not here."""

COMPRESSED = 1 << 31
ENTRY = CHECKSUM = 4


class Hash(Record):
    md5 = raw(16)
    _unknown = raw(16)
    checksum = u32


class Digest(Record):
    md5 = raw(16)
    sha1 = raw(20)
    _padding = raw(40)
    checksum = u32


HASHES: dict[str, Structure[Any]] = {
    "hash": Structure("hash section", "<", Hash),
    "digest": Structure("digest section", "<", Digest),
}

LAST = ("next", "done")
"""Types of sections that end a segment: another one follows, or none."""
