"""What is known of each host cluster, in numpy arrays that exist where they are touched; refcounts as blocks hold them.

Who goes through all of an image counts its references (:class:`Counts`), or marks clusters (:class:`Marks`). Refcounts
that writes change, a block at a time and without numpy, are those of :mod:`diskmill_qcow2.refcounts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from diskmill.contract.limits import contents

if TYPE_CHECKING:
    from diskmill.contract.node import Node
    from numpy.typing import NDArray

CHUNK = 1 << 20
"""Clusters in one array."""
_RIGHTFUL = 8
"""Bytes of memory for each cluster that the file really holds, which are not charged."""
_TOGETHER = 1 << 17
"""Clusters of a range that are counted at once."""
_LEAST_RUN = 64
"""Clusters that runs of neighbours have on average where they are dealt with run by run."""


class Room:
    """The memory for L1 tables, and for what is known of clusters: charged to the budget where it is too much.

    What the file really holds is counted however large it is; clusters that are spread over an exabyte by a file of
    some kilobytes are not. The memory is given back when nobody holds this any more.
    """

    def __init__(self, file: Node, cluster_size: int, name: str) -> None:
        self._file, self._account, self._name = file, file.account, name
        self._cluster_size = cluster_size
        self._taken = self._charged = 0
        self._free: int | None = None

    def take(self, size: int) -> None:
        """*size* bytes for one more chunk, or table.

        :raises LimitError: there are not as many left.
        """
        if self._free is None:
            self._free = contents(self._file) // self._cluster_size * _RIGHTFUL
        more = max(self._taken + size - self._free, 0) - self._charged
        if more > 0:
            self._account.charge(more, "tables and counts of clusters", self._name)
            self._charged += more
        self._taken += size

    def __del__(self) -> None:
        self._account.give_back(self._charged)


class Counts:
    """A number for each host cluster.

    :ivar chunks: number of a chunk → the counts of its clusters.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.chunks: dict[int, NDArray[Any]] = {}

    def chunk(self, index: int) -> NDArray[Any]:
        """The counts of clusters from ``index * CHUNK`` on.

        :raises LimitError: it would be one array too many.
        """
        found = self.chunks.get(index)
        if found is None:
            self._room.take(CHUNK * 2)
            self.chunks[index] = found = np.zeros(CHUNK, np.uint16)
        return found

    def add(self, clusters: NDArray[Any], weight: int) -> None:
        """*weight* more references to each of *clusters*, which may repeat."""
        if not len(clusters):
            return
        change: Any = weight
        if len(clusters) > 1 and not bool((clusters[1:] > clusters[:-1]).all()):
            clusters, change = np.unique(clusters, return_counts=True)
            change = change * weight
        first, last = int(clusters[0]) // CHUNK, int(clusters[-1]) // CHUNK
        if first == last:
            self._add(first, clusters, change)
            return
        edges = np.searchsorted(clusters, np.arange(first, last + 2, dtype=clusters.dtype) * CHUNK)
        for index in (np.flatnonzero(np.diff(edges))).tolist():
            part = slice(int(edges[index]), int(edges[index + 1]))
            self._add(first + index, clusters[part], change if isinstance(change, int) else change[part])

    def _add(self, index: int, clusters: NDArray[Any], change: Any) -> None:
        chunk = self.chunk(index)
        runs = _runs(clusters) if isinstance(change, int) else None
        places = [_indexes(clusters)] if runs is None else [place for _, place in runs]
        change = np.uint64(change) if isinstance(change, int) else change.astype(np.uint64)
        for place in places:
            values = chunk[place] + change
            if int(values.max()) > np.iinfo(chunk.dtype).max:
                self._room.take(CHUNK * 6)
                self.chunks[index] = chunk = chunk.astype(np.uint64)
            chunk[place] = values

    def add_range(self, first: int, count: int) -> None:
        """One more reference to each of *count* clusters from *first* on."""
        for at in range(first, first + count, _TOGETHER):
            self.add(np.arange(at, min(at + _TOGETHER, first + count), dtype=np.uint64), 1)

    def get(self, cluster: int) -> int:
        """The count of one cluster."""
        chunk = self.chunks.get(cluster // CHUNK)
        return 0 if chunk is None else int(chunk[cluster % CHUNK])

    def get_all(self, clusters: NDArray[Any]) -> NDArray[Any]:
        """The counts of *clusters*."""
        return _gathered(self.chunks, clusters, np.uint64)

    def forget(self, cluster: int) -> None:
        """Drop all references to one cluster."""
        self.chunk(cluster // CHUNK)[cluster % CHUNK] = 0

    def slice(self, first: int, count: int) -> NDArray[Any]:
        """The counts of *count* clusters from *first* on; they lie in one chunk."""
        chunk = self.chunks.get(first // CHUNK)
        if chunk is None:
            return np.zeros(count, np.uint16)
        return chunk[first % CHUNK : first % CHUNK + count]

    def used(self) -> Iterator[NDArray[Any]]:
        """The clusters that have a count, ascending, some at a time."""
        return _nonzero(self.chunks)


class Marks:
    """Yes or no for each host cluster."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._chunks: dict[int, NDArray[Any]] = {}

    def _chunk(self, index: int) -> NDArray[Any]:
        if index not in self._chunks:
            self._room.take(CHUNK)
            self._chunks[index] = np.zeros(CHUNK, bool)
        return self._chunks[index]

    def put(self, first: int, values: NDArray[Any]) -> None:
        """Let *values* be what holds of the clusters from *first* on."""
        for at, count in chunks_of(first, len(values)):
            part = values[at - first : at - first + count]
            if at // CHUNK in self._chunks or part.any():
                self._chunk(at // CHUNK)[at % CHUNK : at % CHUNK + count] = part

    def add(self, clusters: NDArray[Any]) -> None:
        """Mark *clusters*, which lie in one chunk."""
        index = int(clusters[0]) // CHUNK
        self._chunk(index)[clusters - index * CHUNK] = True

    def has(self, cluster: int) -> bool:
        """Whether the cluster is marked."""
        chunk = self._chunks.get(cluster // CHUNK)
        return chunk is not None and bool(chunk[cluster % CHUNK])

    def which(self, clusters: NDArray[Any]) -> NDArray[Any]:
        """Of each of *clusters*, whether it is marked."""
        return _gathered(self._chunks, clusters, bool)

    def marked(self) -> Iterator[NDArray[Any]]:
        """The clusters that are, ascending, some at a time."""
        return _nonzero(self._chunks)


def _gathered(chunks: Mapping[int, NDArray[Any]], clusters: NDArray[Any], kind: Any) -> NDArray[Any]:
    """What *chunks* have for each of *clusters*; 0 where there is no chunk."""
    found: NDArray[Any] = np.zeros(len(clusters), kind)
    for index, inside in _by_chunk(clusters):
        chunk = chunks.get(index)
        if chunk is None:
            continue
        runs = _runs(clusters) if isinstance(inside, slice) else None
        if runs is None:
            found[inside] = chunk[_indexes(clusters[inside])]
        else:
            for part, place in runs:
                found[part] = chunk[place]
    return found


def _indexes(clusters: NDArray[Any]) -> NDArray[Any]:
    """Where in their chunk *clusters* are."""
    return (clusters & np.uint64(CHUNK - 1)).astype(np.int64)


def _runs(clusters: NDArray[Any]) -> list[tuple[slice, slice]] | None:
    """Neighbours among *clusters*, which lie in one chunk, taken together: where they are there, and in the chunk. A
    slice takes a tenth of what single indexes do. None: too few are neighbours for that."""
    edges = np.flatnonzero(clusters[1:] - clusters[:-1] != 1) + 1
    if len(edges) * _LEAST_RUN > len(clusters):
        return None
    bounds = [0, *edges.tolist(), len(clusters)]
    starts = (clusters[bounds[:-1]] & np.uint64(CHUNK - 1)).tolist()
    return [
        (slice(low, high), slice(start, start + high - low))
        for start, (low, high) in zip(starts, itertools.pairwise(bounds), strict=True)
    ]


def _nonzero(chunks: Mapping[int, NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for index, chunk in sorted(chunks.items()):
        yield np.flatnonzero(chunk) + index * CHUNK


def _by_chunk(clusters: NDArray[Any]) -> Iterator[tuple[int, Any]]:
    """(chunk, which of *clusters* are in it): a mask, or a slice of all, which costs less."""
    if not len(clusters):
        return
    low, high = int(clusters.min()) // CHUNK, int(clusters.max()) // CHUNK
    if low == high:
        yield low, slice(None)
        return
    chunks = clusters // np.uint64(CHUNK)
    for index in np.unique(chunks).tolist():
        yield index, chunks == index


def chunks_of(first: int, count: int) -> Iterator[tuple[int, int]]:
    """*count* clusters from *first* on in pieces (first, count) that do not cross chunks."""
    end = first + count
    while first < end:
        upto = min((first // CHUNK + 1) * CHUNK, end)
        yield first, upto - first
        first = upto


def unpack(data: NDArray[Any], bits: int) -> NDArray[Any]:
    """The refcounts in the bytes *data*, *bits* wide each."""
    if bits >= 8:
        return data.view(f">u{bits // 8}").astype(f"u{bits // 8}")
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((data[:, None] >> shifts) & np.uint8((1 << bits) - 1)).ravel()


def pack(counts: NDArray[Any], bits: int) -> NDArray[Any]:
    """*counts* as bytes on disk, *bits* wide each."""
    if bits >= 8:
        return counts.astype(f">u{bits // 8}").view(np.uint8)
    per_byte = 8 // bits
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = counts.astype(np.uint8).reshape(-1, per_byte) << shifts
    packed: NDArray[Any] = np.bitwise_or.reduce(parts, axis=1)
    return packed
