"""On-disk structures as data.

A driver writes each structure of its specification down once, as a class with the fields in the specification's names,
in on-disk order::

    class QCowHeader(Record):
        magic = raw(4)
        version = header_length = u32
        …

    HEADER = Structure("header", ">", QCowHeader)

    header = HEADER.unpack(data)
    header.version = 3
    data = HEADER.pack(header)

A type checker takes a field for what it is unpacked to (``bytes``, ``int``, a tuple of them), and a misspelt one for an
error. A name that starts with ``_`` is padding: it is not kept, and written as zeros.
"""

from __future__ import annotations

import struct
from typing import Any, Generic, TypeVar, cast

from ..errors import ImageError

_R = TypeVar("_R", bound="Record")


class _Field:
    """Where a class of fields is made, what a field looks like on disk: a format of ``struct``."""

    def __init__(self, code: str) -> None:
        self.code = code


def _number(code: str) -> int:
    return cast("int", _Field(code))


u8, u16, u32, u64 = _number("B"), _number("H"), _number("I"), _number("Q")
"""Unsigned numbers of so many bits."""
i64 = _number("q")
"""A signed number."""


def raw(length: int) -> bytes:
    """*length* bytes as they are."""
    return cast("bytes", _Field(f"{length}s"))


def several(count: int, number: int) -> tuple[int, ...]:
    """*count* numbers of a kind: ``several(8, u32)``."""
    return cast("tuple[int, ...]", _Field(f"{count}{cast('Any', number).code}"))


class Record:
    """One structure's values, an attribute a field."""

    codes: dict[str, str] = {}  # noqa: RUF012 - each class has its own

    def __init_subclass__(cls) -> None:
        own = {name: value.code for name, value in vars(cls).items() if isinstance(value, _Field)}
        cls.codes = cls.codes | own
        for name in own:  # only a record has values
            delattr(cls, name)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # its values change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Structure(Generic[_R]):
    """A fixed-size on-disk structure.

    :param name: its name in the specification, used in errors.
    :param order: ``">"`` big-endian or ``"<"`` little-endian; no padding is ever added.
    :param kind: the class of its fields; one that inherits has those of its base first.
    """

    def __init__(self, name: str, order: str, kind: type[_R]) -> None:
        self.name = name
        self.order = order
        self.kind = kind
        self._struct = struct.Struct(order + "".join(kind.codes.values()))
        self.size = self._struct.size
        self._counts = {field: 1 if code[-1] == "s" else int(code[:-1] or 1) for field, code in kind.codes.items()}
        """How many values each field has."""
        self._unnamed = [field for field in self._counts if field.startswith("_")]

    @property
    def offsets(self) -> dict[str, int]:
        """Where each field begins, in bytes."""
        offsets, end = {}, 0
        for field, code in self.kind.codes.items():
            offsets[field] = end
            end += struct.calcsize(self.order + code)
        return offsets

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0, *, file: str | None = None) -> _R:
        """The structure at byte *offset* of *data*.

        :raises ImageError: *data* ends before the structure does; *file* is named in it.
        """
        if offset + self.size > len(data):
            have = max(len(data) - offset, 0)
            raise ImageError(f"truncated: {have} of {self.size} bytes", file=file, place=self.name)
        values = self._struct.unpack_from(data, offset)
        record = self.kind()
        if len(values) == len(self._counts):
            vars(record).update(zip(self._counts, values, strict=True))
            for field in self._unnamed:
                del vars(record)[field]
            return record
        at = 0
        for field, count in self._counts.items():
            if not field.startswith("_"):
                setattr(record, field, values[at] if count == 1 else values[at : at + count])
            at += count
        return record

    def pack(self, record: _R) -> bytes:
        """*record* as ``size`` bytes."""
        values: list[Any] = []
        for field, count in self._counts.items():
            if field.startswith("_"):
                values.extend([b""] if self.kind.codes[field].endswith("s") else [0] * count)
            elif count == 1:
                values.append(getattr(record, field))
            else:
                values.extend(getattr(record, field))
        try:
            return self._struct.pack(*values)
        except struct.error as error:
            raise ValueError(f"{self.name}: {error}") from error

    def new(self, **values: Any) -> _R:
        """A record with every field zero (or empty) but those given."""
        record = self.unpack(bytes(self.size))
        for field, value in values.items():
            if field not in self.offsets:
                raise TypeError(f"{self.name} has no field {field!r}")
            setattr(record, field, value)
        return record
