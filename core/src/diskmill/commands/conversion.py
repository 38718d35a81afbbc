"""What ``convert`` is asked for, as values: what is read, what is made of it, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import UsageError, said
from ..opening.context import CACHE_MODES
from ..records import field, record
from ..sizes import SECTOR, whole

MOST_THREADS = 16
"""Threads that a copy may have."""
REFLINK = ("auto", "always", "never")
"""When blocks are shared instead of copied."""
_MOST_SPARSE = 1 << 30
AUTO = "auto"
"""Find out whether the target reads as zeros."""


@record(frozen=True)
class Source:
    """An image that is read.

    :param name: as :func:`diskmill.open` takes it.
    :param format: the driver's name; None: probe.
    :param snapshot: read this internal snapshot: an id or a name, or ``snapshot.id=…,snapshot.name=…``.
    :param image_opts: *name* is an option string.
    :param cache: the cache mode for what is read.
    """

    name: str
    format: str | None = None
    snapshot: str | None = None
    image_opts: bool = False
    cache: str = "writeback"

    def __post_init__(self) -> None:
        _known(self.cache)


@record(frozen=True)
class Target:
    """The image that is written.

    :param format: its driver's name.
    :param options: ``create`` options of the format.
    :param backing: the backing image that it gets, or that the *existing* one has; None: the data is copied.
    :param existing: write into an image that is there instead of making one.
    :param zeroed: that image reads as zeros throughout; ``auto``: find out whether it does.
    :param image_opts: *name*, of an existing image, is an option string.
    :param cache: the cache mode for what is written; by default nothing waits for the disk, as with qemu-img.
    """

    name: str
    format: str = "raw"
    options: Mapping[str, Any] = field(default_factory=dict)
    backing: str | None = None
    backing_format: str | None = None
    existing: bool = False
    zeroed: bool | str = False
    image_opts: bool = False
    cache: str = "unsafe"

    def __post_init__(self) -> None:
        _known(self.cache)
        object.__setattr__(self, "options", dict(self.options))
        existing = said("existing", "-n")
        if self.zeroed not in (False, True, AUTO):
            raise UsageError(f"{said('target_zero', '--target-zero')} is '{AUTO}', not {self.zeroed!r}")
        if self.zeroed is True and not self.existing:
            raise UsageError(f"{said('target_zero', '--target-is-zero')} requires {existing}")
        if self.image_opts and not self.existing:
            raise UsageError(f"{said('target_image_opts', '--target-image-opts')} requires {existing}")
        if self.backing_format is not None and self.backing is None and "backing_file" not in self.options:
            raise UsageError(said("backing_format requires backing", "-F requires -B"))
        if self.existing and self.options:
            raise UsageError(said("options have", "-o has") + f" no effect with {existing}: the output exists already")


@record(frozen=True)
class Conversion:
    """Guest disks, one after the other, made into one image. What contradicts itself cannot be made.

    :param compress: store the data compressed.
    :param sparse: the shortest stretch of zeros, in bytes, that is left out: a multiple of 512, at most 1 GiB; 0: zeros
        are written too; None: 4096.
    :param threads: how many; None: as many as the process has processors, or more where storages ask for that.
    :param in_order: lay the target out in guest order, so that the same input gives the same file.
    :param rate: bytes a second; 0: as fast as it goes.
    :param offload: let the kernel or a server copy where it can, without looking for zeros.
    :param reflink: ``auto``: where the file systems can, the output shares blocks with the sources' files instead of
        having copies of them, without looking for zeros; ``always``: it is an error where they cannot; ``never``.
        None: ``auto`` with *offload*, else ``never``.
    :param salvage: where a source cannot be read, write zeros and go on.
    :param bitmaps: also copy the persistent bitmaps of the one source; *skip_broken*: but for inconsistent ones.
    :param digest: the algorithm of the digest that is made out of the copy; None: there is none.
    :param verify: read the output back before it gets its name.
    :param deterministic: the same disk makes the same file, whatever made it and when: ids follow from this text, or,
        where it is empty, from the disk's digest, for which the source is read beforehand. The time is that of the
        environment's ``SOURCE_DATE_EPOCH``, or 1970. None: ids are random.
    :param since: the existing target is a copy as the source was then: write only what has changed since. The name of a
        bitmap or a snapshot of the source, or of a file with the digests of its blocks then; ``bitmap:``,
        ``snapshot:`` or ``digests:`` before it says which.
    :param resume: leave an output that is not finished, with a journal, and go on with it if it is there: the
        journal's name; empty: beside the output, whose name it has with ``.part.journal``; None: do not.
    :param mark_every: bytes of data after which the journal is written anew; None: 252 MiB.
    """

    sources: tuple[Source, ...]
    target: Target
    compress: bool = False
    sparse: int | None = None
    threads: int | None = None
    in_order: bool = True
    rate: int = 0
    offload: bool = False
    reflink: str | None = None
    salvage: bool = False
    bitmaps: bool = False
    skip_broken: bool = False
    digest: str | None = None
    verify: bool = False
    resume: str | None = None
    mark_every: int | None = None
    since: str | None = None
    deterministic: str | None = None

    def __post_init__(self) -> None:
        if self.mark_every is not None:
            object.__setattr__(self, "mark_every", whole(self.mark_every, "mark_every", 1))
            if self.resume is None:
                raise UsageError(said("mark_every requires resume", "--mark-every requires --resume"))
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "rate", whole(self.rate, "rate"))
        object.__setattr__(self, "threads", thread_count(self.threads))
        if self.sparse is not None:
            object.__setattr__(self, "sparse", sparse := whole(self.sparse, "sparse"))
            if sparse % SECTOR or sparse > _MOST_SPARSE:
                raise UsageError("the sparse size must be a multiple of 512 bytes, and at most 1 GiB")
        if not self.sources:
            raise UsageError("there is nothing to convert: name at least one source image")
        if self.skip_broken and not self.bitmaps:
            raise UsageError(said("skip_broken requires bitmaps", "--skip-broken-bitmaps requires --bitmaps"))
        self._refuse_offload()
        self._refuse_reflink()
        self._refuse_several()
        self._refuse_since()
        self._refuse_random()
        if self.target.backing is not None and self.digest is not None:
            base = said("backing", "-B")
            raise UsageError(f"no digest can be made of a copy that leaves data to a backing image ({base})")
        if self.target.backing is not None and self.verify:
            base = said("backing", "-B")
            raise UsageError(f"a copy that leaves data to a backing image ({base}) is verified with compare")

    def _refuse_random(self) -> None:
        if self.deterministic is None:
            return
        deterministic = said("deterministic", "--deterministic")
        if not self.in_order:
            raise UsageError(f"{deterministic} does not go with {said('in_order=False', '-W')}")
        if self.target.existing or self.resume is not None:
            raise UsageError(f"{deterministic} is for images that are made anew, in one go")

    def _refuse_since(self) -> None:
        since = said("since", "--since")
        if self.since is None:
            return
        if not self.target.existing or self.target.zeroed:
            raise UsageError(f"{since} writes into a copy that exists: it requires {said('existing', '-n')}")
        if len(self.sources) > 1 or self.target.backing is not None:
            raise UsageError(f"{since} is for one source, and a copy without a backing image")
        if self.digest is not None or self.verify:
            raise UsageError(f"only what has changed is read ({since}): make the digest, or compare, afterwards")

    def _refuse_offload(self) -> None:
        if not self.offload:
            return
        if self.compress:
            both = said("offload and compress", "-C and -c")
            raise UsageError(f"cannot offload copying when compressing ({both})")
        if self.sparse:
            both = said("offload and sparse", "-C and -S")
            raise UsageError(f"cannot offload copying when looking for zeros ({both})")
        if self.salvage:
            raise UsageError(f"cannot offload copying with {said('salvage', '--salvage')}")

    def _refuse_reflink(self) -> None:
        reflink = said("reflink", "--reflink")
        if self.reflink not in (None, *REFLINK):
            raise UsageError(f"{reflink} is one of {', '.join(REFLINK)}, not {self.reflink!r}")
        if self.reflink in (None, "never"):
            return
        if self.sparse:
            raise UsageError(f"what is shared ({reflink}) is not looked through for zeros ({said('sparse', '-S')})")
        if self.reflink != "always":
            return
        for other, text in (
            (self.compress, said("compress", "-c")),
            (self.salvage, said("salvage", "--salvage")),
            (self.digest is not None, said("digest", "--digest")),
            (self.verify, said("verify", "--verify")),
        ):
            if other:
                raise UsageError(f"what is shared is not read: {reflink}=always does not go with {text}")

    def _refuse_several(self) -> None:
        if len(self.sources) < 2:
            return
        if self.target.backing is not None or any(one.snapshot is not None for one in self.sources):
            both = said("snapshot and backing", "a snapshot (-l) and a backing image (-B)")
            raise UsageError(f"several images make one disk only without {both}")
        if self.bitmaps:
            raise UsageError("Copying bitmaps only possible with single source")


class Zeros(NamedTuple):
    """What was found of a target of which it was asked whether it reads as zeros.

    :ivar by: how it is known: it is ``new``; by its ``status``, which names no data; by ``reading`` all that might be
        data, or, where it has data, up to that; or it was not asked, since a copy that is ``resumed`` is in it.
    :ivar data: the offset of the first data that was seen, where it does not read as zeros.
    """

    zeros: bool
    by: str
    data: int | None = None

    def __str__(self) -> str:
        if self.data is not None:
            return f"the target holds data (at offset {self.data}): zeros are written, too"
        if not self.zeros:
            return "the target has what was copied before: zeros are written, too"
        return {
            "new": "the target is new: it reads as zeros",
            "status": "the target reads as zeros by its own status",
            "reading": "the target reads as zeros: all of it was read",
        }[self.by]


class Converted(NamedTuple):
    """What was made: an image of *format*, of a disk of *size* bytes.

    :ivar digest: that of the disk, where one was asked for.
    :ivar zeros: what was found of the target, where that was asked for.
    """

    format: str
    size: int
    digest: str | None = None
    zeros: Zeros | None = None


def thread_count(threads: int | None) -> int | None:
    """*threads*, which a caller asks for. :raises UsageError: it cannot be meant."""
    return None if threads is None else whole(threads, "threads", 1, MOST_THREADS)


def _known(cache: str) -> None:
    if cache not in CACHE_MODES:
        raise UsageError(f"cache is one of {', '.join(CACHE_MODES)}, not {cache!r}")
