"""The structures of Apple's sparse images.

Sources: Joachim Metz, "Mac OS disk image types" (libmodi's documentation), whose names these are; what it leaves
unknown (index nodes, sizes of 64 bits) is as apfs-fuse reads it. All numbers are big-endian. The header and each index
node take 4096 bytes; behind each stand as many bands as its array has places, one behind the other.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, several, u32, u64

SIGNATURE = b"sprs"
VERSION = 3

_FIRST_BANDS = 1008
_MORE_BANDS = 1010


class FileHeader(Record):
    signature = raw(4)
    format_version = u32
    sectors_per_band = u32
    flags = u32
    number_of_sectors_low = u32
    next_index_node_offset = u64
    number_of_sectors = u64
    _unknown = raw(28)
    band_numbers = several(_FIRST_BANDS, u32)


FILE_HEADER = Structure("file header", ">", FileHeader)
"""``number_of_sectors`` may be 0, and the low 32 bits hold, then."""


class IndexNode(Record):
    signature = raw(4)
    index_node_number = u32
    flags = u32
    next_index_node_offset = u64
    _unknown = raw(36)
    band_numbers = several(_MORE_BANDS, u32)


INDEX_NODE = Structure("index node", ">", IndexNode)
"""A band number says which band of the disk stands in its place in the file, from 1 on; 0: none does."""

BUNDLE_TYPE = "com.apple.diskimage.sparsebundle"
"""The value of ``diskimage-bundle-type`` in a sparse bundle's ``Info.plist``."""
ENCRYPTED = (b"encrcdsa", b"cdsaencr")
"""What the ``token`` of an encrypted bundle begins with; of others it is empty."""
