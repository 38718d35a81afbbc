"""The gate: every file that an *image* asks us to open passes here.

A name that the user typed is theirs to give. A name that stands inside an image is a stranger's: a policy decides.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RefusedError
from ..storages.file.paths import resolved, within
from .names import CHILDREN

OPTION = "--trust"
_SHOWN = 200
"""Characters of a reference that a message shows."""


class Trust:
    """Which files the references inside images may open.

    :param folders: the folders (with all that is below them) that may hold them; None: anything goes, any protocol.
    :param own: whether the folder of the image that the user named counts as one of them.
    """

    def __init__(self, folders: Sequence[str] | None = (), *, own: bool = False) -> None:
        self.folders = None if folders is None else [resolved(folder) for folder in folders]
        self.own = own

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Trust:
        """The policy that ``--trust`` values name: ``nothing``, ``folder``, ``anything``, or folders' paths."""
        if "anything" in texts:
            return ANYTHING
        folders = [text for text in texts if text not in ("nothing", "folder")]
        return cls(folders, own="folder" in texts)

    @property
    def anything(self) -> bool:
        """Whether an image's word counts as the user's."""
        return self.folders is None

    def admit(self, spec: Mapping[str, Any], *, image: str, reference: str, home: str | None) -> dict[str, Any]:
        """*spec*, the parsed *reference* of the file *image*, with its file names resolved, if it may be opened.

        Nothing is opened to find out.

        :param home: the folder of the image that the user named, without links in its path.
        :raises RefusedError: the policy forbids it; the message names the reference and the option.
        """
        if self.folders is None:
            return dict(spec)
        own = home if self.own else None
        try:
            return self._admitted(spec, own)
        except _Objection as why:
            shown = reference if len(reference) <= _SHOWN else reference[:_SHOWN] + "…"
            raise RefusedError(
                f"refers to '{shown}', which was not opened: {why} (allow it with {OPTION})", file=image
            ) from None

    def _admitted(self, spec: Mapping[str, Any], own: str | None) -> dict[str, Any]:
        """*spec*, with the names of its files as they were judged: they are resolved once, and opened as such.

        :raises _Objection: something speaks against opening a node of it.
        """
        result = dict(spec)
        if _is_opened(spec):
            result.update(self._file(spec, own))
        for key, value in spec.items():
            if isinstance(value, Mapping):
                result[key] = self._admitted(value, own)
        return result

    def _file(self, leaf: Mapping[str, Any], own: str | None) -> dict[str, Any]:
        """How the file *leaf* is to be opened.

        :raises _Objection: it is none, or may not be.
        """
        if any(isinstance(leaf.get(role), str) for role in CHILDREN):
            raise _Objection("a node is named without its protocol")
        if leaf.get("driver", "file") != "file":
            raise _Objection(f"protocol '{str(leaf.get('driver'))[:_SHOWN]}' is not trusted")
        name = leaf.get("filename")
        if not isinstance(name, str):
            raise _Objection("it is not a file name")
        try:
            path = resolved(name)
        except ValueError:  # a NUL character, or one that no file name can hold
            raise _Objection("it is not a possible file name") from None
        except OSError as error:  # something on the way was exchanged just then
            raise _Objection(f"it cannot be found: {error.strerror}") from None
        if not self._inside(path, own):
            raise _Objection("it lies outside the trusted folders")
        try:
            if not stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
                raise _Objection("it is not a regular file")
        except OSError as error:
            # What is missing, or cannot be reached, is for opening it to say.
            if error.errno == errno.ENAMETOOLONG:
                raise _Objection("it is not a possible file name") from None
        return {"filename": path, "follow": False}

    def _inside(self, path: str, own: str | None) -> bool:
        if own == "/":  # all the machine lies below: an image there may only name its neighbours
            if os.path.dirname(path) == own:
                return True
        elif own is not None and within(own, path):
            return True
        return any(within(folder, path) for folder in self.folders or ())


NOTHING = Trust()
"""Open nothing that an image asks for."""
FOLDER = Trust(own=True)
"""Open what lies in, or below, the folder of the image that the user named. The default."""
ANYTHING = Trust(None)
"""Open whatever an image asks for, as qemu-img does."""


class _Objection(Exception):
    """Why a file is not opened."""


def _is_opened(spec: Mapping[str, Any]) -> bool:
    """Whether something is opened for the node *spec* by itself: for all but those that stand on a ``file`` node."""
    return not isinstance(spec.get("file"), Mapping) or any(isinstance(spec.get(role), str) for role in CHILDREN)
