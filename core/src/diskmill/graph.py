"""The image graph: from a name to opened nodes.

Storage is opened first, a format driver on top, and then what the image refers to, through the gate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .context import Context
from .drivers import FormatDriver, ProtocolDriver
from .errors import DiskmillError, DriverError, ImageError, UnsupportedError, UsageError
from .known import PACKAGES, recognise
from .limits import Account, LimitError
from .names import CHILDREN, Spec, child_options, display, flatten, parse_name, parse_options, relative_to
from .node import Image, Node, Storage
from .options import validate
from .references import Reference
from .requests import OpenRequest

if TYPE_CHECKING:
    from .siblings import Siblings

PROBE_BYTES = 4096
"""How much of a file format drivers see when they probe."""


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
) -> Image:
    """Open the image that the user calls *name*.

    :param name: a path, ``protocol:…``, ``json:{…}``, with *image_opts* an option string, or node options.
    :param format: the driver's name; None: probe.
    :param shallow: only metadata will be asked; nothing that the image refers to is opened.
    :param backing: whether to open the backing chain.
    :param writable_backing: open the chain for writing too (commit does).
    :param repair: it is opened to be repaired; see :class:`~diskmill.requests.OpenRequest`.
    :param rehearse: what is written to it is kept aside and forgotten: nothing reaches its files, which are only read.
    :raises DiskmillError: whatever went wrong, in one line.
    """
    if isinstance(name, str):
        spec = parse_options(name) if image_opts else parse_name(name)
    else:
        spec = dict(name)
    if format is not None:
        if spec.get("driver", format) != format:
            raise UsageError(f"format '{format}' contradicts driver '{spec['driver']}'", file=display(spec))
        spec["driver"] = format
    if writable and not rehearse and context.share:
        raise UsageError("an image that other processes may write (-U) can only be read", file=display(spec))
    opener = _Opener(
        context,
        shallow=shallow,
        backing=backing,
        writable_backing=writable_backing,
        repair=repair,
        rehearse=rehearse,
    )
    try:
        return opener.graph(spec, writable=writable)
    except RecursionError:
        raise ImageError("what it stands on is nested too deeply", file=display(spec)) from None


def storage_of(node: Node) -> Storage:
    """The storage at the bottom of *node*, following ``file``."""
    while not isinstance(node, Storage):
        node = cast(Image, node).file
    return node


def folder_of(node: Node) -> str | None:
    """The folder of the file at the bottom of *node*; None where it is not a file with a name."""
    storage = storage_of(node)
    if storage.driver.name != "file":
        return None
    return os.path.dirname(os.path.abspath(storage.name))


def guess_format(node: Node, context: Context, *, writable: bool = False) -> FormatDriver:
    """The driver for what *node* holds, by probing; a warning where it looks like a format whose driver is missing.

    :raises DriverError: no driver knows it, or it would be written as raw though it looks like something else.
    """
    data = node.read(0, min(PROBE_BYTES, node.size))
    driver = context.registry.probe(data, node.name)
    if driver is None or driver.name == "raw":
        looks = recognise(data, node.name)
        if looks is not None and looks != "raw" and not context.registry.has(FormatDriver.group, looks):
            why = context.registry.why_missing(FormatDriver.group, looks)
            if writable:
                raise DriverError(f"it looks like {looks} (-f raw writes it as it is): {why}", file=node.name)
            context.warn(f"'{node.name}' looks like {looks}, but it is read as raw: {why}")
    if driver is None:
        raise DriverError("its format is not known; name one with -f", file=node.name)
    return driver


class _Above(NamedTuple):
    """An image that another one is opened for, and what that stands on itself: the way up to the top."""

    identity: object
    above: _Above | None


class _Job(NamedTuple):
    """An image whose references are still to be opened: what the user gave for it, how deep it lies, what for."""

    image: Image
    spec: Spec
    depth: int
    above: _Above | None
    purpose: str | None


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
    ) -> None:
        self.context = context
        self.repair = repair
        self.rehearse = rehearse
        self.shallow = shallow
        self.backing = backing
        self.writable_backing = writable_backing
        self.limits = context.budget.limits
        self.home: str | None = None
        self.files = 0
        self.jobs: list[_Job] = []

    def graph(
        self,
        spec: Spec,
        *,
        writable: bool,
        depth: int = 0,
        above: _Above | None = None,
    ) -> Image:
        """The image, and all that it refers to. A chain of images is as long as it likes: nothing here recurses."""
        first = len(self.jobs)
        top = self.image(spec, writable=writable, depth=depth, above=above)
        try:
            while len(self.jobs) > first:
                job = self.jobs.pop()
                try:
                    self.attach(job)
                except DiskmillError as error:
                    if job.purpose is not None and error.place is None:
                        error.place = job.purpose
                    beyond = isinstance(error, LimitError)
                    if not self.shallow or not job.depth and not beyond:
                        raise
                    self.context.warn(str(error))  # what an image is can be told without its extents
                    if beyond:
                        del self.jobs[first:]
        except BaseException:
            top.abandon()
            raise
        return top

    def image(
        self,
        spec: Spec,
        *,
        writable: bool,
        depth: int = 0,
        above: _Above | None = None,
        purpose: str | None = None,
    ) -> Image:
        """The image, opened; what it refers to is a job for later."""
        name = spec.get("driver")
        registry = self.context.registry
        if name is not None and not isinstance(name, str):
            raise UsageError("the option 'driver' takes a name")
        if name is not None and "file" not in spec and registry.has(ProtocolDriver.group, name):
            spec = {"driver": "raw", "file": spec}  # a protocol without a format: its bytes as they are
            name = "raw"
        options = flatten({key: value for key, value in spec.items() if key not in ("driver", *CHILDREN)})
        if spec.get("file") is not None:
            child = child_options(spec["file"])
        elif "filename" in options:
            child = {"driver": "file"}
            child.update({key: options.pop(key) for key in ("filename", "follow") if key in options})
        else:
            raise UsageError("the option 'file' is missing: name the file with file.filename=…")
        if name is not None:
            registry.format(name)  # before anything is opened
        file = self.node(child, writable=writable, depth=depth, above=above)
        try:
            if self.home is None:
                self.home = folder_of(file)
            if name is not None:
                driver = registry.format(name)
            else:
                driver = guess_format(file, self.context, writable=writable)
            request = OpenRequest(
                name=file.name,
                context=self.context,
                file=file,
                options=validate(driver.options, options, when="open", driver=driver.name),
                writable=writable,
                shallow=self.shallow,
                repair="" if depth else self.repair,
                child=lambda role: self.given(spec, role, writable=writable, depth=depth),
                siblings=self.siblings(file) if writable else None,
            )
            if writable and "write" not in driver.capabilities:
                raise UnsupportedError(f"format '{driver.name}' can only be read", file=file.name)
            if isinstance(file, Storage) and file.forward and "pipe" not in driver.capabilities:
                raise UnsupportedError(f"format '{driver.name}' cannot be read from a pipe", file=file.name)
            image = cast("Image | None", registry.call(driver, "open", request=request))
            if image is None:
                raise DriverError(f"format driver '{driver.name}' cannot open images", file=file.name)
        except BaseException:
            file.abandon()
            raise
        try:
            if isinstance(file, Storage) and file.conflict is not None and image.window is None:
                raise file.conflict
        except BaseException:
            image.abandon()
            raise
        self.jobs.append(_Job(image, spec, depth, above, purpose))
        return image

    def siblings(self, file: Node) -> Siblings | None:
        if not isinstance(file, Storage):
            return None
        from .siblings import Siblings

        return Siblings(file, self.context, rehearse=self.rehearse)

    def given(self, spec: Spec, role: str, *, writable: bool, depth: int) -> Node | None:
        """The node below that the user gave for *role*, opened without a format."""
        target = spec.get(role)
        if target is None:
            return None
        target = child_options(target)
        return self.node(child_options(target.get("file", target)), writable=writable, depth=depth + 1)

    def node(self, spec: Spec, *, writable: bool, depth: int, above: _Above | None = None) -> Node:
        registry = self.context.registry
        name = spec.get("driver")
        if name is None and "file" not in spec and "filename" in spec:
            name = "file"
        if not isinstance(name, str) or "file" in spec:
            return self.graph(spec, writable=writable, depth=depth, above=above)
        try:
            driver = registry.protocol(name)
        except DriverError:
            if name in PACKAGES:
                raise
            raise DriverError(f"unknown protocol '{name}'", file=str(spec.get("filename", ""))) from None
        self.files += 1
        if self.files > self.limits.files:
            raise LimitError(f"more than {self.limits.files} files are needed to open it (--limits files=… raises it)")
        where = str(spec.get("filename", ""))
        options = {key: value for key, value in spec.items() if key not in ("driver", "filename")}
        request = OpenRequest(
            name=where,
            context=self.context,
            options=validate(driver.options, options, when="open", driver=name),
            writable=writable and not self.rehearse,
            shallow=self.shallow,
        )
        storage = cast("Storage | None", registry.call(driver, "open", request=request))
        if storage is None:
            raise DriverError(f"protocol driver '{name}' cannot open anything", file=where)
        storage.charged = Account(self.context.budget)
        if self.rehearse and writable:
            from .rehearsal import Rehearsal

            return Rehearsal(storage)
        return storage

    def attach(self, job: _Job) -> None:
        """Open what an image refers to: what the user gave instead comes first."""
        image, spec = job.image, job.spec
        above = self.standing_on(image, job.above)
        if self.shallow:
            self.attach_extents(image, job.depth, above)
            return
        references = list(image.references)
        roles = {reference.role for reference in references}
        for role in ("backing", "data-file"):
            if spec.get(role) is not None and role not in roles:
                references.append(Reference(role, ""))
        first = len(self.jobs)
        files: dict[str, Node] = {}
        for reference in references:
            if reference.role == "backing" and not self.backing:
                continue
            if reference.role in spec:
                given = spec[reference.role]
                if given is None:
                    continue
                target = parse_name(given) if isinstance(given, str) else child_options(given)
            else:
                self.attach_named(image, reference, job.depth, above, files)
                continue
            self.attached(image, reference, self.referred(image, reference, target, job.depth, above))
        self.jobs[first:] = reversed(self.jobs[first:])  # the first one is looked into first

    def attach_named(
        self, image: Image, reference: Reference, depth: int, above: _Above, files: dict[str, Node]
    ) -> None:
        """Open what *image* names, and let it have that. A file that it names again to read from it is opened once.

        :param files: the files that were opened so.
        """
        once = reference.storage and not (image.writable and reference.writable)
        known = files.get(reference.name) if once else None
        if known is not None:
            image.attach(reference, known)
            return
        node = self.referred(image, reference, self.admitted(image, reference), depth, above)
        self.attached(image, reference, node)
        if once:
            files[reference.name] = node

    def attached(self, image: Image, reference: Reference, node: Node) -> None:
        """Let *image* have *node*, or nobody: what it does not take is not left open, and locked."""
        try:
            image.attach(reference, node)
        except BaseException:
            node.abandon()
            raise

    def standing_on(self, image: Image, above: _Above | None) -> _Above:
        """The way up from what *image* refers to; that cannot be the image again."""
        identity = storage_of(image).identity()
        if identity is not None and _stands_on(above, identity):
            raise ImageError("the backing chain is a loop: the image stands on itself", file=image.name)
        return _Above(identity, above)

    def attach_extents(self, image: Image, depth: int, above: _Above) -> None:
        """Open the files that are part of *image* itself, as far as they can be: they too tell what it is."""
        files: dict[str, Node] = {}
        for reference in image.references:
            if reference.role != "extent":
                continue
            try:
                self.attach_named(image, reference, depth, above, files)
            except LimitError:
                raise
            except DiskmillError as error:
                self.context.warn(str(error))

    def admitted(self, image: Image, reference: Reference) -> Spec:
        storage = storage_of(image.file)
        if storage.forward:
            raise ImageError(
                f"it needs the {reference.role} file '{reference.name[:200]}', and nothing lies beside a pipe: "
                f"give that file too, with --image-opts and {reference.role}.file.filename=…",
                file=image.name,
            )
        folder = folder_of(storage)
        if folder is None:
            folder = os.path.dirname(storage.name)
        try:
            target = relative_to(parse_name(reference.name), folder, protocol=storage.driver.name)
        except DiskmillError as error:
            raise ImageError(f"{reference.role} file: {error.cause}", file=image.name) from None
        return self.context.trust.admit(target, image=image.name, reference=reference.name, home=self.home)

    def referred(self, image: Image, reference: Reference, target: Spec, depth: int, above: _Above) -> Node:
        backing = reference.role == "backing"
        if depth >= self.limits.chain:
            raise LimitError(
                f"the backing chain is longer than {self.limits.chain} images (--limits chain=… raises it)",
                file=image.name,
            )
        writable = image.writable and (self.writable_backing if backing else reference.writable)
        purpose = f"needed as the {reference.role} file of '{image.name}'" if reference.name else None
        try:
            if reference.storage:
                child = child_options(target.get("file", target))
                node = self.node(child, writable=writable, depth=depth + 1, above=above)
            else:
                if reference.format is not None:
                    target.setdefault("driver", reference.format)
                node = self.image(target, writable=writable, depth=depth + 1, above=above, purpose=purpose)
        except DiskmillError as error:
            if purpose is not None and error.file != image.name and error.place is None:
                error.place = purpose
            raise
        identity = storage_of(node).identity()
        if reference.storage and identity is not None and _stands_on(above, identity):
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
