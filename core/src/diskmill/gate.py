"""The gate: every file that an *image* asks us to open passes here.

A name that the user typed is theirs to give. A name that stands inside an image is a stranger's: a policy decides.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .errors import RefusedError

OPTION = "--trust"


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
        allowed = [*self.folders, *([os.path.realpath(home)] if self.own and home is not None else [])]
        for leaf in _leaves(spec):
            if leaf.get("driver") != "file":
                raise self._refusal(image, reference, f"protocol '{leaf.get('driver')}' is not trusted")
            path = os.path.realpath(str(leaf.get("filename", "")))
            if not any(os.path.commonpath((folder, path)) == folder for folder in allowed):
                raise self._refusal(image, reference, "it lies outside the trusted folders")
            try:
                mode = os.stat(path).st_mode
            except OSError:
                continue  # opening it will say so
            if not stat.S_ISREG(mode):
                raise self._refusal(image, reference, "it is not a regular file")
        return _resolved(spec)

    def _refusal(self, image: str, reference: str, why: str) -> RefusedError:
        return RefusedError(
            f"refers to '{reference}', which was not opened: {why} (allow it with {OPTION})", file=image
        )


NOTHING = Trust()
"""Open nothing that an image asks for."""
FOLDER = Trust(own=True)
"""Open what lies in, or below, the folder of the image that the user named. The default."""
ANYTHING = Trust(None)
"""Open whatever an image asks for, as qemu-img does."""


def _leaves(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    children = [value for value in spec.values() if isinstance(value, Mapping)]
    if not children:
        yield spec
    for child in children:
        yield from _leaves(child)


def _resolved(spec: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        key: _resolved(value) if isinstance(value, Mapping) else value for key, value in spec.items()
    }
    if result.get("driver") == "file" and "filename" in result:
        # The name that was judged is the one that is opened: no symbolic link can be swapped in between.
        result["filename"] = os.path.realpath(str(result["filename"]))
    return result
