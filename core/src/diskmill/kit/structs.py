"""On-disk structures as data.

A driver writes each structure of its specification down once, as a table of fields in the specification's names::

    HEADER = Structure("QCowHeader", ">", [("magic", "4s"), ("version", "I"), …])
    header = HEADER.unpack(data)
    header.version = 3
    data = HEADER.pack(header)

Field formats are those of the ``struct`` module; a count before a number makes a tuple (``"8I"``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ..errors import ImageError


class Record(SimpleNamespace):
    """One structure's values, an attribute a field."""

    def __getattr__(self, name: str) -> Any:  # the fields are data, so only the running program knows them
        raise AttributeError(f"the structure has no field {name!r}")


class Structure:
    """A fixed-size on-disk structure.

    :param name: its name in the specification, used in errors.
    :param order: ``">"`` big-endian or ``"<"`` little-endian; no padding is ever added.
    :param fields: (name, ``struct`` format) in on-disk order. A name that starts with ``_`` is padding: it is not
        kept, and written as zeros.
    """

    def __init__(self, name: str, order: str, fields: Iterable[tuple[str, str]]) -> None:
        self.name = name
        self.fields = list(fields)
        self._counts = [struct.Struct(order + code) for _, code in self.fields]
        self._struct = struct.Struct(order + "".join(code for _, code in self.fields))
        self._lengths = [len(one.unpack(bytes(one.size))) for one in self._counts]
        self.size = self._struct.size
        self.offsets: dict[str, int] = {}
        offset = 0
        for (field, _), one in zip(self.fields, self._counts, strict=True):
            self.offsets[field] = offset
            offset += one.size

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0, *, file: str | None = None) -> Record:
        """The structure at byte *offset* of *data*.

        :raises ImageError: *data* ends before the structure does; *file* is named in it.
        """
        if offset + self.size > len(data):
            have = max(len(data) - offset, 0)
            raise ImageError(f"truncated: {have} of {self.size} bytes", file=file, place=self.name)
        values = iter(self._struct.unpack_from(data, offset))
        record = Record()
        for (field, _), length in zip(self.fields, self._lengths, strict=True):
            taken = [next(values) for _ in range(length)]
            if not field.startswith("_"):
                setattr(record, field, taken[0] if length == 1 else tuple(taken))
        return record

    def pack(self, record: Record) -> bytes:
        """*record* as ``size`` bytes."""
        values: list[Any] = []
        for (field, _), length, one in zip(self.fields, self._lengths, self._counts, strict=True):
            if field.startswith("_"):
                values.extend(one.unpack(bytes(one.size)))
            elif length == 1:
                values.append(getattr(record, field))
            else:
                values.extend(getattr(record, field))
        try:
            return self._struct.pack(*values)
        except struct.error as error:
            raise ValueError(f"{self.name}: {error}") from error

    def new(self, **values: Any) -> Record:
        """A record with every field zero (or empty) but those given."""
        record = self.unpack(bytes(self.size))
        for field, value in values.items():
            if field not in self.offsets:
                raise TypeError(f"{self.name} has no field {field!r}")
            setattr(record, field, value)
        return record
