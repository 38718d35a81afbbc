"""The two headers: the one with the higher sequence number holds, an update overwrites the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diskmill.contract.ids import fresh
from diskmill.errors import ImageError, UnsupportedError

from .c_vhdx import ALIGN, HEADER, HEADER_OFFSETS, HEADER_SECTION, NO_GUID, Header, intact, sealed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diskmill.contract.node import Node


class Headers:
    """The headers of the VHDX file in *file*.

    :raises ImageError: there is none that holds.
    :raises UnsupportedError: it is of another version.
    """

    def __init__(self, file: Node, name: str) -> None:
        self.file = file
        self.name = name
        copies = [file.read(offset, HEADER.size) for offset in HEADER_OFFSETS]
        self.whole = [intact(data, b"head") for data in copies]
        """Of each, whether signature and checksum are right."""
        self.slot = _current([HEADER.unpack(data) for data in copies], self.whole, copies[0] == copies[1], name)
        self.current: Header = HEADER.unpack(copies[self.slot])
        """The header that holds."""
        header = self.current
        if header.Version != 1:
            raise UnsupportedError(f"VHDX version {header.Version} is not supported, only 1", file=name)
        if header.LogGuid != NO_GUID and header.LogVersion != 0:
            raise UnsupportedError(f"a log of version {header.LogVersion} is not supported", file=name)
        if header.LogOffset < HEADER_SECTION or header.LogOffset % ALIGN or header.LogLength % ALIGN:
            raise ImageError("its log is not at a place where logs can be", file=name, place="header")
        self._session = fresh(16)

    def update(self, **fields: Any) -> None:
        """Let another header hold, with *fields* in place of what the old one says."""
        header = HEADER.new(**{**vars(self.current), **fields})
        header.SequenceNumber += 1
        header.FileWriteGuid = self._session
        if header.SequenceNumber >> 64:
            raise ImageError("the sequence numbers are used up", file=self.name, place="header")
        self.file.write(HEADER_OFFSETS[1 - self.slot], sealed(HEADER.pack(header)))
        self.file.barrier()
        self.current, self.slot = header, 1 - self.slot
        self.whole[self.slot] = True

    def update_both(self, **fields: Any) -> None:
        """:meth:`update` twice, so that one damaged header does not lose the image."""
        self.update(**fields)
        self.update()


def _current(headers: Sequence[Header], whole: Sequence[bool], equal: bool, name: str) -> int:
    if not any(whole):
        raise ImageError("neither of its headers is valid", file=name)
    if not all(whole):
        return whole.index(True)
    first, second = (header.SequenceNumber for header in headers)
    if first == second and not equal:  # disk2vhd makes them equal
        raise ImageError("its two headers have the same sequence number", file=name)
    return int(second > first)
