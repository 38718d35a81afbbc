"""Opening a VMA archive: its header, then all extents, which have no index. Source: see :mod:`.c_vma`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from diskmill.contract.node import Node
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.sizes import MAX_SIZE, MiB

from . import c_vma as spec
from .c_vma import DEVICE_INFO, EXTENT_HEADER, VMA_BLOCK_SIZE, VMA_CLUSTER_SIZE, VMA_HEADER
from .image import Clusters, VmaImage

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import VmaDriver

_FIXED = VMA_HEADER.size + spec.VMA_MAX_DEVICES * DEVICE_INFO.size
_MAX_HEADER = 16 * MiB
"""Bytes of a header with its blobs at most; Proxmox keeps to less."""
_CLUSTER_MEMORY = 64
"""Bytes that a cluster takes in memory, while they are sorted too."""


def open_vma(driver: VmaDriver, request: OpenRequest) -> VmaImage:
    """The disk of the archive in ``request.file`` that the option ``device`` names; it need not where there is one.

    :raises UsageError: there is no such disk, or there are several; they are listed.
    """
    archive = _Archive(request.below(), request.name)
    wanted = request.options.get("device")
    disks = [name for name, _ in archive.devices.values() if name != spec.VMSTATE]
    if wanted is None and len(disks) != 1:
        _choose(f"it holds {len(disks)} disks", archive, request.name)
    name = str(wanted) if wanted is not None else disks[0]
    number = next((number for number, device in archive.devices.items() if device[0] == name), None)
    if number is None:
        _choose(f"it has no disk '{name}'", archive, request.name)
    clusters = Clusters() if request.shallow else archive.clusters(number)
    told, size = archive.told(name), archive.devices[number][1]
    return VmaImage(driver, archive.file, clusters, told, name=request.name, size=size)


def _choose(why: str, archive: _Archive, file: str) -> NoReturn:
    names = ", ".join(name for name, _ in archive.devices.values()) or "none"
    raise UsageError(f"{why}: choose one with driver=vma,device=NAME; there are: {names}", file=file)


class _Archive:
    """The header of the archive in *file*.

    :ivar devices: number → name and size in bytes.
    """

    def __init__(self, file: Node, name: str) -> None:
        self.file, self.name = file, name
        data = file.read(0, min(_FIXED, file.size))
        if not data.startswith(spec.VMA_MAGIC):
            raise ImageError("not a VMA archive (it does not begin as one)", file=name)
        self.header = header = VMA_HEADER.unpack(data, file=name)
        if header.version != 1:
            raise UnsupportedError(f"version {header.version} of the VMA format", file=name)
        if not _FIXED <= header.header_size <= min(file.size, _MAX_HEADER):
            raise self._bad(f"header_size {header.header_size} is not inside the file")
        data = file.read(0, header.header_size)
        if _md5(data, VMA_HEADER.offsets["md5sum"]) != header.md5sum:
            raise self._bad("its checksum is wrong")
        start, size = header.blob_buffer_offset, header.blob_buffer_size
        if start < _FIXED or start + size > len(data):
            raise self._bad("its blobs are not inside of it")
        self._blobs = data[start : start + size]
        self.devices: dict[int, tuple[str, int]] = {}
        for number in range(1, spec.VMA_MAX_DEVICES):
            device = DEVICE_INFO.unpack(data, VMA_HEADER.size + number * DEVICE_INFO.size, file=name)
            if device.devname_ptr:
                if device.size > min(MAX_SIZE, VMA_CLUSTER_SIZE << 32):
                    raise self._bad(f"device {number} has an impossible size of {device.size} bytes")
                self.devices[number] = self._text(device.devname_ptr), device.size

    def _bad(self, why: str, place: str = VMA_HEADER.name) -> ImageError:
        return ImageError(why, file=self.name, place=place)

    def _text(self, at: int) -> str:
        """The name in the blob at byte *at* of the blobs."""
        return self._blob(at).split(b"\0", 1)[0].decode("utf-8", "replace")

    def _blob(self, at: int) -> bytes:
        size = int.from_bytes(self._blobs[at : at + 2], "little")
        if at + 2 + size > len(self._blobs):
            raise self._bad(f"the blob at byte {at} is not inside the blobs")
        return self._blobs[at + 2 : at + 2 + size]

    def told(self, device: str) -> dict[str, Any]:
        """What there is to say, with *device* being looked at."""
        header = self.header
        used = [pair for pair in zip(header.config_names, header.config_data, strict=True) if pair[0]]
        return {
            "uuid": str(UUID(bytes=header.uuid)),
            "ctime": header.ctime,
            "device": device,
            "devices": [{"name": name, "virtual-size": size} for name, size in self.devices.values()],
            "configs": [{"name": self._text(name), "size": len(self._blob(data))} for name, data in used],
        }

    def clusters(self, wanted: int) -> Clusters:
        """Where the clusters of device *wanted* are.

        :raises ImageError: an extent is damaged, or clusters are missing: the backup did not end, or was cut short.
        """
        result, seen = Clusters(), 0
        file, total = self.file, -(-self.devices[wanted][1] // VMA_CLUSTER_SIZE)
        for at, extent in self._extents():
            place, charged = at + EXTENT_HEADER.size, len(result.numbers)
            for info in extent.blockinfo:
                mask, device, number = info >> 48, info >> 32 & 0xFF, info & 0xFFFFFFFF
                if device == wanted:
                    if number >= total:
                        raise self._bad(f"cluster {number} lies behind the end of the disk", f"extent at offset {at}")
                    seen += 1
                    if mask:
                        result.add(number, mask, place)
                place += mask.bit_count() * VMA_BLOCK_SIZE
            file.account.charge((len(result.numbers) - charged) * _CLUSTER_MEMORY, "a list of clusters", self.name)
        if seen != total:
            raise self._bad(f"it has {seen} of the disk's {total} clusters: it is not whole", "extents")
        result.sort()
        return result

    def _extents(self) -> Iterator[tuple[int, spec.VmaExtentHeader]]:
        """(file offset, header) of each extent."""
        at = self.header.header_size
        while at < self.file.size:
            place = f"extent at offset {at}"
            data = self.file.read(at, min(EXTENT_HEADER.size, self.file.size - at))
            extent = EXTENT_HEADER.unpack(data, file=self.name)
            if extent.magic != spec.VMA_EXTENT_MAGIC or extent.uuid != self.header.uuid:
                raise self._bad("there is no extent of this archive", place)
            if _md5(data, EXTENT_HEADER.offsets["md5sum"]) != extent.md5sum:
                raise self._bad("its checksum is wrong", place)
            if extent.block_count != sum((info >> 48).bit_count() for info in extent.blockinfo):
                raise self._bad(f"block_count {extent.block_count} is wrong", place)
            yield at, extent
            at += EXTENT_HEADER.size + extent.block_count * VMA_BLOCK_SIZE
        if at > self.file.size:
            raise self._bad("it is cut short: the file ends inside its last extent", "extents")


def _md5(data: bytes, at: int) -> bytes:
    """The MD5 of a header whose own checksum stands at byte *at*, and counts as zeros."""
    return hashlib.md5(data[:at] + bytes(16) + data[at + 16 :], usedforsecurity=False).digest()
