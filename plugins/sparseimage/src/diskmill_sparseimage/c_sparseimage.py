"""The structures of Apple's sparse images.

Sources: Joachim Metz, "Mac OS disk image types" (libmodi's documentation), whose names these are; what it leaves
unknown (index nodes, sizes of 64 bits) is as apfs-fuse reads it. All numbers are big-endian. The header and each index
node take 4096 bytes; behind each stand as many bands as its array has places, one behind the other.
"""

from __future__ import annotations

from diskmill.kit.structs import Structure

SIGNATURE = b"sprs"
VERSION = 3

_FIRST_BANDS = 1008
_MORE_BANDS = 1010

FILE_HEADER = Structure(
    "file header",
    ">",
    [
        ("signature", "4s"),
        ("format_version", "I"),
        ("sectors_per_band", "I"),
        ("flags", "I"),
        ("number_of_sectors_low", "I"),
        ("next_index_node_offset", "Q"),
        ("number_of_sectors", "Q"),
        ("_unknown", "28s"),
        ("band_numbers", f"{_FIRST_BANDS}I"),
    ],
)
"""``number_of_sectors`` may be 0, and the low 32 bits hold, then."""

INDEX_NODE = Structure(
    "index node",
    ">",
    [
        ("signature", "4s"),
        ("index_node_number", "I"),
        ("flags", "I"),
        ("next_index_node_offset", "Q"),
        ("_unknown", "36s"),
        ("band_numbers", f"{_MORE_BANDS}I"),
    ],
)
"""A band number says which band of the disk stands in its place in the file, from 1 on; 0: none does."""

BUNDLE_TYPE = "com.apple.diskimage.sparsebundle"
"""The value of ``diskimage-bundle-type`` in a sparse bundle's ``Info.plist``."""
ENCRYPTED = (b"encrcdsa", b"cdsaencr")
"""What the ``token`` of an encrypted bundle begins with; of others it is empty."""
