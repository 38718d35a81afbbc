"""The image graph: from a name to opened nodes.

Storage is opened first, a format driver on top, and then what the image refers to, through the gate.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..contract import calls
from ..contract.drivers import PROBE_BYTES, FilterDriver, FormatDriver, ProtocolDriver
from ..contract.limits import Account, LimitError
from ..contract.node import Image, Node, Storage
from ..contract.options import validate
from ..contract.place import Place
from ..contract.references import Reference
from ..contract.requests import OpenRequest
from ..errors import (
    ClosedError,
    DiskmillError,
    DriverError,
    ImageError,
    StorageError,
    UnsupportedError,
    UsageError,
    said,
    said_raw,
)
from ..records import record, replace
from ..storages.fileobj import lent
from .context import Context
from .known_drivers import BUNDLES, no_disk, recognise
from .names import Spec, child_options, display, flatten, parse_name, parse_options, relative_to
from .places import expect_device, place_of, place_under, protocol_of, storage_of
from .registry import Registry
from .runtime import split_runtime, without_runtime
from .spec import NodeSpec, node_spec

if TYPE_CHECKING:
    from .siblings import Siblings


def open_image(
    name: str | Mapping[str, Any],
    format: str | None = None,
    *,
    context: Context,
    writable: bool = False,
    shallow: bool = False,
    backing: bool = True,
    writable_backing: bool = False,
    image_opts: bool = False,
    repair: str = "",
    rehearse: bool = False,
    copied: bool = False,
    unsized: bool = False,
) -> Image:
    """Open the image that the user calls *name*.

    :param name: a path, ``protocol:…``, ``json:{…}``, with *image_opts* an option string, or node options.
    :param format: the driver's name; None: probe.
    :param shallow: only metadata will be asked; nothing that the image refers to is opened.
    :param backing: whether to open the backing chain.
    :param writable_backing: open the chain for writing too (commit does).
    :param repair: it is opened to be repaired; see :class:`~diskmill.contract.requests.OpenRequest`.
    :param copied: its bytes will be another image's disk, so what is no disk is refused unless *format* is given.
    :param unsized: it may be a disk whose size is not known before its end; otherwise that is refused.
    :param rehearse: what is written to it is kept aside and forgotten: nothing reaches its files, which are only read.
    :raises DiskmillError: whatever went wrong, in one line.
    """
    image = lent(name)
    if image is not None:
        _refuse_lent(image, format, writable=writable, repair=repair, rehearse=rehearse)
        return image.lend()
    try:
        spec = _spec(name, format, image_opts, context)
        if writable and not rehearse and context.share:
            raise UsageError(
                f"an image that other processes may write ({said('share', '-U')}) can only be read",
                file=_shown(spec, context),
            )
        opener = _Opener(
            context,
            shallow=shallow,
            backing=backing,
            writable_backing=writable_backing,
            repair=repair,
            rehearse=rehearse,
            copied=copied,
            unsized=unsized,
        )
        image = opener.graph(spec, _Wish(context, writable))
    except RecursionError:
        raise ImageError("what it stands on is nested too deeply", file=_told(name, context)) from None
    except DiskmillError as error:
        error.opening = _told(name, context)
        raise
    if context.opened is not None:
        context.opened(image)
    return image


def _refuse_lent(image: Image, format: str | None, *, writable: bool, repair: str, rehearse: bool) -> None:
    """Refuse for *image*, which the caller has open, what takes opening it anew."""
    if image.closed:
        raise ClosedError("the image was closed", file=image.name)
    if format is not None and format != image.driver.name:
        raise UsageError(f"format '{format}' contradicts the image, which is {image.driver.name}", file=image.name)
    if writable and not image.writable:
        raise UsageError("the image is open for reading only", file=image.name)
    if repair or rehearse:
        raise UsageError("an image is opened to be repaired: give its name", file=image.name)


def _spec(name: str | Mapping[str, Any], format: str | None, image_opts: bool, context: Context) -> Spec:
    """The node options of the image *name*, whose format is *format*."""
    if isinstance(name, str):
        spec = parse_options(name) if image_opts else parse_name(name)
    else:
        spec = dict(name)
    if format is not None:
        if spec.get("driver", format) != format:
            raise UsageError(f"format '{format}' contradicts driver '{spec['driver']}'", file=_shown(spec, context))
        spec["driver"] = format
    return spec


def _told(name: str | Mapping[str, Any], context: Context) -> str:
    """*name* as the user gave it, for a message: without credentials."""
    if isinstance(name, str) and "://" not in name:
        return name
    try:
        return _shown(parse_name(name) if isinstance(name, str) else dict(name), context)
    except DiskmillError:  # what cannot be parsed cannot be stripped either
        return str(name)[:8] + "…"


def _shown(spec: Spec, context: Context) -> str:
    """*spec* for a message: without credentials."""
    return display(without_runtime(spec, context.registry))


def chain_of(image: Image | None) -> Iterator[Image]:
    """*image*, its backing image, that one's, and so on."""
    while image is not None:
        yield image
        image = image.backing


