"""The gate: every file that an *image* asks us to open passes here.

A name that the user typed is theirs to give. A name that stands inside an image is a stranger's: a policy decides.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import RefusedError
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
        self.folders = None if folders is None else [os.path.realpath(folder) for folder in folders]
        self.own = own

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Trust:
        """The policy that ``--trust`` values name: ``nothing``, ``folder``, ``anything``, or folders' paths."""
        if "anything" in texts:
            return ANYTHING
        folders = [text for text in texts if text not in ("nothing", "folder")]
        return cls(folders, own="folder" in texts)

    def admit(self, spec: Mapping[str, Any], *, image: str, reference: str, home: str | None) -> dict[str, Any]:
        """*spec*, the parsed *reference* of the file *image*, with its file names resolved, if it may be opened.

        Nothing is opened to find out.

        :param home: the folder of the image that the user named.
        :raises RefusedError: the policy forbids it; the message names the reference and the option.
        """
        if self.folders is None:
            return dict(spec)
        own = os.path.realpath(home) if self.own and home is not None else None
        for leaf in _leaves(spec):
            why = self._objection(leaf, own)
            if why is not None:
                shown = reference if len(reference) <= _SHOWN else reference[:_SHOWN] + "…"
                raise RefusedError(
                    f"refers to '{shown}', which was not opened: {why} (allow it with {OPTION})", file=image
                )
        return _resolved(spec)

    def _objection(self, leaf: Mapping[str, Any], own: str | None) -> str | None:
        """What speaks against opening the node *leaf*; None: nothing."""
        if any(isinstance(leaf.get(role), str) for role in CHILDREN):
            return "a node is named without its protocol"
        if leaf.get("driver", "file") != "file":
            return f"protocol '{str(leaf.get('driver'))[:_SHOWN]}' is not trusted"
        name = leaf.get("filename")
        if not isinstance(name, str):
            return "it is not a file name"
        try:
            path = os.path.realpath(name)
            inside = self._inside(path, own)
            mode = os.stat(path).st_mode if inside else 0
        except OSError as error:
            # What is missing, or cannot be reached, is for opening it to say.
            return "it is not a possible file name" if error.errno == errno.ENAMETOOLONG else None
        except ValueError:  # a NUL character, or one that no file name can hold
            return "it is not a possible file name"
        if not inside:
            return "it lies outside the trusted folders"
        return None if stat.S_ISREG(mode) else "it is not a regular file"

    def _inside(self, path: str, own: str | None) -> bool:
        if own == "/":  # all the machine lies below: an image there may only name its neighbours
            if os.path.dirname(path) == own:
                return True
        elif own is not None and os.path.commonpath((own, path)) == own:
            return True
        return any(os.path.commonpath((folder, path)) == folder for folder in self.folders or ())


NOTHING = Trust()
"""Open nothing that an image asks for."""
FOLDER = Trust(own=True)
"""Open what lies in, or below, the folder of the image that the user named. The default."""
ANYTHING = Trust(None)
"""Open whatever an image asks for, as qemu-img does."""


def _leaves(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every node in *spec* that something is opened for by itself: all but those that stand on a ``file`` node."""
    if not isinstance(spec.get("file"), Mapping) or any(isinstance(spec.get(role), str) for role in CHILDREN):
        yield spec
    for value in spec.values():
        if isinstance(value, Mapping):
            yield from _leaves(value)


def _resolved(spec: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        key: _resolved(value) if isinstance(value, Mapping) else value for key, value in spec.items()
    }
    if result.get("driver", "file") == "file" and "filename" in result:
        # The name that was judged is the one that is opened, and no symbolic link that was put there meanwhile.
        result["filename"] = os.path.realpath(str(result["filename"]))
        result["follow"] = False
    return result
