"""The structures of VMA archives, in the names of their specification.

Source: Proxmox, ``vma_spec.txt`` and the structures of ``vma.h`` in pve-qemu. All numbers of the structures are
big-endian, the sizes of blobs little-endian. An archive is a header with the blobs that it points to, then extents:
each a header and the blocks of up to 59 clusters, of any disk, in any order.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, i64, raw, several, u16, u32, u64

VMA_MAGIC = b"VMA\0"
VMA_EXTENT_MAGIC = b"VMAE"
VMA_BLOCK_SIZE = 4096
VMA_CLUSTER_SIZE = 16 * VMA_BLOCK_SIZE
VMA_BLOCKS_PER_EXTENT = 59
"""Clusters in an extent, in truth."""
VMA_MAX_CONFIGS = 256
VMA_MAX_DEVICES = 256


class VmaHeader(Record):
    magic = raw(4)
    version = u32
    uuid = raw(16)
    ctime = i64
    md5sum = raw(16)
    blob_buffer_offset = u32
    blob_buffer_size = u32
    header_size = u32
    _reserved = raw(1984)
    config_names = several(VMA_MAX_CONFIGS, u32)
    config_data = several(VMA_MAX_CONFIGS, u32)
    _reserved1 = raw(4)


VMA_HEADER = Structure("VmaHeader", ">", VmaHeader)
"""Behind it stand :data:`VMA_MAX_DEVICES` times :data:`DEVICE_INFO`; ``header_size`` is up to the end of the blobs."""


class VmaDeviceInfoHeader(Record):
    devname_ptr = u32
    _reserved0 = u32
    size = u64
    _reserved1 = u64
    _reserved2 = u64


DEVICE_INFO = Structure("VmaDeviceInfoHeader", ">", VmaDeviceInfoHeader)


class VmaExtentHeader(Record):
    magic = raw(4)
    _reserved1 = raw(2)
    block_count = u16
    uuid = raw(16)
    md5sum = raw(16)
    blockinfo = several(VMA_BLOCKS_PER_EXTENT, u64)


EXTENT_HEADER = Structure("VmaExtentHeader", ">", VmaExtentHeader)
"""``block_count`` counts the blocks of all its clusters. A ``blockinfo`` is a mask of 16 bits, which tell the blocks
that are stored from those that are zeros; 8 reserved bits; 8 bits of the device; 32 bits of the cluster."""

VMSTATE = "vmstate"
"""The name of what is no disk, but the memory of the machine."""