def refuse_unreadable(image: Image, context: Context) -> None:
    """Refuse an image that cannot be read to its end, as far as drivers know beforehand.

    :raises ImageError: a VMDK does not stand on the parent that it was made for, say.
    """
    for one in chain_of(image):
        calls.preflight(context.registry, one, "read")


def inside_bundle(spec: Spec, registry: Registry) -> Spec:
    """*spec* of a file; where it names a folder that stands for an image, of the file in there that describes it."""
    if spec.get("driver", "file") != "file" or not isinstance(spec.get("filename"), str):
        return spec
    found = place_of(spec, registry).bundled(BUNDLES)
    return spec if found is None else {**spec, "filename": found.display()}


def guess_format(node: Node, context: Context, *, writable: bool = False, copied: bool = False) -> FormatDriver:
    """The driver for what *node* holds, by probing; a warning where it looks like a format whose driver is missing, or
    like what is no disk.

    :param copied: its bytes will be made a disk of another image.
    :raises DriverError: no driver knows it, or it would be written or copied as raw but looks like something else.
    """
    data = node.read(0, min(PROBE_BYTES, node.size))
    driver = context.registry.probe(data, node.name)
    if driver is not None and "archive" in driver.capabilities and context.habits.archives_are_bytes:
        driver = context.registry.format("raw")
    if driver is None or driver.name == "raw":
        looks = recognise(data, node.name)
        if looks is not None and looks != "raw" and not context.registry.has(FormatDriver.group, looks):
            why = context.registry.why_missing(FormatDriver.group, looks)
            if writable:
                raise DriverError(f"it looks like {looks} ({said_raw()} writes it as it is): {why}", file=node.name)
            context.warn(f"'{node.name}' looks like {looks}, but it is read as raw: {why}")
        other = no_disk(data, node.name)
        if other is not None:
            if (writable or copied) and not context.habits.anything_is_a_disk:
                text = f"it is {other}, and no disk ({said_raw()} takes its bytes as they are)"
                raise DriverError(text, file=node.name)
            context.warn(f"'{node.name}' is {other}, and no disk: its bytes are taken as they are")
    if driver is None:
        raise DriverError(f"its format is not known; name one with {said('format', '-f')}", file=node.name)
    return driver


@record(frozen=True)
class _Above:
    """An image that another one is opened for, and what that stands on itself: the way up to the top."""

    identity: object
    above: _Above | None


@record(frozen=True)
class _Wish:
    """How a node is to be opened.

    :ivar context: the settings, as the node above it hands them down.
    :ivar depth: how deep it lies below the image that the user named.
    :ivar above: what it is opened for.
    :ivar purpose: what for, in words, for messages.
    :ivar told: whether it is an image that says so, and not the user.
    """

    context: Context
    writable: bool
    depth: int = 0
    above: _Above | None = None
    purpose: str | None = None
    told: bool = False


@record(frozen=True)
class _Job:
    """An image whose references are still to be opened: the nodes below that were given, and how it was opened."""

    image: Image
    children: Spec
    wish: _Wish


