"""A manifest out of what there is: folders, patterns and names of images, with a template for where each goes."""

from __future__ import annotations

import glob
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import diskmill
import diskmill.jobs as jobs
from diskmill.errors import StorageError, UsageError
from diskmill.jobs import Settings, Source

from .looking import Seen, look, real_name
from .manifest import Line, is_url

_FIELDS = ("stem", "name", "suffix", "relative", "digest")
RAW = (".raw", ".img", ".dd", ".iso")
"""How raw disks are called: nothing else tells that a file in a folder is one."""


@dataclass(frozen=True)
class Wish:
    """What becomes of each image.

    :param to: the template of an output's name; None: there is none.
    :param backing: keep backing chains, where the backing image is among the images too.
    """

    job: str = "convert"
    to: str | None = None
    output_format: str = "raw"
    options: Mapping[str, Any] = field(default_factory=dict)
    compress: bool = False
    verify: bool = False
    backing: bool = False


def plan(
    names: Sequence[str], wish: Wish, settings: Settings, skipped: Callable[[str, str], None] = lambda name, why: None
) -> Iterator[Line]:
    """A line for each image that *names* (of images, folders, patterns, URLs) stand for.

    :param skipped: told of files in folders that are left out, and why.
    :raises UsageError: the template cannot be filled in, or a name stands for nothing.
    """
    _expect_template(wish)
    found = list(_images(names, settings, skipped))
    # An extent, a data file or a base that another image names is a part of that.
    parts = {part for one in found if one.seen is not None for part in one.seen.parts}
    lines: dict[str, tuple[_Image, Line]] = {}
    for one in found:
        real = real_name(one.name)
        if real not in parts:
            lines[real] = (one, _line(one, wish, settings))
    _expect_apart(line for _, line in lines.values())
    for one, line in lines.values():
        base = lines.get(one.seen.base) if one.seen is not None and one.seen.base is not None and wish.backing else None
        if base is not None and wish.job == "convert":
            line = replace(
                line,
                backing=_as_seen_from(str(line.to), str(base[1].to)),
                backing_format=wish.output_format,
                needs=(base[1].id,),
            )
        yield line


def _expect_apart(lines: Iterable[Line]) -> None:
    """Refuse two images that the template gives the same output."""
    sources: dict[str, str] = {}
    for line in lines:
        if line.to is not None and sources.setdefault(line.to, line.source) != line.source:
            text = f"'{sources[line.to]}' and '{line.source}' would both be written to '{line.to}'"
            raise UsageError(text, hint="tell them apart with {relative}, {name} or {suffix}")


def _as_seen_from(overlay: str, base: str) -> str:
    """How the image *overlay* names *base*: by the way from its own folder, so that both can be moved."""
    if is_url(base) or os.path.isabs(base):
        return base
    return os.path.relpath(base, os.path.dirname(overlay) or ".")


class _Image(NamedTuple):
    """An image that is planned for; *seen* is None where it cannot be opened: the run tells why, and does not forget
    it."""

    name: str
    relative: str
    seen: Seen | None


def _images(names: Sequence[str], settings: Settings, skipped: Callable[[str, str], None]) -> Iterator[_Image]:
    for name in names:
        if is_url(name) and (name.endswith("/") or "*" in name):
            folder = name[: name.partition("*")[0].rindex("/") + 1]
            paths = [path for path in diskmill.listing(folder, context=settings.context()) if _matches(path, name)]
            if not paths:
                raise StorageError("there is nothing in it", file=name)
            yield from _of_folder(folder, paths, settings, skipped)
        elif is_url(name):
            yield _Image(name, PurePosixPath(name.partition("://")[2]).name, None)
        elif os.path.isdir(name):
            yield from _of_folder(os.path.join(name, ""), list(_files_in(name)), settings, skipped)
        else:
            paths = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
            if not paths:
                raise StorageError("there is no such file, folder or pattern", file=name)
            for path, seen in zip(paths, look(paths, settings), strict=True):
                yield _Image(path, os.path.basename(path), seen)


def _matches(path: str, name: str) -> bool:
    """Whether *path* lies in the folder *name*, or is as that pattern says, where ``*`` stands for no slash but ``**``
    for any."""
    pattern = re.escape(name).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    return re.match(pattern if name.endswith("/") else f"{pattern}$", path) is not None


def _of_folder(
    folder: str, paths: Sequence[str], settings: Settings, skipped: Callable[[str, str], None]
) -> Iterator[_Image]:
    """Those of the files *paths* of *folder*, which ends with a slash, that are images."""
    for path, seen in zip(paths, look(paths, settings), strict=True):
        if seen is not None and seen.format == "raw" and not path.lower().endswith(RAW):
            skipped(path, f"left out: it is no image, or raw and not called {', '.join(RAW)}")
        else:
            yield _Image(path, path.removeprefix(folder), seen)


def _files_in(folder: str) -> Iterator[str]:
    for inner, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(inner, file) for file in sorted(files))


def _line(image: _Image, wish: Wish, settings: Settings) -> Line:
    to = None
    if wish.to is not None:
        path = PurePosixPath(image.relative)
        values = {"stem": path.stem, "name": path.name, "suffix": path.suffix, "relative": str(path.with_suffix(""))}
        if "{digest}" in wish.to:
            values["digest"] = jobs.Digest(Source(image.name), settings=settings).run()
        to = wish.to.format(**values)
    return Line(
        id=to or f"{wish.job} {image.name}",
        source=image.name,
        job=wish.job,
        format=None if image.seen is None else image.seen.format,
        to=to,
        output_format=wish.output_format if wish.job in ("convert", "measure") else "raw",
        options=wish.options,
        compress=wish.compress,
        verify=wish.verify,
        size=0 if image.seen is None else image.seen.size,
    )


def _expect_template(wish: Wish) -> None:
    if (wish.to is None) == (wish.job == "convert"):
        raise UsageError("--to goes with the job 'convert', and that with it")
    if wish.to is None:
        return
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(wish.to) if name is not None}
    except ValueError as error:
        raise UsageError(f"the template '{wish.to}' makes no sense: {error}") from None
    unknown = sorted(used - set(_FIELDS))
    if unknown:
        raise UsageError(f"the template has no field '{{{unknown[0]}}}': it has {', '.join(_FIELDS)}")
