"""New packages: a descriptor, a manifest, and a disk that is a streamOptimized VMDK, in this order.

What the descriptor and the manifest say is known when the disk is whole, and their sizes before: the descriptor is
filled up with white space.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from diskmill.contract import calls
from diskmill.contract.extents import Encoder, Placement
from diskmill.contract.ids import now
from diskmill.contract.node import Image
from diskmill.contract.options import validate
from diskmill.contract.requests import CreateRequest, MeasureRequest
from diskmill.contract.results import Measurement
from diskmill.sizes import SECTOR, round_up

from .archive import Member
from .checking import digest_of
from .image import OvaImage

if TYPE_CHECKING:
    from . import OvaDriver

_DESCRIPTOR = 8192
"""Bytes that the descriptor has."""
_LONGEST = 60
"""Bytes of a package's name that its files take over: with what is added, tar's plain headers have room for them."""
_END = 2 * SECTOR


class OvaWriter(OvaImage):
    """A new package, which is written in guest order, once."""

    def __init__(self, driver: OvaDriver, request: CreateRequest, inner: Image, disk: Member, stem: str) -> None:
        super().__init__(driver, request.output(), inner, name=request.name)
        self.writable = True
        self.sequential = True
        self.unit = inner.unit
        self.blank = inner.blank
        self._disk = disk
        self._stem = stem
        self._sealed = False

    def encoder(self) -> Encoder:
        return self.inner.encoder()

    def reserve(self, offset: int, length: int) -> list[Placement]:
        return self.inner.reserve(offset, length)

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        return self.inner.reserve_encoded(units)

    def publish(self, placements: Sequence[Placement]) -> None:
        self.inner.publish(placements)

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        self.inner.zero_units(offset, length, unmap=unmap)

    def flush(self) -> None:
        if not self._sealed:
            self.inner.flush()
        self.file.flush()

    def settle(self) -> None:
        self.inner.settle()
        if not self._sealed:
            self._seal()
            self._sealed = True
        self.file.flush()
        self.file.settle()

    def _seal(self) -> None:
        """Write what stands before the disk, and the archive's end."""
        disk, file = self._disk, self.file
        when = now()
        end = disk.offset + round_up(disk.size, SECTOR)
        file.write(disk.offset + disk.size, bytes(end - disk.offset - disk.size + _END))
        text = _envelope(disk.name, disk.size, self.size, self._stem)
        file.write(0, _header(f"{self._stem}.ovf", _DESCRIPTOR, when) + text)
        digests = [
            (f"{self._stem}.ovf", digest_of(file, SECTOR, _DESCRIPTOR)),
            (disk.name, digest_of(file, disk.offset, disk.size)),
        ]
        manifest = "".join(f"SHA256({name})= {digest}\n" for name, digest in digests).encode()
        at = SECTOR + _DESCRIPTOR
        file.write(at, _header(f"{self._stem}.mf", len(manifest), when) + manifest.ljust(SECTOR, b"\0"))
        file.write(at + 2 * SECTOR, _header(disk.name, disk.size, when))


def create_ova(driver: OvaDriver, request: CreateRequest) -> Image:
    """An empty package in ``request.file``."""
    registry, file = request.context.registry, request.output()
    stem = _stem(request.name)
    disk = Member(file, f"{stem}-disk1.vmdk", 4 * SECTOR + _DESCRIPTOR, 0, writable=True)
    inner_driver = registry.format("vmdk")
    asked = {"subformat": "streamOptimized"} | {
        name: value for name, value in request.options.items() if name == "compression_level"
    }
    options = validate(inner_driver.options, asked, when="create", driver="vmdk")
    inner = CreateRequest(
        name=disk.name, context=request.context, size=request.size, options=options, file=disk, compressed=True
    )
    return OvaWriter(driver, request, calls.create_image(registry, inner_driver, inner), disk, stem)


def measure_ova(request: MeasureRequest) -> Measurement:
    """What the disk needs, and what stands around it."""
    registry = request.asked().registry
    driver = registry.format("vmdk")
    options = validate(driver.options, {"subformat": "streamOptimized"}, when="create", driver="vmdk")
    found = calls.measure(
        registry,
        driver,
        MeasureRequest(request.size, options, request.data_bytes, request.bitmaps, request.context),
    )
    around = 4 * SECTOR + _DESCRIPTOR + _END
    return Measurement(round_up(found.required, SECTOR) + around, round_up(found.fully_allocated, SECTOR) + around)


def _stem(name: str) -> str:
    stem = os.path.splitext(os.path.basename(name))[0].encode("ascii", "ignore").decode()
    kept = "".join(one for one in stem if one.isalnum() or one in "-_.")
    return kept.strip(".")[:_LONGEST] or "disk"


def _header(name: str, size: int, when: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, when, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _envelope(disk: str, stored: int, size: int, stem: str) -> bytes:
    name = escape(stem)
    lines: Iterator[str] = iter(
        (
            '<?xml version="1.0" encoding="UTF-8"?>',
            '<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"'
            ' xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"'
            ' xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">',
            f'<References><File ovf:id="file1" ovf:href="{disk}" ovf:size="{stored}"/></References>',
            "<DiskSection><Info>Virtual disks</Info>"
            f'<Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{size}" ovf:format='
            '"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection>',
            f'<VirtualSystem ovf:id="{name}"><Info>A virtual machine</Info><Name>{name}</Name>',
            '<OperatingSystemSection ovf:id="1"><Info>Other</Info></OperatingSystemSection>',
            "<VirtualHardwareSection><Info>Virtual hardware</Info>",
            "<System><vssd:ElementName>Virtual hardware</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>"
            f"<vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>"
            "<vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType></System>",
            "<Item><rasd:ElementName>1 CPU</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>"
            "<rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>",
            "<Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>"
            "<rasd:ElementName>1024 MB</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID>"
            "<rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>1024</rasd:VirtualQuantity></Item>",
            "<Item><rasd:ElementName>SCSI controller</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID>"
            "<rasd:ResourceSubType>lsilogic</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>",
            "<Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>Disk</rasd:ElementName>"
            "<rasd:HostResource>ovf:/disk/disk1</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID>"
            "<rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>",
            "</VirtualHardwareSection></VirtualSystem></Envelope>",
        )
    )
    return "\n".join(lines).encode().ljust(_DESCRIPTOR - 1) + b"\n"
