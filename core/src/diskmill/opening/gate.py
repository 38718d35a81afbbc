"""The gate: everything that an *image* asks us to open passes here.

A name that the user typed is theirs to give. A name that stands inside an image is a stranger's: a policy decides. It
goes by places (:mod:`diskmill.contract.place`), so it holds for every protocol.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..contract.drivers import FilterDriver
from ..contract.place import Place
from ..errors import DiskmillError, ImageError, RefusedError, StorageError, UsageError, said
from ..storages.file.place import real_folder
from .names import DEVICES, new_file
from .places import place_of
from .registry import Registry
from .spec import node_spec

OPTION = "--trust"
_SHOWN = 200
"""Characters of a reference that a message shows."""


class Trust:
    """What the references inside images may open.

    :param folders: the folders, by name, that may hold it (with all that is below them): paths, or URLs of other
        protocols; None: anything goes.
    :param own: whether the folder of the image that the user named counts as one of them.
    """

    def __init__(self, folders: Sequence[str] | None = (), *, own: bool = False) -> None:
        self.folders = None if folders is None else tuple(folders)
        self.own = own
        self._places: tuple[Place, ...] | None = None

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Trust:
        """The policy that ``--trust`` values name: ``nothing``, ``folder``, ``anything``, or folders' names."""
        if "anything" in texts:
            return ANYTHING
        folders = [text for text in texts if text not in ("nothing", "folder")]
        # Where a link leads now is what is trusted, not where it leads when the first reference is judged.
        folders = [real_folder(text) or text for text in folders]
        return cls(folders, own="folder" in texts)

    @classmethod
    def of(cls, given: Trust | str | Sequence[str]) -> Trust:
        """*given*, or the policy that the word or folder *given*, or several of them, name.

        :raises UsageError: it is none of the words, no folder and no URL.
        """
        if isinstance(given, Trust):
            return given
        several = isinstance(given, Iterable) and not isinstance(given, str | os.PathLike)
        texts: list[str] = []
        for one in given if several else [given]:
            text = os.fspath(one) if isinstance(one, str | os.PathLike) else ""
            if text not in ("nothing", "folder", "anything") and "://" not in text and real_folder(text) is None:
                raise UsageError(
                    f"trust is 'nothing', 'folder', 'anything', a folder that exists or the URL of one, not {one!r}"
                )
            texts.append(text)
        return cls.parse(texts)

    @property
    def anything(self) -> bool:
        """Whether an image's word counts as the user's."""
        return self.folders is None

    def admit(
        self,
        spec: Mapping[str, Any],
        *,
        image: str,
        reference: str,
        home: Place | None,
        registry: Registry,
        format: str | None = None,
    ) -> dict[str, Any]:
        """*spec*, the parsed *reference* of the file *image*, with its places resolved, if it may be opened.

        Nothing is opened to find out.

        :param home: the folder of the image that the user named, resolved.
        :param format: the driver that will open it where *spec* names none.
        :raises RefusedError: the policy forbids it; the message names the reference and the option.
        """
        if self.folders is None:
            return dict(spec)
        if self._places is None:  # resolved once: what their names lead to may change
            self._places = tuple(place_of(new_file(name), registry).resolved() for name in self.folders)
        try:
            return self._admitted(spec, home if self.own else None, registry, format)
        except UsageError as error:
            raise ImageError(f"refers to '{reference[:_SHOWN]}': {error.cause}", file=image) from None
        except _Objection as why:
            shown = reference if len(reference) <= _SHOWN else reference[:_SHOWN] + "…"
            raise RefusedError(
                f"refers to '{shown}', which was not opened: {why} (allow it with {said('trust', OPTION)})", file=image
            ) from None

    def _admitted(
        self, spec: Mapping[str, Any], own: Place | None, registry: Registry, format: str | None = None
    ) -> dict[str, Any]:
        """*spec*, with its places as they were judged: they are resolved once, and opened as such.

        :param format: the driver that will open it where *spec* names none.
        :raises _Objection: something speaks against opening a node of it.
        :raises UsageError: it contradicts itself.
        """
        name = spec.get("driver")
        if isinstance(name, str) and registry.has(FilterDriver.group, name):
            raise _Objection(f"filter '{name[:_SHOWN]}' is not trusted")  # who knows what else it opens
        driver, options, children = node_spec(spec, registry, default=format)
        if any(isinstance(child, str) for child in children.values()):
            raise _Objection("a node is named without its protocol")
        result = dict(options) if driver is None else {"driver": driver, **options}
        if not isinstance(children.get("file"), Mapping):  # it stands on no node: it is one that is opened
            place = self._judged(spec, own, registry)
            result.update(place=place, filename=place.display())
        for role, child in children.items():
            result[role] = self._admitted(child, own, registry) if isinstance(child, Mapping) else child
        return result

    def _judged(self, leaf: Mapping[str, Any], own: Place | None, registry: Registry) -> Place:
        """Where *leaf* is to be opened.

        :raises _Objection: it may not be.
        """
        protocols = {place.driver.name for place in self._places or ()} | ({own.driver.name} if own else set())
        driver = str(leaf.get("driver", "file"))
        try:
            place = place_of(leaf, registry)
            if place.driver.name not in {"file", *protocols} or driver in DEVICES:
                raise _Objection(f"protocol '{driver[:_SHOWN]}' is not trusted")
            if "place" not in leaf and place.driver.name == "file" and not isinstance(leaf.get("filename"), str):
                raise _Objection("it is not a file name")
            place = place.resolved()
        except StorageError as error:
            raise _Objection(error.cause) from None
        except DiskmillError:
            raise _Objection(f"protocol '{driver[:_SHOWN]}' is not trusted") from None
        if not self._inside(place, own):
            raise _Objection("it lies outside the trusted folders")
        why = place.objection()
        if why is not None:
            raise _Objection(why)
        return place

    def _inside(self, place: Place, own: Place | None) -> bool:
        if own is not None and place.within(own):
            if own.folder() is not None:
                return True
            above = place.folder()  # all the machine, or all of a server, lies below: only neighbours may be named
            if above is not None and above.display() == own.display():
                return True
        return any(place.within(folder) for folder in self._places or ())


NOTHING = Trust()
"""Open nothing that an image asks for."""
FOLDER = Trust(own=True)
"""Open what lies in, or below, the folder of the image that the user named. The default."""
ANYTHING = Trust(None)
"""Open whatever an image asks for, as qemu-img does."""


class _Objection(Exception):
    """Why a file is not opened."""
