"""What commands return: typed results, in bytes, with QAPI's names where QAPI has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..records import field, record


@record
class Measurement:
    """QAPI ``BlockMeasureInfo``: bytes that the image file needs now, and when fully allocated."""

    required: int
    fully_allocated: int
    bitmaps: int | None = None


@record
class Finding:
    """One thing that a check found.

    :param kind: ``corruption`` (data is wrong or lost), ``leak`` (space is lost), or ``error`` (the check could not
        look).
    :param text: a phrase with the place in it.
    :param count: how many of the kind it stands for.
    """

    kind: str
    text: str
    count: int = 1
    fixed: bool = False


@record
class CheckResult:
    """QAPI ``ImageCheck``, as typed numbers; ``findings`` tell each in words."""

    filename: str = ""
    format: str = ""
    findings: list[Finding] = field(default_factory=list)
    corruptions: int = 0
    leaks: int = 0
    check_errors: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    image_end_offset: int | None = None
    total_clusters: int | None = None
    allocated_clusters: int | None = None
    fragmented_clusters: int | None = None
    compressed_clusters: int | None = None

    def found(self, kind: str, text: str, count: int = 1) -> None:
        """Count a finding, and tell it in words, unless a thousand others were told before."""
        if kind == "corruption":
            self.corruptions += count
        elif kind == "leak":
            self.leaks += count
        else:
            self.check_errors += count
        if len(self.findings) < 1000:
            self.findings.append(Finding(kind, text, count))


@record
class Snapshot:
    """QAPI ``SnapshotInfo``."""

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_sec: int
    vm_clock_nsec: int
    icount: int | None = None
    disk_size: int | None = None


@record
class Bitmap:
    """A persistent dirty bitmap: which parts of a guest disk changed since it was added or cleared.

    :param granularity: guest bytes for each of its bits.
    :param size: the guest disk's size in bytes.
    :param enabled: whether it records writes.
    :param inconsistent: whether it was not stored properly, so that it can only be removed.
    :param ranges: gives (offset, length) in bytes of what changed, ascending. Only asked of consistent ones.
    """

    name: str
    granularity: int
    size: int
    enabled: bool
    inconsistent: bool
    ranges: Callable[[], Iterator[tuple[int, int]]]


@record
class MapEntry:
    """QAPI ``MapEntry``: how a guest range is stored."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    compressed: bool = False
    offset: int | None = None
    filename: str | None = None

    def __init__(  # there may be a million of them
        self,
        start: int,
        length: int,
        depth: int,
        present: bool,
        zero: bool,
        data: bool,
        compressed: bool = False,
        offset: int | None = None,
        filename: str | None = None,
    ) -> None:
        self.start, self.length, self.depth = start, length, depth
        self.present, self.zero, self.data = present, zero, data
        self.compressed, self.offset, self.filename = compressed, offset, filename


@record
class Limits:
    """QAPI ``BlockLimitsInfo``: what requests must, and what they best keep to. Bytes; None: nothing special."""

    request_alignment: int
    max_iov: int
    min_mem_alignment: int
    opt_mem_alignment: int
    discard_alignment: int | None = None
    write_zeroes_alignment: int | None = None


@record
class ChildInfo:
    """QAPI ``BlockChildInfo``: a node below an image, and what is below that.

    :param name: what it is to the node above: ``file``, ``data-file``, or ``extents.0`` and so on.
    :param size: its length in bytes: of storage, the file's.
    """

    name: str
    filename: str
    format: str
    size: int
    actual_size: int | None = None
    children: list[ChildInfo] = field(default_factory=list)


@record
class ImageInfo:
    """QAPI ``ImageInfo``; ``diskmill.qapi`` has its JSON form."""

    filename: str
    format: str
    virtual_size: int
    actual_size: int | None = None
    cluster_size: int | None = None
    dirty: bool | None = False
    encrypted: bool = False
    compressed: bool = False
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: list[Snapshot] = field(default_factory=list)
    limits: Limits | None = None
    specific: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    children: list[ChildInfo] = field(default_factory=list)


@record
class Comparison:
    """What ``compare`` found.

    :param identical: whether the guest disks read the same (as far as ``strict`` asks).
    :param offset: guest byte offset of the first difference; None where there is none in the contents.
    :param common: how many bytes both disks have.
    """

    identical: bool
    message: str
    offset: int | None = None
    size_differs: bool = False
    common: int = 0


@record
class Creation:
    """The image that ``create`` made.

    :param size: the guest disk's size in bytes, as asked for.
    :param options: the format's options that hold for it, defaults included.
    """

    filename: str
    format: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)
    backing_filename: str | None = None
    backing_format: str | None = None