class _Opener:
    def __init__(
        self,
        context: Context,
        *,
        shallow: bool,
        backing: bool,
        writable_backing: bool,
        repair: str,
        rehearse: bool,
        copied: bool,
        unsized: bool,
    ) -> None:
        self.registry = context.registry
        self.copied = copied
        self.unsized = unsized
        self.repair = repair
        self.rehearse = rehearse
        self.shallow = shallow
        self.backing = backing
        self.writable_backing = writable_backing
        self.limits = context.budget.limits
        self.home: Place | None = None
        """The folder of the image that the user named, where it was opened."""
        self.files = 0
        self.jobs: list[_Job] = []

    def graph(self, spec: Spec, wish: _Wish) -> Image:
        """The image, and all that it refers to. A chain of images is as long as it likes: nothing here recurses."""
        first = len(self.jobs)
        top = self.image(spec, wish)
        try:
            while len(self.jobs) > first:
                job = self.jobs.pop()
                try:
                    self.attach(job)
                except DiskmillError as error:
                    if job.wish.purpose is not None and error.place is None:
                        error.place = job.wish.purpose
                    beyond = isinstance(error, LimitError)
                    if not self.shallow or not job.wish.depth and not beyond:
                        raise
                    wish.context.warn(str(error))  # what an image is can be told without its extents
                    if beyond:
                        del self.jobs[first:]
        except BaseException:
            top.abandon()
            raise
        return top

    def image(self, spec: Spec, wish: _Wish) -> Image:
        """The image, opened; what it refers to is a job for later."""
        name, registry = spec.get("driver"), self.registry
        bare = isinstance(name, str) and "file" not in spec and registry.has(ProtocolDriver.group, name)
        if bare or isinstance(name, str) and registry.has(FilterDriver.group, name):
            spec = {"driver": "raw", "file": spec}  # a protocol or a filter without a format: its bytes as they are
        name, options, children = node_spec(spec, registry)
        runtime, options = split_runtime(options)
        wish = replace(wish, context=runtime.context(wish.context))
        if children.get("file") is not None:
            child = child_options(children["file"])
        elif "filename" in options:
            child = {"driver": "file"}
            child.update({key: options.pop(key) for key in ("filename", "follow") if key in options})
        else:
            raise UsageError("the option 'file' is missing: name the file with file.filename=…")
        if not wish.depth:  # what an image names was judged by the gate as it is
            child = inside_bundle(child, registry)
        runtime.allow(wish.writable, str(child.get("filename", "")))
        if name is not None:
            registry.format(name)  # before anything is opened
        file = self.node(child, wish)
        if isinstance(file, Storage):
            if self.unsized and not wish.depth and not wish.context.habits.archives_are_bytes and name != "raw":
                file = self.unwrapped(file)
            if file.forward and wish.context.spool is not None:
                file = self.spooled(file, wish.context.spool)
        try:
            expect_device(name, file, wish.context)
            if self.home is None and (place := place_under(file)) is not None:
                self.home = place.folder()
            image = self.opened((name, options, children), file, wish)
            image.discards, image.detect_zeroes = runtime.discards, runtime.detect_zeroes
        except BaseException:
            file.abandon()
            raise
        try:
            if file.conflict is not None and image.window is None:
                raise file.conflict
        except BaseException:
            image.abandon()
            raise
        self.jobs.append(_Job(image, children, wish))
        return image

    def opened(self, spec: NodeSpec, file: Node, wish: _Wish) -> Image:
        """The image in *file*, by the driver that *spec* names, or by the one that knows it."""
        name, options, children = spec
        context, writable = wish.context, wish.writable
        if name is not None:
            driver = self.registry.format(name)
        else:
            driver = guess_format(file, context, writable=writable, copied=self.copied and not wish.depth)
            if driver.name == "raw" and wish.depth == 0 and writable and not self.rehearse:
                context.warn_of_guess(file.name)
        request = OpenRequest(
            name=file.name,
            context=context,
            file=file,
            options=validate(driver.options, options, when="open", driver=driver.name),
            writable=writable,
            shallow=self.shallow,
            repair="" if wish.depth else self.repair,
            guessed=name is None or (wish.told and not context.trust.anything),
            child=lambda role: self.given(children, role, wish),
            siblings=self.siblings(file, context) if writable else None,
        )
        if writable and "write" not in driver.capabilities:
            raise UnsupportedError(f"format '{driver.name}' can only be read", file=file.name)
        if file.forward and "pipe" not in driver.capabilities:
            from ..kit.forward import needs_copy

            text = f"format '{driver.name}' cannot be read from {file.one_pass}: {needs_copy()}"
            raise UnsupportedError(text, file=file.name)
        image = calls.open_image(self.registry, driver, request)
        if image.unsized and (wish.depth or not self.unsized):
            from ..kit.forward import needs_copy

            text = f"nobody knows the size of a disk that comes from {file.one_pass} like this: {needs_copy()}"
            raise UnsupportedError(text, file=file.name)
        return image

    @staticmethod
    def unwrapped(file: Storage) -> Storage:
        """What is inside of *file*, where that is a compressed file; otherwise *file*."""
        from ..storages.compressed import Compressed, compression_of

        try:
            found = compression_of(file.read_some(0, 16))
        except BaseException:
            file.abandon()
            raise
        return file if found is None else Compressed(file, found)

    @staticmethod
    def spooled(file: Storage, folder: str) -> Storage:
        """A temporary copy of *file*, which can be read anywhere."""
        from ..storages.spool import Spool

        try:
            copy = Spool(file, folder, writable=False)
        except BaseException:
            file.abandon()
            raise
        try:
            copy.fill()
        except BaseException:
            copy.abandon()
            raise
        return copy

    def siblings(self, file: Node, context: Context) -> Siblings | None:
        if not isinstance(file, Storage):
            return None
        from .siblings import Siblings

        return Siblings(file, context, rehearse=self.rehearse)

    def given(self, children: Spec, role: str, wish: _Wish) -> Node | None:
        """The node below that the user gave for *role*, opened without a format. Its driver took it: it is not there
        to be attached."""
        target = children.pop(role, None)
        if target is None:
            return None
        target = child_options(target)
        return self.node(child_options(target.get("file", target)), replace(wish, depth=wish.depth + 1, above=None))

    def node(self, spec: Spec, wish: _Wish) -> Node:
        """Storage, a filter, or an image, as *spec* says."""
        name = spec.get("driver")
        if name is None and "file" not in spec and "filename" in spec:
            name = "file"
        if isinstance(name, str) and self.registry.has(FilterDriver.group, name):
            return self.filter(spec, self.registry.filter(name), wish)
        if not isinstance(name, str) or "file" in spec:
            return self.graph(spec, wish)
        return self.storage(spec, name, wish)

    def storage(self, spec: Spec, name: str, wish: _Wish) -> Storage:
        """The storage that the protocol called *name* has."""
        driver = protocol_of(name, self.registry, shown=str(spec.get("filename", "")))
        self.files += 1
        if self.files > self.limits.files:
            raise LimitError(f"more than {self.limits.files} files are needed to open it (--limits files=… raises it)")
        runtime, options = split_runtime(
            flatten({key: value for key, value in spec.items() if key not in ("driver", "place")})
        )
        place = spec.get("place")
        if not isinstance(place, Place):
            place = driver.place(options)
        options.pop("filename", None)
        writable = wish.writable and not self.rehearse
        runtime.allow(writable, place.display())
        request = OpenRequest(
            name=place.display(),
            context=runtime.context(wish.context),
            options=validate(driver.options, options, when="open", driver=driver.name),
            writable=writable,
            shallow=self.shallow,
            place=place,
        )
        storage = calls.open_storage(self.registry, driver, request)
        storage.charged = Account(wish.context.budget)
        storage.discards = runtime.discards
        try:
            expect_device(name, storage, wish.context)
        except BaseException:
            storage.abandon()
            raise
        if storage.place is None:
            storage.place = place
        if self.rehearse and wish.writable:
            from ..storages.rehearsal import Rehearsal

            return Rehearsal(storage)
        return storage

    def filter(self, spec: Spec, driver: FilterDriver, wish: _Wish) -> Node:
        """The filter that *driver* puts over the nodes below."""
        typed = spec.get("filename")
        if isinstance(typed, str):
            spec = {key: value for key, value in spec.items() if key != "filename"} | dict(driver.named(typed))
        _, own, below = node_spec(spec, self.registry)
        for role in driver.children:
            if not role.endswith(".*") and below.get(role) is None:
                raise UsageError(f"filter '{driver.name}' needs the option '{role}': a node that it stands on")
        runtime, options = split_runtime(own)
        context = runtime.context(wish.context)
        runtime.allow(wish.writable, driver.name)
        checked = validate(driver.options, options, when="open", driver=driver.name)
        nodes: dict[str, Node] = {}
        try:
            for role, child in below.items():
                nodes[role] = self.node(child_options(child), replace(wish, context=context, depth=wish.depth + 1))
            file = next(iter(nodes.values()), None)
            request = OpenRequest(
                name=driver.name if file is None else file.name,
                context=context,
                file=file,
                options=checked,
                writable=wish.writable,
                shallow=self.shallow,
                children=nodes,
            )
            opened = calls.open_storage(self.registry, driver, request)
            if isinstance(typed, str):
                opened.name = typed
            return opened
        except BaseException:
            for node in nodes.values():
                node.abandon()
            raise

    def attach(self, job: _Job) -> None:
        """Open what an image refers to: what the user gave instead comes first."""
        image, children = job.image, job.children
        wish = replace(job.wish, above=self.standing_on(image, job.wish.above))
        if self.shallow:
            self.attach_extents(image, wish)
            return
        references = list(image.references)
        roles = {reference.role for reference in references}
        for role, given in children.items():
            if role != "file" and given is not None and role not in roles:
                references.append(Reference(role, ""))
        first = len(self.jobs)
        files: dict[str, Node] = {}
        for reference in references:
            if reference.role == "backing" and not self.backing:
                continue
            if reference.role not in children:
                known = len(image.references)
                self.attach_named(image, reference, replace(wish, told=reference.role == "backing"), files)
                references += image.references[known:]  # what it took may name more
                continue
            given = children[reference.role]
            if given is not None:
                target = parse_name(given) if isinstance(given, str) else child_options(given)
                self.attached(image, reference, self.referred(image, reference, target, replace(wish, told=False)))
        self.jobs[first:] = reversed(self.jobs[first:])  # the first one is looked into first

    def attach_named(self, image: Image, reference: Reference, wish: _Wish, files: dict[str, Node]) -> None:
        """Open what *image* names, and let it have that. A file that it names again to read from it is opened once.

        :param files: the files that were opened so.
        """
        once = reference.storage and not (image.writable and reference.writable)
        known = files.get(reference.name) if once else None
        if known is not None:
            image.attach(reference, known)
            image.remap()
            return
        node = self.referred(image, reference, self.admitted(image, reference, wish), wish)
        self.attached(image, reference, node)
        if once and node is not None:
            files[reference.name] = node

    def attached(self, image: Image, reference: Reference, node: Node | None) -> None:
        """Let *image* have *node*, or nobody: what it does not take is not left open, and locked."""
        if node is None:
            return
        try:
            image.attach(reference, node)
            image.remap()
        except BaseException:
            node.abandon()
            raise
        if isinstance(node, Image) and reference.role != "backing":  # a part of it: who reads the one reads the other
            node.readers.join(image.readers)

    def standing_on(self, image: Image, above: _Above | None) -> _Above:
        """The way up from what *image* refers to; that cannot be the image again."""
        identity = storage_of(image).identity()
        if identity is not None and _stands_on(above, identity):
            raise ImageError("the backing chain is a loop: the image stands on itself", file=image.name)
        return _Above(identity, above)

    def attach_extents(self, image: Image, wish: _Wish) -> None:
        """Open the files that are part of *image* itself, as far as they can be: they too tell what it is."""
        files: dict[str, Node] = {}
        for reference in image.references:
            if reference.role != "extent":
                continue
            try:
                self.attach_named(image, reference, wish, files)
            except LimitError:
                raise
            except DiskmillError as error:
                if wish.context.habits.all_extents_are_there:
                    raise
                wish.context.warn(str(error))

    def admitted(self, image: Image, reference: Reference, wish: _Wish) -> Spec:
        """What *reference* names, if the trust policy lets it be opened."""
        storage = storage_of(image.file)
        if storage.forward:
            raise ImageError(
                f"it needs the {reference.role} file '{reference.name[:200]}', and nothing lies beside "
                f"{storage.one_pass}: give that file too, with --image-opts and {reference.role}.file.filename=…",
                file=image.name,
            )
        try:
            target = relative_to(parse_name(reference.name), storage.place)
        except DiskmillError as error:
            raise ImageError(f"{reference.role} file: {error.cause}", file=image.name) from None
        return wish.context.trust.admit(
            target,
            image=image.name,
            reference=reference.name,
            home=self.home,
            registry=self.registry,
            format=None if reference.storage else reference.format,
        )

    def referred(self, image: Image, reference: Reference, target: Spec, wish: _Wish) -> Node | None:
        """What *image* refers to, opened as *target* says; *wish* is that of the image. None: it need not be there."""
        backing = reference.role == "backing"
        if wish.depth >= self.limits.chain:
            raise LimitError(
                f"the backing chain is longer than {self.limits.chain} images (--limits chain=… raises it)",
                file=image.name,
            )
        purpose = f"needed as the {reference.role} file of '{image.name}'" if reference.name else None
        wish = replace(
            wish,
            writable=image.writable and (self.writable_backing if backing else reference.writable),
            depth=wish.depth + 1,
            purpose=purpose,
        )
        try:
            if reference.storage:
                node = self.node(child_options(target.get("file", target)), wish)
            else:
                if reference.format is not None:
                    target.setdefault("driver", reference.format)
                node = self.image(target, wish)
        except DiskmillError as error:
            if reference.optional and isinstance(error, StorageError) and error.errno == errno.ENOENT:
                return None
            if purpose is not None and error.file != image.name and error.place is None:
                error.place = purpose
            raise
        identity = storage_of(node).identity()
        if reference.storage and identity is not None and _stands_on(wish.above, identity):
            node.abandon()
            raise ImageError(f"the {reference.role} file is the image itself", file=image.name)
        return node


def _stands_on(above: _Above | None, identity: object) -> bool:
    """Whether *identity* is one of the images on the way up."""
    while above is not None:
        if above.identity == identity:
            return True
        above = above.above
    return False
