"""``convert``: any image, or several one after the other, into a new image of any format."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from ..contract import calls
from ..contract.extents import Kind
from ..contract.ids import derived
from ..contract.limits import Meter
from ..contract.node import Image, Storage
from ..contract.references import Reference
from ..contract.requests import Backing
from ..engine.compare import first_data, glimpsed_data, known_blank
from ..engine.copy import CopyPlan, Watcher, copy
from ..engine.progress import Progress, RateLimit, Report
from ..engine.walk import walk
from ..errors import DiskmillError, UnsupportedError, UsageError, said
from ..kit.forward import NEAR, ForwardStorage, drain
from ..opening.context import Context
from ..opening.creation import create_image
from ..opening.graph import open_image, refuse_unreadable
from ..opening.names import Name, given_name, given_names, parse_name, relative_to
from ..opening.places import new_place, storage_of, written_name
from ..records import replace
from ..sizes import MiB
from . import copied_bitmaps
from .bitmap import bitmaps_of
from .conversion import AUTO, Conversion, Converted, Source, Target, Zeros
from .identity import identities, refuse_self, shared_base
from .snapshot import load_snapshot
from .unsized import PIPE

if TYPE_CHECKING:
    from ..contract.results import Bitmap
    from ..engine.digest import Digester
    from .changes import Ranges
    from .resumption import Resumption


BEHIND = 32 * MiB
"""Bytes of data after which what was written is sent to the disk, where it will be read back."""


def convert(
    sources: Sequence[Name] | Name,
    output: Name,
    *,
    format: str | None = None,
    output_format: str = "raw",
    options: Mapping[str, Any] | None = None,
    compress: bool = False,
    backing: Name | None = None,
    backing_format: str | None = None,
    existing: bool = False,
    target_zero: bool | str = False,
    sparse: int | None = None,
    threads: int | None = None,
    in_order: bool = True,
    rate: int = 0,
    salvage: Callable[[int, int, DiskmillError], None] | None = None,
    snapshot: str | None = None,
    offload: bool = False,
    reflink: str | None = None,
    bitmaps: bool = False,
    skip_broken: bool = False,
    image_opts: bool = False,
    target_image_opts: bool = False,
    context: Context | None = None,
    target_context: Context | None = None,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
    digest: str | None = None,
    verify: bool = False,
    resume: str | bool | None = None,
    mark_every: int | None = None,
    since: str | None = None,
    deterministic: str | bool | None = None,
) -> str | None:
    """Copy the guest disks of *sources*, one after the other, into *output*.

    The output does not bear its name before it is whole; when the call fails, nothing is left of it, and what bore
    the name before is untouched.

    :param sources: one name, or several.
    :param format: the sources' format; None: probe each.
    :param options: ``create`` options of the output's format.
    :param compress: store the data compressed.
    :param backing: the backing image of the output. Where it is an image of the source's own chain, what the source
        has from it stays with it, and what lies above is copied. Any other reads the same as the source's own backing
        image, which the caller vouches for. Holes that nothing lies behind are zeros, and are written over it.
    :param existing: write into an image that is there (as large, at least) instead of making one.
    :param target_zero: that image reads as zeros throughout. It is refused where some looks show that it does not.
        ``"auto"``: find out, by its status or by reading it, of any output; what does not read as zeros is written so.
    :param sparse: see :class:`~diskmill.commands.conversion.Conversion`, as are *threads*, *in_order*, *rate*,
        *offload* and *reflink*.
    :param salvage: where the source cannot be read, write zeros and call this with (offset, length, error).
    :param bitmaps: also copy the persistent bitmaps of the one source.
    :param skip_broken: leave inconsistent ones out, with a warning; otherwise they are refused.
    :param snapshot: convert this internal snapshot: an id or a name, or ``snapshot.id=…,snapshot.name=…``.
    :param context: for the sources; *target_context*: for the output, by default the same without flushes to disk
        (as qemu-img does; pass one with ``cache="writeback"`` to have them).
    :param cancel: set it to stop.
    :param digest: make the digest of the guest disk out of the copy: the algorithm, see :func:`diskmill.digest`.
    :param verify: read the output back, and compare it with what was read, before it gets its name.
    :param resume: what is left unfinished stays, and the same call goes on with it: True, or the name of the journal;
        see :class:`~diskmill.commands.conversion.Conversion`, as for *mark_every*, *since*
        and *deterministic* (True: by the disk's digest).
    :return: the digest, where one was asked for.
    :raises DiskmillError: whatever went wrong.
    """
    context = context or Context()
    target_context = target_context or replace(context, cache="unsafe", share=False)
    output = given_name(output)
    read = [Source(name, format, snapshot, image_opts, context.cache) for name in given_names(sources)]
    asked = Conversion(
        tuple(read),
        Target(
            output,
            output_format,
            options or {},
            None if backing is None else given_name(backing),
            backing_format,
            existing,
            target_zero,
            target_image_opts,
            target_context.cache,
        ),
        compress=compress,
        sparse=sparse,
        threads=threads,
        in_order=in_order,
        rate=rate,
        offload=offload,
        reflink=reflink,
        salvage=salvage is not None,
        bitmaps=bitmaps,
        skip_broken=skip_broken,
        digest=digest,
        verify=verify,
        resume=("" if resume else None) if isinstance(resume, bool) else resume,
        mark_every=mark_every,
        since=since,
        deterministic=("" if deterministic else None) if isinstance(deterministic, bool) else deterministic,
    )
    return perform(asked, context, target_context, progress=progress, cancel=cancel, damaged=salvage).digest


def perform(
    asked: Conversion,
    context: Context,
    target_context: Context,
    *,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
    damaged: Callable[[int, int, DiskmillError], None] | None = None,
) -> Converted:
    """Do what is *asked*, with the sources opened by *context* and the target by *target_context*; cache modes are
    theirs, and not those of *asked*.

    :param damaged: told of what ``salvage`` wrote as zeros: (guest offset, length, error).
    :raises DiskmillError: whatever went wrong.
    """
    if not context.habits.dash_is_a_file:
        asked = _with_pipes(asked)
    counter = Progress(progress)
    with ExitStack() as stack:
        work = _Work(asked, context, target_context, stack)
        ranges = None if asked.since is None else work.changed(asked.since, counter)
        counter.expect(0 if work.endless is not None else work.size if ranges is None else sum(n for _, n in ranges()))
        resumption = work.resumption
        if resumption is not None and resumption.finished():
            counter.advance(work.size)
            resumption.end()
            return Converted(asked.target.format, work.size)
        if asked.deterministic is not None:
            stack.enter_context(derived(work.seed(counter, cancel), _epoch()))
        target = work.existing(counter, cancel) if asked.target.existing else work.new()
        try:
            plan = work.plan(target, (damaged or _untold) if asked.salvage else None)
            copied_bitmaps.add_empty(work.bitmaps, target, context)
            watched = _Watched(work.size, work.images, asked.digest, asked.verify, stack)
            if asked.verify:
                counter.expect(work.size)
                watched.watchers.append(_Behind(target))
            limit = RateLimit(asked.rate)
            if work.endless is not None:
                from .unsized import copy_unsized

                copy_unsized(work.endless, target, plan, target_context, counter, limit, cancel)
            elif resumption is not None:
                resumption.copy(target, plan, progress=counter, limit=limit, cancel=cancel, watchers=watched.watchers)
            else:
                copy(
                    work.images,
                    target,
                    plan,
                    progress=counter,
                    limit=limit,
                    cancel=cancel,
                    watchers=watched.watchers,
                    ranges=None if ranges is None else ranges(),
                )
            for image in work.images:
                drain(image)
            made = watched.found
            if asked.verify:
                watched.verify(target, counter, cancel)
            for bitmap in work.bitmaps:
                calls.bitmap(context.registry, target, "merge", bitmap.name, source=bitmap)
                if bitmap.enabled:
                    calls.bitmap(context.registry, target, "enable", bitmap.name)
            counter.phase("finish")
            if asked.target.existing:
                target.close()
            else:
                target.settle()
        except BaseException:
            if asked.target.existing:  # what was written stays: its tables shall fit, and it be marked as closed
                target.close_after_failure()
                target_context.warn(f"'{asked.target.name}' is incomplete: the conversion into it did not finish")
            else:
                target.abandon()
            raise
        target.close()
        if resumption is not None:
            resumption.end()
        return Converted(target.driver.name, work.size, made, work.zeros)


class _Work:
    """The opened sources of what is *asked*, and the ways to its target. All refusals come before the first write."""

    def __init__(self, asked: Conversion, context: Context, target_context: Context, stack: ExitStack) -> None:
        self.asked = asked
        self.context = context
        self.target_context = target_context
        self.stack = stack
        self.snapshot = asked.sources[0].snapshot
        self.options = dict(asked.target.options)
        # A backing image that is given as an option is one all the same: what stays in it must not be copied as zeros.
        self.backing = self.options.pop("backing_file", None) or asked.target.backing
        self.backing_format = self.options.pop("backing_fmt", None) or asked.target.backing_format
        self.images = [self._opened(one) for one in asked.sources]
        if len(self.images) > 1 and self.backing is not None:  # given as an option
            both = said("snapshot and backing", "a snapshot (-l) and a backing image (-B)")
            raise UsageError(f"several images make one disk only without {both}")
        if not asked.target.image_opts:
            refuse_self(self.images, asked.target.name, context.registry)
        self.bitmaps = self._bitmaps() if asked.bitmaps else []
        self.shared: Image | None = None  # by default everything is copied
        self.shared_size: int | None = None
        self.size = sum(image.size for image in self.images)
        self.zeros = Zeros(True, "new") if asked.target.zeroed == AUTO else None
        self.resumption: Resumption | None = None
        if asked.resume is not None:
            from .resumption import Resumption

            self.resumption = Resumption(asked, self.images, context, target_context)
        self.endless = self._endless() if any(image.file.forward for image in self.images) else None

    def _endless(self) -> Image | None:
        """The source whose size nobody knows; the target then is begun with what is copied first."""
        from .unsized import FIRST, expect_growing, refuse

        endless = next((image for image in self.images if image.unsized), None)
        if endless is not None:
            asked = self.asked
            beforehand = asked.target.existing or self.backing is not None or asked.digest is not None or asked.verify
            refuse(self.images, beforehand)
            expect_growing(self.context.registry.format(asked.target.format), endless)
            self.size = FIRST
        return endless

    def _opened(self, source: Source) -> Image:
        other = self.asked.target.existing or self.asked.target.format != "raw"  # as raw it stays what it is
        image = open_image(
            source.name,
            source.format,
            context=self.context,
            image_opts=source.image_opts,
            copied=other,
            unsized=True,
        )
        self.stack.enter_context(image)
        if source.snapshot is not None:
            load_snapshot(image, source.snapshot, self.context)
        return image

    def seed(self, counter: Progress, cancel: threading.Event | None) -> bytes:
        """What ids follow from: a text that was given, or the digest of the disk."""
        if self.asked.deterministic:
            return self.asked.deterministic.encode()
        if any(one.forward for one in self._leaves()):
            given = said("deterministic=TEXT", "--deterministic=TEXT")
            text = f"its digest cannot be known beforehand: give a text for ids ({given})"
            raise UsageError(text, file=self.images[0].name)
        from ..engine.digest import Digester, scan

        counter.expect(self.size)
        digester = Digester(self.size, meter=Meter(*self.images))
        scan(self.images, [digester], progress=counter, cancel=cancel)
        return bytes.fromhex(digester.hexdigest())

    def changed(self, since: str, counter: Progress) -> Ranges:
        """The ranges of the source that have changed *since* then."""
        from .changes import changed_since

        return changed_since(since, self.images[0], self.asked.sources[0], self.context, self.stack, counter)

    def _bitmaps(self) -> list[Bitmap]:
        """The bitmaps of the source that are copied."""
        image, target, context = self.images[0], self.asked.target, self.context
        found = bitmaps_of(image, context)
        if not found and "bitmaps" not in image.driver.capabilities:
            raise UnsupportedError("the source's format has no persistent bitmaps", file=image.name)
        if not found and not copied_bitmaps.can_have(image, context):
            raise UnsupportedError(
                "the source's version of the format has no persistent bitmaps", file=self.asked.sources[0].name
            )
        if not target.image_opts and "bitmaps" not in context.registry.format(target.format).capabilities:
            raise UnsupportedError(f"format '{target.format}' does not support persistent bitmaps", file=target.name)
        return copied_bitmaps.sound(found, self.asked.skip_broken, image, context)

    def existing(self, counter: Progress, cancel: threading.Event | None) -> Image:
        """The target, which is there, and takes what is asked."""
        asked = self.asked.target
        named = None if asked.image_opts else asked.format  # an option string names its driver itself

        def opened(repair: str = "") -> Image:
            context = self.target_context if self.resumption is None else self.resumption.context
            return open_image(
                asked.name, named, context=context, writable=True, image_opts=asked.image_opts, repair=repair
            )

        target = opened() if self.resumption is None else self.resumption.existing(opened)
        try:
            self._refuse_existing(target)
            if self.backing is not None and target.backing is not None and _empty(target):
                self.shared = shared_base(self.images[0], target.backing, self.snapshot)
                self.shared_size = target.backing.size
            for image in self.images:
                refuse_unreadable(image, self.context)
            _refuse_compression(self.asked.compress, target)
            copied_bitmaps.refuse(self.asked.bitmaps, self.bitmaps, target, self.context)
            begun = self.resumption is not None and self.resumption.begun
            if asked.zeroed == AUTO:
                self.zeros = Zeros(False, "resumed") if begun else _found(target, self.size, counter, cancel)
            elif asked.zeroed and not begun:
                _refuse_data(target, self.size)
        except BaseException:
            target.close()
            raise
        return target

    def _refuse_existing(self, target: Image) -> None:
        name = self.asked.target.name
        if storage_of(target).identity() in identities(self.images):
            raise UsageError("the output is also an input", file=name)
        if target.size < self.size:
            raise UsageError(f"it holds {target.size} bytes, but {self.size} are to be written", file=name)
        if self.backing is not None and target.backing is None:
            backing = said("backing", "-B")
            raise UsageError(f"it has no backing image for what the source leaves to its own ({backing})", file=name)

    def new(self) -> Image:
        """The target, made."""
        asked, registry = self.asked.target, self.context.registry
        base = _backing(self.stack, self.backing, self.backing_format, asked.name, self.context)
        if base is not None:
            self.shared, self.shared_size = shared_base(self.images[0], base, self.snapshot), base.size
        resumption = self.resumption
        target = create_image(
            asked.name,
            asked.format,
            self.size,
            self.options,
            context=self.target_context if resumption is None else resumption.context,
            backing=None
            if base is None
            else Backing(
                written_name(str(self.backing), new_place(asked.name, registry), registry),
                self.backing_format or base.driver.name,
                base.size,
                base.details(),
            ),
            compressed=self.asked.compress,
            layout=self._layout if self._foreseen() else None,
            inputs=identities([*self.images, *([base] if base is not None else ())]),
            unfinished=None if resumption is None else resumption.make,
            growing=self.endless is not None,
        )
        if base is not None:  # what a unit of the target holds beside the source's data comes from there
            target.attach(Reference("backing", str(self.backing)), base)
        return target

    def _foreseen(self) -> bool:
        """Whether the sources can be looked through beforehand, and are all that the target will have."""
        return self.backing is None and not self.bitmaps and not any(one.forward for one in self._leaves())

    def _leaves(self) -> Iterator[Storage]:
        for image in self.images:
            yield from image.leaves()

    def _layout(self) -> Iterator[tuple[int, int]]:
        """The ranges of the target that will be written."""
        at = 0
        for image in self.images:
            for extent in walk(image, 0, image.size):
                if not extent.reads_as_zeros:
                    yield at + extent.start, extent.length
            at += image.size

    def _zeroed(self, target: Image) -> bool:
        """Whether all of *target* reads as zeros before anything is copied, so that zeros need not be."""
        asked = self.asked.target
        if not asked.existing:
            return target.blank and self.backing is None
        if self.zeros is not None:
            return self.zeros.zeros
        if asked.zeroed:
            return True
        alone = self.backing is None and target.backing is None  # what is left to a base is the base's for good
        return alone and not self.asked.compress and known_blank(target, self.size)

    def plan(self, target: Image, salvage: Callable[[int, int, DiskmillError], None] | None) -> CopyPlan:
        """How to copy into *target*, once nothing speaks against it; and what the copy will not have is told."""
        asked, context = self.asked, self.context
        _refuse_compression(asked.compress, target)
        compress = asked.compress and not _stays_uncompressed(target, context)
        _tell_sectors(self.images, target, context)
        for image in self.images:
            _tell_left_out(image, context, bitmaps=not asked.bitmaps, snapshots=self.snapshot is None)
        copied_bitmaps.refuse(asked.bitmaps, self.bitmaps, target, context)
        ordered = comes_in_order(self.images)
        return CopyPlan(
            sparse=CopyPlan.sparse if asked.sparse is None else asked.sparse,
            zeroed=self._zeroed(target),
            compress=compress,
            in_order=asked.in_order,
            shared=self.shared,
            shared_size=self.shared_size,
            offload=asked.offload and asked.reflink != "never",  # where the kernel can share, its copies do
            reflink=asked.reflink or ("auto" if asked.offload else "never"),
            threads=min(asked.threads or 2, 2) if ordered else asked.threads,
            one_by_one=ordered,
            salvage=salvage,
        )


def comes_in_order(images: Sequence[Image]) -> bool:
    """Whether one of *images* is read in order, as its bytes come: then one thread reads on, while another writes what
    it has read."""
    ordered = [one.file for one in images if one.file.forward and "stream" not in one.driver.capabilities]
    for file in ordered:
        if isinstance(file, ForwardStorage):
            file.keep(NEAR)
    return bool(ordered)


def _epoch() -> int:
    """What ``SOURCE_DATE_EPOCH`` says (https://reproducible-builds.org/specs/source-date-epoch/), or 1970."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise UsageError(f"SOURCE_DATE_EPOCH is a number of seconds after 1970, not '{text}'")
    return int(text)


def _untold(offset: int, length: int, error: DiskmillError) -> None:
    """What is salvaged, where nobody asks how much."""


def _with_pipes(asked: Conversion) -> Conversion:
    """*asked*, with ``-`` as what it stands for."""
    sources, target = asked.sources, asked.target
    if any(one.name == "-" and not one.image_opts for one in sources):
        sources = tuple(replace(one, name=PIPE) if one.name == "-" else one for one in sources)
    if target.name == "-" and not target.image_opts:
        target = replace(target, name=PIPE)
    return (
        asked if (sources, target) == (asked.sources, asked.target) else replace(asked, sources=sources, target=target)
    )


class _Watched:
    """What looks on at a copy of *size* bytes: a digest that was asked for, and what the output is verified by."""

    def __init__(
        self, size: int, sources: Sequence[Image], algorithm: str | None, verify: bool, stack: ExitStack
    ) -> None:
        self.watchers: list[Watcher] = []
        self._size = size
        self._digester: Digester | None = None
        if algorithm is not None:
            from ..engine.digest import Digester

            self._digester = Digester(size, algorithm, meter=Meter(*sources))
            self.watchers.append(self._digester)
        if verify:  # an eighth of a thousandth of the disk, on disk rather than in memory
            import tempfile

            from ..engine.digest import BLOCK, Checks, Digester
            from .digest import BlockFile

            self._recorded = stack.enter_context(tempfile.TemporaryFile(prefix="diskmill-"))  # noqa: SIM115
            zero = Digester(0, Checks).zero
            put = BlockFile(self._recorded, zero).put
            self.watchers.append(Digester(size, Checks, BLOCK, put, meter=Meter(*sources)))

    @property
    def found(self) -> str | None:
        """The digest, where it was asked for; all was copied."""
        return None if self._digester is None else self._digester.hexdigest()

    def verify(self, target: Image, counter: Progress, cancel: threading.Event | None) -> None:
        """See that *target* reads as what was copied.

        :raises ImageError: it does not.
        """
        from .digest import verify

        target.flush()
        for storage in target.leaves():
            storage.forget()
        verify(target, self._size, self._recorded, progress=counter, cancel=cancel)


class _Behind:
    """Looks on at a copy that will be flushed and read back: what was written is on its way to the disk meanwhile."""

    def __init__(self, target: Image) -> None:
        self._leaves = list(target.leaves())
        self._waiting = 0
        self._lock = threading.Lock()

    def data(self, start: int, view: memoryview) -> None:
        self._waiting += len(view)
        if self._waiting >= BEHIND and self._lock.acquire(blocking=False):
            try:
                self._waiting = 0
                for storage in self._leaves:
                    storage.write_behind()
            finally:
                self._lock.release()

    def zeros(self, start: int, length: int) -> None:
        """What is left out is nothing to write."""

    def shared(self, start: int, length: int) -> None:
        """Nor is what is left to the backing image."""


def _tell_left_out(image: Image, context: Context, *, bitmaps: bool, snapshots: bool) -> None:
    """Warn of what *image* has beside its disk, which a copy of the disk does not."""
    left: list[str] = []
    with suppress(DiskmillError):  # what is damaged there does not concern the disk
        if snapshots and "snapshots" in image.driver.capabilities:
            count = len(calls.snapshots(context.registry, image))
            left += [f"{count} internal snapshot{'s' * (count > 1)} (-l)"] if count else []
        if bitmaps and "bitmaps" in image.driver.capabilities:
            count = len(calls.bitmaps(context.registry, image))
            left += [f"{count} bitmap{'s' * (count > 1)} (--bitmaps)"] if count else []
    if left:
        context.warn(f"'{image.name}': left out of the copy: {' and '.join(left)}")


def _tell_sectors(images: Sequence[Image], target: Image, context: Context) -> None:
    """Warn where the guest will count other sectors: the numbers in partition tables then mean other places."""
    for image in images:
        if image.sector_size != target.sector_size:
            context.warn(
                f"'{image.name}' has sectors of {image.sector_size} bytes, the output has {target.sector_size}: "
                "partition tables count sectors, so a guest may find none"
            )


def _refuse_compression(compress: bool, target: Image) -> None:
    if compress and "compression" not in target.driver.capabilities:
        raise UnsupportedError(f"format '{target.driver.name}' does not support compression", file=target.name)


def _found(target: Image, size: int, counter: Progress, cancel: threading.Event | None) -> Zeros:
    """Whether *target* reads as zeros, as far as it will be written, and how that is known."""
    if all(extent.reads_as_zeros for extent in walk(target, 0, size)):
        return Zeros(True, "status")
    counter.phase("look for data in the target")
    found = glimpsed_data(target, size)
    if found is None:
        found = first_data(target, 0, end=size, cancel=cancel)
    counter.phase("convert")
    return Zeros(found is None, "reading", found)


def _refuse_data(target: Image, size: int) -> None:
    """Refuse a target that visibly does not read as zeros: what it holds would shine through the copy's zeros."""
    found = glimpsed_data(target, size)
    if found is not None:
        raise UsageError(
            f"it does not read as zeros (at offset {found}), so --target-is-zero is wrong", file=target.name
        )


def _stays_uncompressed(target: Image, context: Context) -> bool:
    """Whether the data is stored as it is, since *target* is of a subformat that cannot have it compressed, and callers
    are used to that; a warning tells it. A disk without clusters is an error all the same."""
    if not context.habits.incompressible_is_plain or target.cluster_size is None:
        return False
    try:
        target.encoder()
    except UnsupportedError as error:
        context.warn(f"{error}; the data is stored uncompressed")
        return True
    return False


def _backing(stack: ExitStack, name: str | None, format: str | None, output: str, context: Context) -> Image | None:
    """The backing image *name* of *output*; a relative name is relative to the output's folder."""
    if name is None:
        return None
    spec = relative_to(parse_name(name), new_place(output, context.registry))
    try:
        return stack.enter_context(open_image(spec, format, context=replace(context, opened=None)))
    except DiskmillError as error:
        error.place = error.place or f"needed as the backing file of '{output}'"
        raise


def _empty(target: Image) -> bool:
    """Whether *target* leaves everything to its backing image."""
    return all(extent.kind is Kind.HOLE for extent in target.extents(0, target.size))
