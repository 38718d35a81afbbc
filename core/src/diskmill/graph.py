"""The image graph: from a name to opened nodes.

Storage is opened first, a format driver on top, and then what the image refers to, through the gate.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from .context import Context
from .drivers import FormatDriver, ProtocolDriver
from .errors import DiskmillError, DriverError, ImageError, UnsupportedError, UsageError
from .known import PACKAGES, SCHEMES, recognise
from .names import CHILDREN, Spec, child_options, display, flatten, parse_name, parse_options, relative_to
from .node import Image, Node, Storage
from .options import validate
from .references import Reference
from .requests import OpenRequest

if TYPE_CHECKING:
    from .siblings import Siblings

PROBE_BYTES = 4096
"""How much of a file format drivers see when they probe."""
MAX_CHAIN = 200
"""How many images may stand on one another. Real chains have a handful."""
MAX_FILES = 4096
"""How many files one image may need in all. Images of many extents that each have many extents would never end."""


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
        return opener.image(spec, writable=writable)
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
        self.home: str | None = None
        self.chain: list[object] = []
        self.files = 0

    def image(self, spec: Spec, *, writable: bool, depth: int = 0) -> Image:
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
        file = self.node(child, writable=writable, depth=depth)
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
            self.attach(image, spec, depth)
        except BaseException:
            image.abandon()
            raise
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

    def node(self, spec: Spec, *, writable: bool, depth: int) -> Node:
        registry = self.context.registry
        name = spec.get("driver")
        if name is None and "file" not in spec and "filename" in spec:
            name = "file"
        if not isinstance(name, str) or "file" in spec:
            return self.image(spec, writable=writable, depth=depth)
        try:
            driver = registry.protocol(name)
        except DriverError:
            if SCHEMES.get(name, name) in PACKAGES:
                raise
            raise DriverError(f"unknown protocol '{name}'", file=str(spec.get("filename", ""))) from None
        self.files += 1
        if self.files > MAX_FILES:
            raise ImageError(f"more than {MAX_FILES} files are needed to open it")
        where = str(spec.get("filename", ""))
        options = flatten({key: value for key, value in spec.items() if key not in ("driver", "filename")})
        request = OpenRequest(
            name=where,
            context=self.context,
            options=validate(driver.options, options, when="open", driver=driver.name),
            writable=writable and not self.rehearse,
            shallow=self.shallow,
        )
        storage = cast("Storage | None", registry.call(driver, "open", request=request))
        if storage is None:
            raise DriverError(f"protocol driver '{name}' cannot open anything", file=where)
        if self.rehearse and writable:
            from .rehearsal import Rehearsal

            return Rehearsal(storage)
        return storage

    def attach(self, image: Image, spec: Spec, depth: int) -> None:
        """Open what *image* refers to: what the user put in *spec* instead comes first."""
        if self.shallow:
            self.attach_extents(image, depth)
            return
        references = list(image.references)
        roles = {reference.role for reference in references}
        for role in ("backing", "data-file"):
            if spec.get(role) is not None and role not in roles:
                references.append(Reference(role, ""))
        with self.standing_on(image):
            for reference in references:
                if reference.role == "backing" and not self.backing:
                    continue
                if reference.role in spec:
                    given = spec[reference.role]
                    if given is None:
                        continue
                    target = parse_name(given) if isinstance(given, str) else child_options(given)
                else:
                    target = self.admitted(image, reference)
                self.attached(image, reference, self.referred(image, reference, target, depth))

    def attached(self, image: Image, reference: Reference, node: Node) -> None:
        """Let *image* have *node*, or nobody: what it does not take is not left open, and locked."""
        try:
            image.attach(reference, node)
        except BaseException:
            node.abandon()
            raise

    @contextmanager
    def standing_on(self, image: Image) -> Iterator[None]:
        """What is opened meanwhile is what *image* stands on, so it cannot be the image again."""
        identity = storage_of(image).identity()
        if identity is not None and identity in self.chain:
            raise ImageError("the backing chain is a loop: the image stands on itself", file=image.name)
        self.chain.append(identity)
        try:
            yield
        finally:
            self.chain.pop()

    def attach_extents(self, image: Image, depth: int) -> None:
        """Open the files that are part of *image* itself, as far as they can be: they too tell what it is."""
        with self.standing_on(image):
            for reference in image.references:
                if reference.role != "extent":
                    continue
                try:
                    node = self.referred(image, reference, self.admitted(image, reference), depth)
                    self.attached(image, reference, node)
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

    def referred(self, image: Image, reference: Reference, target: Spec, depth: int) -> Node:
        backing = reference.role == "backing"
        if depth >= MAX_CHAIN:
            raise ImageError(f"the backing chain is longer than {MAX_CHAIN} images", file=image.name)
        writable = image.writable and (self.writable_backing if backing else reference.writable)
        try:
            if reference.storage:
                child = child_options(target.get("file", target))
                node = self.node(child, writable=writable, depth=depth + 1)
            else:
                if reference.format is not None:
                    target.setdefault("driver", reference.format)
                node = self.image(target, writable=writable, depth=depth + 1)
        except DiskmillError as error:
            if reference.name and error.file != image.name and error.place is None:
                error.place = f"needed as the {reference.role} file of '{image.name}'"
            raise
        identity = storage_of(node).identity()
        if reference.storage and identity is not None and identity in self.chain:
            node.abandon()
            raise ImageError(f"the {reference.role} file is the image itself", file=image.name)
        return node
