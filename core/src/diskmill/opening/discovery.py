"""Which drivers and plugins are installed: what stevedore found, remembered from one start to the next.

Importing stevedore, with the ``importlib.metadata`` that it stands on, takes as long as everything else that a start
does. So what it found is kept in a file of the user's cache folder, with what it depends on: the folders of the module
path and the lists of entry points in them, each with the time of its last change. Where any of that is different, or
the file is missing or anybody else's, stevedore is asked again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..records import record

GROUPS = (
    "diskmill.format",
    "diskmill.magic",
    "diskmill.protocol",
    "diskmill.prefix",
    "diskmill.filter",
    "diskmill.crypto",
    "diskmill.plugin",
    "diskmill.command",
)
"""The groups of entry points that diskmill has: drivers by kind, magics of formats, prefixes of protocols, plugins that
are no drivers, and commands."""
_LARGEST = 1 << 20
"""Bytes of the file that are looked at."""
_NAME = "entry-points-"
_PRIME = (1 << 32) - 5
"""What the module path's bytes are taken modulo of for a file's name: a checksum without an import."""
_KEPT = 20
"""How many files there are at most once one was written: module paths come and go with virtual environments."""


_Line = tuple[str, str, str]
"""A group, a name in it, and ``module:attribute``: what an entry point says."""


@record(frozen=True)
class EntryPoint:
    """An installed driver or plugin that is not imported yet; *value* is ``module:attribute``."""

    group: str
    name: str
    value: str

    def load(self) -> Any:
        """Import it."""
        module, _, attributes = self.value.partition("[")[0].strip().partition(":")
        found: Any = import_module(module)
        for attribute in attributes.split(".") if attributes else ():
            found = getattr(found, attribute)
        return found


def installed() -> list[EntryPoint]:
    """What there is under :data:`GROUPS`."""
    path, state = _path(), _state()
    found = _recall(path, state)
    if found is None:
        found = _search()
        _remember(path, state, found)
    return [EntryPoint(*line) for line in found]


def _search() -> list[_Line]:
    from importlib.metadata import entry_points

    from stevedore import NamedExtensionManager

    class Manager(NamedExtensionManager[Any]):
        """Looks for itself: what stevedore remembers tells no change within two minutes from none, is believed
        whoever wrote it, and cannot be had for a module path with names that are not UTF-8.
        """

        def list_entry_points(self) -> list[Any]:
            return list(entry_points(group=self.namespace))

    found: list[_Line] = []
    for group in GROUPS:
        manager = Manager(group, [])  # names of none: nothing is imported
        found += [(group, one.name, one.value) for one in manager.list_entry_points()]
    return list(dict.fromkeys(found))


def _state() -> str:
    """What the answer depends on."""
    facts: list[tuple[str, int]] = [(sys.prefix, sys.hexversion)]
    for folder in _folders():
        try:
            facts.append((folder, os.stat(folder or ".").st_mtime_ns))
            with os.scandir(folder or ".") as names:
                lists = [one.path for one in names if one.name.endswith((".dist-info", ".egg-info"))]
        except OSError:
            continue
        for path in sorted(lists):
            with contextlib.suppress(OSError):
                facts.append((path, os.stat(os.path.join(path, "entry_points.txt")).st_mtime_ns))
    return repr(facts)


def _folders() -> list[str]:
    """The module path, without what Python itself passes over (a ``Path``, say)."""
    return [one for one in sys.path if isinstance(one, str)]


def _path() -> str | None:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base) or not _is_ours(base):
        return None
    # One file for each module path, so that programs with different ones do not push each other out.
    number = int.from_bytes(os.fsencode("\n".join((sys.prefix, *_folders()))), "little") % _PRIME
    return os.path.join(base, "diskmill", f"{_NAME}{number:08x}")


def _is_ours(folder: str) -> bool:
    """Whether *folder*, or the one in which it would be made, belongs to this process's user.

    In another's home folder (sudo keeps HOME, at times) nothing is to be left that its owner cannot take away, and
    nothing written to where its owner's links lead.
    """
    while True:
        try:
            return os.stat(folder).st_uid == os.geteuid()
        except FileNotFoundError:
            folder = os.path.dirname(folder)
        except OSError:
            return False


def _recall(path: str | None, state: str) -> list[_Line] | None:
    """What was found when all was in *state*; None: nothing is known of that."""
    if path is None:
        return None
    try:
        with open(path, opener=_private, encoding="utf-8", errors="surrogateescape") as file:
            first, *rest = file.read(_LARGEST).splitlines()
            lines = [(group, name, value) for group, name, value in (line.split("\t") for line in rest)]
            return lines if first == state else None
    except (OSError, ValueError):  # missing, not ours, or damaged
        return None


def _private(path: str, flags: int) -> int:
    """Open a file that nobody but this process's user can have written: it decides what is imported."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        os.close(fd)
        raise PermissionError
    return fd


def _remember(path: str | None, state: str, found: Sequence[_Line]) -> None:
    words = [state, *("\t".join(one) for one in found)]
    if path is None or any("\n" in line for line in words) or any(len(line.split("\t")) != 3 for line in words[1:]):
        return
    temporary = f"{path}.{os.getpid()}"
    try:
        _make_folder(os.path.dirname(path))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\n".join(words))
        os.replace(temporary, path)
        _prune(os.path.dirname(path))
    except OSError:  # it is found again next time
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _make_folder(folder: str) -> None:
    """Make *folder*, and those that it lies in, for this process's user alone, whatever the umask."""
    if os.path.isdir(folder):
        return
    _make_folder(os.path.dirname(folder))
    with contextlib.suppress(FileExistsError):  # another process was quicker
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)


def _prune(folder: str) -> None:
    """Remove the oldest files, and with them what starts that were killed had not finished.

    What another process still needs it finds again, and one that it is just writing is among the newest.
    """
    with os.scandir(folder) as names:
        ours = [(one.stat(follow_symlinks=False).st_mtime_ns, one.path) for one in names if one.name.startswith(_NAME)]
    for _, path in sorted(ours)[:-_KEPT]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
