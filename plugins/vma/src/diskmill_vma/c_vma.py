"""The structures of VMA archives, in the names of their specification.

Source: Proxmox, ``vma_spec.txt`` and the structures of ``vma.h`` in pve-qemu. All numbers of the structures are
big-endian, the sizes of blobs little-endian. An archive is a header with the blobs that it points to, then extents:
each a header and the blocks of up to 59 clusters, of any disk, in any order.
"""

from __future__ import annotations

from diskmill.kit.structs import Structure

VMA_MAGIC = b"VMA\0"
VMA_EXTENT_MAGIC = b"VMAE"
VMA_BLOCK_SIZE = 4096
VMA_CLUSTER_SIZE = 16 * VMA_BLOCK_SIZE
VMA_BLOCKS_PER_EXTENT = 59
"""Clusters in an extent, in truth."""
VMA_MAX_CONFIGS = 256
VMA_MAX_DEVICES = 256

VMA_HEADER = Structure(
    "VmaHeader",
    ">",
    [
        ("magic", "4s"),
        ("version", "I"),
        ("uuid", "16s"),
        ("ctime", "q"),
        ("md5sum", "16s"),
        ("blob_buffer_offset", "I"),
        ("blob_buffer_size", "I"),
        ("header_size", "I"),
        ("_reserved", "1984s"),
        ("config_names", f"{VMA_MAX_CONFIGS}I"),
        ("config_data", f"{VMA_MAX_CONFIGS}I"),
        ("_reserved1", "4s"),
    ],
)
"""Behind it stand :data:`VMA_MAX_DEVICES` times :data:`DEVICE_INFO`; ``header_size`` is up to the end of the blobs."""

DEVICE_INFO = Structure(
    "VmaDeviceInfoHeader",
    ">",
    [("devname_ptr", "I"), ("_reserved0", "I"), ("size", "Q"), ("_reserved1", "Q"), ("_reserved2", "Q")],
)

EXTENT_HEADER = Structure(
    "VmaExtentHeader",
    ">",
    [
        ("magic", "4s"),
        ("_reserved1", "2s"),
        ("block_count", "H"),
        ("uuid", "16s"),
        ("md5sum", "16s"),
        ("blockinfo", f"{VMA_BLOCKS_PER_EXTENT}Q"),
    ],
)
"""``block_count`` counts the blocks of all its clusters. A ``blockinfo`` is a mask of 16 bits, which tell the blocks
that are stored from those that are zeros; 8 reserved bits; 8 bits of the device; 32 bits of the cluster."""

VMSTATE = "vmstate"
"""The name of what is no disk, but the memory of the machine."""
