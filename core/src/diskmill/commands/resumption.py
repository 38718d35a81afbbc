"""``convert --resume``: outputs that are left unfinished, with a journal beside them, and gone on with later.

The journal says of the last mark: which conversion it is of, and of which sources, as they were; up to which guest
offset everything is in the output; and what of the output's file stands in the journal only
(:mod:`diskmill.storages.unfinished`). It is written after what it speaks of is on disk, and replaces the one before in
one step. Names and options stand in it as hashes, since they may hold credentials.
"""

from __future__ import annotations

import errno
import hashlib
import json
import posixpath
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..contract import calls
from ..contract.drivers import FormatDriver
from ..contract.limits import Meter
from ..contract.node import Image, Storage
from ..contract.options import validate
from ..contract.place import Place
from ..contract.requests import CreateRequest, OpenRequest
from ..engine.copy import CopyPlan, Watcher, copy
from ..engine.copy.tasks import in_a_row
from ..engine.digest import Digester, scan
from ..engine.progress import Progress, RateLimit
from ..errors import ImageError, StorageError, UnsupportedError, UsageError, said
from ..opening.context import Context
from ..opening.creation import expect_unfinished, new_storage
from ..opening.places import new_place, storage_of
from ..sizes import MiB
from ..storages.unfinished import PAGE, Unfinished
from .conversion import Conversion

DISTANCE = 252 * MiB
"""Bytes of data between two marks, unless told otherwise."""
_HELD = 24 * MiB
"""The same, where data is written below what is marked, and so is held in memory until the next mark."""
_ALIGN = 2 * MiB
_MAGIC = b"diskmill journal 1\n"
_MOST = 1 << 30
"""Bytes that no journal has."""
_SUM = 32


class _DamagedError(Exception):
    """What is there is no whole journal."""


@dataclass
class _Journal:
    """What one mark says.

    :param asked: a hash for each word of what is asked.
    :param states: of the files that are read; an empty one: nobody knows.
    :param at: everything before this guest offset is in the output.
    :param size: the output's file has these bytes, but for *pages*.
    :param least: the file has at least these bytes.
    :param identity: which file it is.
    :param seen: guest offset → digest of what was read before it, from the offset before, where no state is known.
    :param whole: the output is, and is about to get its name.
    """

    asked: dict[str, str]
    states: list[str]
    at: int = 0
    size: int = 0
    least: int = 0
    identity: str = ""
    seen: list[tuple[int, str]] = field(default_factory=list)
    whole: bool = False
    pages: dict[int, bytearray] = field(default_factory=dict)

    def packed(self) -> bytes:
        told = {key: value for key, value in vars(self).items() if key != "pages"} | {"pages": sorted(self.pages)}
        text = _MAGIC + json.dumps(told).encode() + b"\n" + b"".join(self.pages[one] for one in sorted(self.pages))
        return text + hashlib.sha256(text).digest()

    @classmethod
    def unpacked(cls, data: bytes) -> _Journal:
        """:raises _DamagedError: it is none."""
        text, check = data[:-_SUM], data[-_SUM:]
        if not text.startswith(_MAGIC) or hashlib.sha256(text).digest() != check:
            raise _DamagedError
        line, _, rest = text[len(_MAGIC) :].partition(b"\n")
        told = json.loads(line)
        numbers = told.pop("pages")
        if len(rest) != len(numbers) * PAGE:
            raise _DamagedError
        pages = {number: bytearray(rest[index * PAGE :][:PAGE]) for index, number in enumerate(numbers)}
        return cls(**told | {"pages": pages, "seen": [(at, digest) for at, digest in told["seen"]]})


