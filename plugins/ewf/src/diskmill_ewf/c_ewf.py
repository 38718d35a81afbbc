"""The structures of EWF files, in the names of their specification.

Source: Joachim Metz, "Expert Witness Compression Format specification" (libewf's documentation), after ASR Data's
"Expert Witness Compression Format". All numbers are little-endian; checksums are Adler-32. A segment file is a file
header, then sections: each a descriptor and what it holds, which often ends with the checksum of the rest.
"""

from __future__ import annotations

from diskmill.kit.structs import Structure

SIGNATURE = b"EVF\x09\x0d\x0a\xff\0"

FILE_HEADER = Structure(
    "file header", "<", [("signature", "8s"), ("fields_start", "B"), ("segment_number", "H"), ("fields_end", "H")]
)

SECTION_DESCRIPTOR = Structure(
    "section descriptor",
    "<",
    [("type", "16s"), ("next_offset", "Q"), ("size", "Q"), ("_padding", "40s"), ("checksum", "I")],
)
"""Some writers leave ``size`` 0. ``next_offset`` of the last section means nothing."""

VOLUME = Structure(
    "volume section",
    "<",
    [
        ("media_type", "B"),
        ("_unknown1", "3s"),
        ("number_of_chunks", "I"),
        ("sectors_per_chunk", "I"),
        ("bytes_per_sector", "I"),
        ("number_of_sectors", "Q"),
        ("_geometry", "12s"),
        ("_acquisition", "28s"),
        ("set_identifier", "16s"),
        ("_unknown", "963s"),
        ("signature", "5s"),
        ("checksum", "I"),
    ],
)

VOLUME_SMART = Structure(
    "volume section",
    "<",
    [
        ("_reserved", "4s"),
        ("number_of_chunks", "I"),
        ("sectors_per_chunk", "I"),
        ("bytes_per_sector", "I"),
        ("number_of_sectors", "I"),
        ("_unknown", "65s"),
        ("signature", "5s"),
        ("checksum", "I"),
    ],
)
"""As ASR Data has it. All others are like EnCase's."""

TABLE_HEADER = Structure(
    "table header",
    "<",
    [("number_of_entries", "I"), ("_padding1", "4s"), ("base_offset", "Q"), ("_padding2", "4s"), ("checksum", "I")],
)
"""Before the entries: 4 bytes for each chunk, the top bit of which tells that it is compressed, the others where it
is, from ``base_offset`` on. Behind them their checksum, if the chunks are in a section ``sectors`` and not here."""

COMPRESSED = 1 << 31
ENTRY = 4
CHECKSUM = 4

HASH = Structure("hash section", "<", [("md5", "16s"), ("_unknown", "16s"), ("checksum", "I")])
DIGEST = Structure("digest section", "<", [("md5", "16s"), ("sha1", "20s"), ("_padding", "40s"), ("checksum", "I")])
HASHES = {"hash": HASH, "digest": DIGEST}

LAST = ("next", "done")
"""Types of sections that end a segment: another one follows, or none."""
