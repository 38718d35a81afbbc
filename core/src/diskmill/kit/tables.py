"""Arrays of on-disk entries: L2 tables, block allocation tables, grain tables.

A table is an ``array.array`` in the machine's byte order, read and written here in the disk's. What lookups need
from a table is its *runs*: neighbouring entries that say the same (all unallocated) or count upwards by a fixed
step (clusters that lie one after the other in the file). A run of a million entries costs one Python object.

``array`` rather than numpy for what is small, because importing numpy costs as much as copying a quarter of a
gigabyte; numpy takes over where a table is large enough to pay for that.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..contract.node import Node

_CODES = {array(code).itemsize: code for code in "HILQ"}

# Entries from which numpy's import pays for itself; measured: 0.13 µs an entry in Python, 90 ms for the import.
_NUMPY_FROM = 1 << 18


class Run(NamedTuple):
    """Entries ``at`` to ``at + length - 1``, whose values are ``value + k * step``; step is 0 where equal."""

    at: int
    length: int
    value: int
    step: int


def from_bytes(data: bytes | bytearray | memoryview, width: int, order: str) -> array[int]:
    """The entries in *data*: *width* is 2, 4 or 8 bytes, *order* ``"big"`` or ``"little"``."""
    table = array(_CODES[width])
    table.frombytes(data)
    if order != sys.byteorder:
        table.byteswap()
    return table


def to_bytes(table: array[int], order: str) -> bytes:
    """*table* as the disk holds it; the table itself stays as it was."""
    if order != sys.byteorder:
        table = table[:]
        table.byteswap()
    return table.tobytes()


def filled(count: int, width: int, value: int = 0) -> array[int]:
    """*count* entries, all *value*."""
    return array(_CODES[width], [value]) * count


def read(node: Node, offset: int, count: int, width: int, order: str) -> array[int]:
    """*count* entries from byte *offset* of *node*.

    The caller has checked that ``count * width`` bytes can be there: this allocates as many.
    """
    data = bytearray(count * width)
    node.read_into(offset, data)
    return from_bytes(data, width, order)


def bit_runs(data: bytes, first: int, count: int, order: str) -> Iterator[tuple[int, int, bool]]:
    """(at, length, whether they are set) for the runs of *count* bits of *data* from bit *first* on, *at* from 0 on.

    :param order: ``"little"``: bit 0 of a byte, the least significant one, comes first; ``"big"``: it comes last.
    """
    text = f"{int.from_bytes(data, order):0{len(data) * 8}b}"  # type: ignore[arg-type]
    bits = (text[::-1] if order == "little" else text)[first : first + count]
    at = 0
    while at < len(bits):
        other = bits.find("0" if bits[at] == "1" else "1", at)
        upto = len(bits) if other < 0 else other
        yield at, upto - at, bits[at] == "1"
        at = upto


def fill_run(table: array[int], index: int, count: int, value: int, step: int) -> None:
    """Set *count* entries from *index* on to value, value + step, value + 2 * step, …"""
    if step:
        table[index : index + count] = array(table.typecode, range(value, value + count * step, step))
    else:
        table[index : index + count] = array(table.typecode, [value]) * count


def runs(table: array[int], step: int) -> Iterator[Run]:
    """The runs of *table*, in order, covering it whole. A run that counts does not begin with 0.

    In most formats 0 says that there is nothing, and the next entry may by chance be the step.

    :param step: by how much entries of neighbouring clusters differ: the cluster size where entries hold byte
        offsets, 1 where they hold cluster numbers, and so on.
    """
    if len(table) >= _NUMPY_FROM or "numpy" in sys.modules and len(table) >= 512:
        with suppress(ModuleNotFoundError):  # who did without it waits longer
            import numpy  # noqa: F401

            return _runs_numpy(table, step)
    return _runs_python(table, step)


def _runs_python(table: array[int], step: int) -> Iterator[Run]:
    if not table:
        return
    # A table that is all one value is the common case of a sparse image; comparing arrays runs in C.
    if table == array(table.typecode, [table[0]]) * len(table):
        yield Run(0, len(table), table[0], 0)
        return
    start, first, previous = 0, table[0], table[0]
    stride: int | None = None  # not known before a run's second entry
    for index, value in enumerate(table[1:], 1):
        delta = value - previous
        if delta == stride or (stride is None and (delta == 0 or delta == step and previous)):
            stride = delta
        else:
            yield Run(start, index - start, first, stride or 0)
            start, first, stride = index, value, None
        previous = value
    yield Run(start, len(table) - start, first, stride or 0)


def _runs_numpy(table: array[int], step: int) -> Iterator[Run]:
    import numpy

    values = numpy.frombuffer(table, dtype=f"u{table.itemsize}")
    delta = values[1:] - values[:-1]
    # link[i] joins entries i and i + 1: 1 where they are equal, 2 where they are a step apart. Where the kind
    # changes, the first link of the new kind is dropped, so that an entry belongs to one run.
    link = (delta == 0).astype(numpy.uint8)
    if step:
        # Unsigned differences wrap around: 0xffffffff and then 0 is no step upwards.
        upwards = (values[1:] > values[:-1]) & (values[:-1] != 0)
        link[(delta == numpy.array(step, dtype=values.dtype)) & upwards] = 2
    joined = link != 0
    joined[1:] &= (link[1:] == link[:-1]) | (link[:-1] == 0)
    starts = numpy.flatnonzero(~joined) + 1
    starts = numpy.concatenate((numpy.zeros(1, dtype=starts.dtype), starts))
    counts = numpy.diff(starts, append=len(values))
    strides = numpy.where(counts > 1, link[numpy.minimum(starts, len(link) - 1)] == 2, False) * step
    block = 1 << 16  # lists in pieces: a table of a million runs is not made into Python objects at once
    for at in range(0, len(starts), block):
        piece = slice(at, at + block)
        for row in zip(
            starts[piece].tolist(),
            counts[piece].tolist(),
            values[starts[piece]].tolist(),
            strides[piece].tolist(),
            strict=True,
        ):
            yield Run(*row)
