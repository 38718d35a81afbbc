"""Results as QAPI objects: the JSON that qemu-img's callers know, with QAPI's names and types.

See ``qapi/block-core.json`` in QEMU, and the schemas in ``docs/schemas``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands.bench import BenchResult
    from .contract.results import (
        CheckResult,
        ChildInfo,
        Comparison,
        Creation,
        ImageInfo,
        Limits,
        MapEntry,
        Measurement,
        Snapshot,
    )


def _given(**members: Any) -> dict[str, Any]:
    """*members* that are not None, named as QAPI does."""
    return {key.replace("_", "-"): value for key, value in members.items() if value is not None}


def image_info(info: ImageInfo) -> dict[str, Any]:
    """``ImageInfo``."""
    return _given(
        filename=info.filename,
        format=info.format,
        virtual_size=info.virtual_size,
        actual_size=info.actual_size,
        cluster_size=info.cluster_size,
        dirty_flag=info.dirty,
        encrypted=info.encrypted or None,
        compressed=info.compressed or None,
        backing_filename=info.backing_filename,
        full_backing_filename=info.full_backing_filename,
        backing_filename_format=info.backing_filename_format,
        snapshots=[snapshot(one) for one in info.snapshots] or None,
        limits=None if info.limits is None else limits(info.limits),
        format_specific=None if info.specific is None else {"type": info.format, "data": info.specific},
        children=[_child(one) for one in info.children],
    )


def _child(one: ChildInfo) -> dict[str, Any]:
    """``BlockChildInfo``, as releases since 8.0 print it."""
    node = _given(
        filename=one.filename,
        format=one.format,
        virtual_size=one.size,
        actual_size=one.actual_size,
        dirty_flag=False,
        children=[_child(below) for below in one.children],
    )
    return {"name": one.name, "info": node}


def limits(one: Limits) -> dict[str, Any]:
    """``BlockLimitsInfo``."""
    return _given(**vars(one))


def snapshot(one: Snapshot) -> dict[str, Any]:
    """``SnapshotInfo``."""
    return _given(
        id=one.id,
        name=one.name,
        vm_state_size=one.vm_state_size,
        date_sec=one.date_sec,
        date_nsec=one.date_nsec,
        vm_clock_sec=one.vm_clock_sec,
        vm_clock_nsec=one.vm_clock_nsec,
        icount=one.icount,
    )


def image_check(result: CheckResult) -> dict[str, Any]:
    """``ImageCheck``. Counts of zero are left out, as qemu-img does."""
    return _given(
        filename=result.filename,
        format=result.format,
        check_errors=result.check_errors,
        image_end_offset=result.image_end_offset or None,
        corruptions=result.corruptions or None,
        leaks=result.leaks or None,
        corruptions_fixed=result.corruptions_fixed or None,
        leaks_fixed=result.leaks_fixed or None,
        total_clusters=result.total_clusters or None,
        allocated_clusters=result.allocated_clusters or None,
        fragmented_clusters=result.fragmented_clusters or None,
        compressed_clusters=result.compressed_clusters or None,
    )


def map_entry(entry: MapEntry) -> dict[str, Any]:
    """``MapEntry``. There may be millions, so this does without :func:`_given`."""
    members: dict[str, Any] = {
        "start": entry.start,
        "length": entry.length,
        "depth": entry.depth,
        "present": entry.present,
        "zero": entry.zero,
        "data": entry.data,
        "compressed": entry.compressed,
    }
    if entry.offset is not None:
        members["offset"] = entry.offset
    return members


def map_members(entry: MapEntry) -> str:
    """What ``json.dumps`` writes between the braces of :func:`map_entry`, in a fifth of its time."""
    offset = "" if entry.offset is None else f', "offset": {entry.offset}'
    return (
        f'"start": {entry.start}, "length": {entry.length}, "depth": {entry.depth}, '
        f'"present": {_WORDS[entry.present]}, "zero": {_WORDS[entry.zero]}, "data": {_WORDS[entry.data]}, '
        f'"compressed": {_WORDS[entry.compressed]}{offset}'
    )


_WORDS = ("false", "true")


def measurement(result: Measurement) -> dict[str, Any]:
    """``BlockMeasureInfo``."""
    return _given(required=result.required, fully_allocated=result.fully_allocated, bitmaps=result.bitmaps)


def creation(made: Creation) -> dict[str, Any]:
    """What ``create --output=json`` prints; QAPI has no such object."""
    return _given(
        filename=made.filename,
        format=made.format,
        virtual_size=made.size,
        backing_filename=made.backing_filename,
        backing_filename_format=made.backing_format,
        options=made.options,
    )


def comparison(result: Comparison) -> dict[str, Any]:
    """What ``compare --output=json`` prints; QAPI has no such object."""
    return _given(
        identical=result.identical, message=result.message, offset=result.offset, size_differs=result.size_differs
    )


def bench_result(result: BenchResult) -> dict[str, Any]:
    """What ``bench --output=json`` prints; QAPI has no such object."""
    return _given(requests=result.requests, size=result.size, seconds=result.seconds)


def ordered(value: Any) -> Any:
    """*value* with the members of its objects in the order of QEMU's hash tables.

    Scripts that compare texts rely on it. The hash is the one of Samba's trivial database (tdb), over 512 buckets.
    """
    if isinstance(value, Mapping):
        return {key: ordered(value[key]) for key in sorted(value, key=lambda key: _hash(key) % 512)}
    if isinstance(value, list | tuple):
        return [ordered(one) for one in value]
    return value


def _hash(key: str) -> int:
    data = key.encode()
    value = 0x238F13AF * len(data)
    for index, byte in enumerate(data):
        value += byte << (index * 5 % 24)
    return (1103515243 * (value & 0xFFFFFFFF) + 12345) & 0xFFFFFFFF
