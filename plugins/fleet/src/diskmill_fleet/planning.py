"""A manifest out of what there is: folders, patterns and names of images, with a template for where each goes."""

from __future__ import annotations

import glob
import os
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import diskmill.jobs as jobs
from diskmill.contract.results import ChildInfo, ImageInfo
from diskmill.errors import DiskmillError, StorageError, UsageError
from diskmill.jobs import Settings, Source

from .manifest import Line

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
    parts = {part for one in found for part in one.parts}
    kept = [one for one in found if os.path.realpath(one.name) not in parts]
    lines = {}
    for one in kept:
        lines[os.path.realpath(one.name)] = (one, _line(one, wish, settings))
    for one, line in lines.values():
        base = lines.get(one.base) if one.base is not None and wish.backing else None
        if base is not None and wish.job == "convert":
            line = replace(
                line,
                backing=_as_seen_from(str(line.to), str(base[1].to)),
                backing_format=wish.output_format,
                needs=(base[1].id,),
            )
        yield line


def _as_seen_from(overlay: str, base: str) -> str:
    """How the image *overlay* names *base*: by the way from its own folder, so that both can be moved."""
    if "://" in base or os.path.isabs(base):
        return base
    return os.path.relpath(base, os.path.dirname(overlay) or ".")


@dataclass(frozen=True)
class _Image:
    name: str
    relative: str
    info: ImageInfo | None
    base: str | None = None
    """The real path of its backing image."""
    parts: frozenset[str] = frozenset()


def _images(names: Sequence[str], settings: Settings, skipped: Callable[[str, str], None]) -> Iterator[_Image]:
    for name in names:
        if "://" in name:
            yield _looked_at(name, PurePosixPath(name.partition("://")[2]).name, None)
        elif os.path.isdir(name):
            for folder, folders, files in os.walk(name):
                folders.sort()
                for file in sorted(files):
                    path = os.path.join(folder, file)
                    relative = os.path.relpath(path, name)
                    info = _info(path, settings)
                    if not isinstance(info, ImageInfo):  # the run will say so, and not forget it
                        yield _looked_at(path, relative, None)
                    elif info.format != "raw" or file.lower().endswith(RAW):
                        yield _looked_at(path, relative, info)
                    else:
                        skipped(path, f"left out: it is no image, or raw and not called {', '.join(RAW)}")
        else:
            paths = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
            if not paths:
                raise StorageError("there is no such file, folder or pattern", file=name)
            for path in paths:
                info = _info(path, settings)
                yield _looked_at(path, os.path.basename(path), info if isinstance(info, ImageInfo) else None)


def _info(path: str, settings: Settings) -> ImageInfo | DiskmillError:
    try:
        return jobs.Info(Source(path), settings=settings).run(warn=lambda text: None)[0]
    except DiskmillError as error:
        return error


def _looked_at(name: str, relative: str, info: ImageInfo | None) -> _Image:
    if info is None:
        return _Image(name, relative, None)
    base = info.full_backing_filename
    parts = {one for one in _files(info) if one != os.path.realpath(name)}
    return _Image(name, relative, info, None if base is None else os.path.realpath(base), frozenset(parts))


def _files(info: ImageInfo | ChildInfo) -> Iterator[str]:
    """The files below an image, but for its backing image."""
    for child in info.children:
        if child.name != "backing":
            yield os.path.realpath(child.filename)
            yield from _files(child)
    for extent in (getattr(info, "specific", None) or {}).get("extents", ()):
        yield os.path.realpath(extent["filename"])


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
        format=None if image.info is None else image.info.format,
        to=to,
        output_format=wish.output_format if wish.job in ("convert", "measure") else "raw",
        options=wish.options,
        compress=wish.compress,
        verify=wish.verify,
        size=(image.info.actual_size or 0) if image.info is not None else 0,
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