class Resumption:
    """The output of *asked*, and its journal.

    :param images: what is read.
    :raises UsageError: what is asked cannot be gone on with.
    """

    def __init__(self, asked: Conversion, images: Sequence[Image], context: Context, target: Context) -> None:
        self.context = replace(target, cache="writeback") if target.cache == "unsafe" else target
        self._asked = asked
        self._refuse(images)
        self._images = images
        self._size = sum(image.size for image in images)
        states = [leaf.state() for image in images for leaf in image.leaves()]
        self._blind = None in states
        self._journal = _Journal(_hashes(asked, self._size), [state or "" for state in states])
        self._begun = False
        self._storage: Unfinished | None = None
        self._distance = asked.mark_every or DISTANCE
        self._align = _ALIGN
        self._place: Place | None = None

    @property
    def at(self) -> int:
        """Up to where the output has everything already."""
        return self._journal.at

    def _refuse(self, images: Sequence[Image]) -> None:
        asked, resume = self._asked, said("resume", "--resume")
        if asked.since is not None:
            raise UsageError(f"{said('since', '--since')} begins anew: {resume} does not go with it")
        if asked.target.existing and asked.target.backing is not None:
            raise UsageError(f"{resume} does not go with {said('existing and backing', '-n and -B')}")
        if not asked.target.existing:
            expect_unfinished(new_place(asked.target.name, self.context.registry))
        if asked.bitmaps or asked.salvage:
            both = said("bitmaps and salvage", "--bitmaps and --salvage")
            raise UsageError(f"{resume} does not go with {both}")
        for image in images:
            if any(leaf.forward for leaf in image.leaves()):
                raise UsageError(f"what only comes once, in order, cannot be read again ({resume})", file=image.name)
        if self.context.overwrite == "in-place":
            raise UsageError(f"{resume} does not go with {said('overwrite in-place', '--in-place')}")

    # -- the journal --------------------------------------------------------------------------------------------

    def _journal_place(self, *, device: bool) -> Place:
        name = self._asked.resume
        if name:
            return new_place(name, self.context.registry)
        target = self._asked.target
        if not (device or target.image_opts):
            output = new_place(target.name, self.context.registry).resolved()
            device = "unfinished" not in output.driver.capabilities
        if device or target.image_opts:
            text = f"there is no folder of its own: say where the journal is to be ({said('resume', '--resume=FILE')})"
            raise UsageError(text, file=target.name)
        return output.beside(posixpath.basename(output.display()) + ".part.journal")

    def _opened(self) -> Storage | None:
        place = self._place
        assert place is not None
        request = OpenRequest(name=place.display(), context=self.context, place=place)
        try:
            return calls.open_storage(self.context.registry, place.driver, request)
        except StorageError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _found(self) -> _Journal | None:
        """The journal that was left, of this conversion.

        :raises UsageError: it is of another, or the sources have changed since.
        :raises ImageError: it is no journal.
        """
        file = self._opened()
        if file is None:
            return None
        with file:
            try:
                if file.size > _MOST:
                    raise _DamagedError
                found = _Journal.unpacked(file.read(0, file.size))
            except (_DamagedError, ValueError, TypeError, KeyError):
                raise ImageError("it is no journal of a conversion, or damaged: remove it", file=file.name) from None
        again = f"remove '{self._place_name}' to begin anew"
        for word, value in self._journal.asked.items():
            if found.asked.get(word) != value:
                text = f"what was left unfinished was begun with another {word}: {again}"
                raise UsageError(text, file=self._asked.target.name)
        if found.states != self._journal.states:
            text = f"the source has changed since the conversion was begun: {again}"
            raise UsageError(text, file=self._images[0].name)
        return found

    @property
    def _place_name(self) -> str:
        return "" if self._place is None else self._place.display()

    def _write(self, journal: _Journal) -> None:
        assert self._place is not None
        file = new_storage(self._place, {}, self.context)
        try:
            file.write(0, journal.packed())
            file.flush()
            file.settle()
        finally:
            file.close()

    def _remove(self) -> None:
        file = self._opened() if self._place is not None else None
        if file is not None:
            with file:
                file.remove()

    # -- the output ---------------------------------------------------------------------------------------------

    def make(self, storage: Storage, driver: FormatDriver, request: CreateRequest) -> Image:
        """The output, made anew in *storage*, or as it was left there.

        :raises UnsupportedError: an image as it is wanted cannot be gone on with; nothing was written.
        """
        if "write" not in driver.capabilities:
            raise UnsupportedError(f"format '{driver.name}' cannot be gone on with", file=request.name)
        self._place = self._journal_place(device=storage.is_device)
        found = self._found()
        if found is not None and (found.identity != str(storage.identity()) or storage.size < found.least):
            self.context.warn(f"'{request.name}': what was left unfinished is not there any more: it is made anew")
            found = None
        if found is None:
            image = self._new(storage, driver, request)
        else:
            self._journal = found
            storage.go_on(found.size)
            self._storage = Unfinished(storage, found.pages)
            self._storage.marked()
            image = self._again(driver, request)
        wrapped = self._storage
        assert wrapped is not None
        wrapped.plain = image.window is not None
        if not wrapped.plain and storage.size >= image.size:
            self._distance = min(self._distance, _HELD)
        # A block that is set aside as a whole, and filled in part, would be held from the next mark on.
        self._align = max(_ALIGN, image.cluster_size or 1)
        wrapped.keep = self._keep_whole
        return image

    def _new(self, storage: Storage, driver: FormatDriver, request: CreateRequest) -> Image:
        self._remove()  # it speaks of what is not there
        storage.go_on(0)
        self._storage = request.file = Unfinished(storage)
        image = calls.create_image(self.context.registry, driver, request)
        try:
            if image.sequential:
                text = f"this kind of a '{driver.name}' image is written in one go, and cannot be gone on with"
                raise UnsupportedError(text, file=request.name)
            if image.window is not None and storage.is_device and driver.name != "raw":
                raise UnsupportedError("on a device it cannot be gone on with", file=request.name)
        except BaseException:
            image.abandon()
            raise
        self._journal.identity = str(storage.identity())
        return image

    def existing(self, opened: Callable[[str], Image]) -> Image:
        """The output, which was there before.

        :param opened: opens it; told how it is to be mended, as in ``OpenRequest.repair``.
        """
        self._place = self._journal_place(device=False)
        found = self._found()
        if found is not None:
            with opened("all") as image:
                if "repair" in image.driver.capabilities:  # space may have been taken that no table knew of yet
                    calls.check(self.context.registry, image, "all" if image.dirty else "leaks")
        image = opened("")
        try:
            storage = storage_of(image)
            self._place = self._journal_place(device=storage.is_device)
            identity = str(storage.identity())
            if found is not None and found.identity != identity:
                self.context.warn(f"'{self._asked.target.name}' is another one than before: it is written anew")
                found = None
            if found is not None:
                self._journal, self._begun = found, True
            self._journal.identity = identity
        except BaseException:
            image.close()
            raise
        self._align = max(_ALIGN, image.cluster_size or 1)
        return image

    @property
    def begun(self) -> bool:
        """Whether the output, one that was there before, holds some of the copy already."""
        return self._begun

    def _mend(self, image: Image) -> None:
        if image.dirty and "repair" in image.driver.capabilities:  # it says that somebody writes it; that is taken back
            calls.check(self.context.registry, image, "all")

    def _again(self, driver: FormatDriver, request: CreateRequest) -> Image:
        known = {one.name for one in driver.options if "open" in one.when}
        given = {key: value for key, value in self._asked.target.options.items() if key in known}
        options = validate(driver.options, given, when="open", driver=driver.name)
        again = OpenRequest(
            name=request.name,
            context=self.context,
            file=self._storage,
            options=options,
            writable=True,
            repair="all",
        )
        image = calls.open_image(self.context.registry, driver, again)
        self._mend(image)
        return image

    def copy(
        self,
        target: Image,
        plan: CopyPlan,
        *,
        progress: Progress,
        limit: RateLimit,
        cancel: threading.Event | None,
        watchers: Sequence[Watcher],
    ) -> None:
        """Copy what the output does not have yet, with marks."""
        images, at = self._images, self.at
        if at and (watchers or self._blind):
            self._look_again(progress, cancel, watchers)
        elif at:
            progress.advance(at)
        storage = self._storage
        if self._begun or storage is not None and storage.plain and (at or storage.base.is_device):
            plan = replace(plan, zeroed=False)  # what was written behind the mark is there still
        if storage is None and not self._begun:
            self._mark(target, 0)
        while at < self._size:
            end = self._next(at)
            digester = Digester(end - at, meter=Meter(*images)) if self._blind else None
            more: list[Watcher] = [] if digester is None else [_Shifted(digester, at)]
            copy(
                images,
                target,
                plan,
                source_offset=at,
                target_offset=at,
                length=end - at,
                progress=progress,
                limit=limit,
                cancel=cancel,
                watchers=[*watchers, *more],
            )
            at = end
            if digester is not None:
                self._journal.seen.append((at, digester.hexdigest()))
            if at < self._size:
                self._mark(target, at)

    def _look_again(self, progress: Progress, cancel: threading.Event | None, watchers: Sequence[Watcher]) -> None:
        """Show *watchers* what was copied before; and see that it is the same, where nothing else tells that.

        :raises UsageError: the source has changed.
        """
        at = 0
        for end, digest in self._journal.seen or [(self.at, "")]:
            digester = Digester(end - at, meter=Meter(*self._images))
            shown = [*watchers, _Shifted(digester, at)] if digest else watchers
            scan(self._images, shown, offset=at, length=end - at, progress=progress, cancel=cancel)
            if digest and digester.hexdigest() != digest:
                text = (
                    f"the source has changed since the conversion was begun: remove '{self._place_name}' to begin anew"
                )
                raise UsageError(text, file=self._images[0].name, place=f"before guest offset {end}")
            at = end

    def _next(self, at: int) -> int:
        """Where the next mark comes: as much data away as the distance says."""
        found = 0
        for extent in in_a_row(self._images, at, at, None, CopyPlan()):
            if not extent.reads_as_zeros:
                if found + extent.length >= self._distance:
                    end = extent.start + self._distance - found
                    return min(-(-end // self._align) * self._align, self._size)
                found += extent.length
        return self._size

    def _mark(self, target: Image, at: int) -> None:
        """Let what is there last, and say so."""
        target.flush()
        self._journal.at = at
        self._keep()

    def _keep(self) -> None:
        storage, journal = self._storage, self._journal
        if storage is None:  # the output is an image already, and was flushed
            self._write(journal)
            return
        storage.base.flush()
        journal.size, journal.least = storage.size, min(storage.base.size, storage.size)
        journal.pages = storage.pages
        self._write(journal)
        storage.marked()

    def _keep_whole(self) -> None:
        self._journal.at, self._journal.whole = self._size, True
        self._keep()

    def finished(self) -> bool:
        """Whether the output has its name already, and only the journal was left."""
        if self._asked.digest is not None or self._asked.verify or self._asked.target.existing:
            return False  # which nobody could tell of it
        output = new_place(self._asked.target.name, self.context.registry)
        identity = output.identity()
        if identity is None or output.objection() is not None:
            return False
        self._place = self._journal_place(device=False)
        file = self._opened()
        if file is None:
            return False
        with file, suppress(_DamagedError, ValueError, TypeError, KeyError):
            found = _Journal.unpacked(file.read(0, min(file.size, _MOST)))
            return found.whole and found.identity == str(identity) and found.asked == self._journal.asked
        return False

    def end(self) -> None:
        """The output has its name: nothing more will be gone on with."""
        with suppress(StorageError):  # the next conversion of the kind finds it, and takes it away
            self._remove()


class _Shifted:
    """Lets *digester* see what begins at guest offset *start* as if the disk began there."""

    def __init__(self, digester: Digester, start: int) -> None:
        self._digester = digester
        self._start = start

    def data(self, start: int, view: memoryview) -> None:
        self._digester.data(start - self._start, view)

    def zeros(self, start: int, length: int) -> None:
        self._digester.zeros(start - self._start, length)

    def shared(self, start: int, length: int) -> None:
        """What is left to the backing image is of files whose state is compared."""
        self._digester.zeros(start - self._start, length)


def _hashes(asked: Conversion, size: int) -> dict[str, str]:
    """A hash for each thing that the output depends on, by a word for it."""
    target = asked.target
    told: dict[str, Any] = {
        "source": [(one.name, one.format, one.snapshot, one.image_opts) for one in asked.sources],
        "size of the disk": size,
        "format": target.format,
        "set of options": sorted((key, str(value)) for key, value in target.options.items()),
        "target (-n)": asked.target.existing,
        "backing image": [target.backing, target.backing_format],
        "compression (-c)": asked.compress,
        "sparse size (-S)": asked.sparse,
        "order (-W)": asked.in_order,
    }
    return {word: hashlib.sha256(json.dumps(value).encode()).hexdigest() for word, value in told.items()}
