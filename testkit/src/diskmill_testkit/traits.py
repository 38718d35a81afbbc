"""What the suites cannot know of a driver by what it declares: who makes images of a format that is only read, say.

A driver's tests say it with :func:`describe`, or its package with an entry point of the group ``diskmill.testkit``,
under the driver's name, that names a :class:`Traits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from diskmill.sizes import GiB

GROUP = "diskmill.testkit"

Encoder = Callable[[bytes], bytes]
"""Makes an image, in one file, of a disk that begins with the given bytes and goes on with zeros, if at all."""
Made = Callable[[bytes], tuple[bytes, bytes]]
"""Gives an image and what its disk holds, which is what it is given unless it is a sample."""


@dataclass(frozen=True)
class Sample:
    """An image that some program made, and its disk, as it is."""

    image: Path
    disk: Path


@dataclass(frozen=True)
class Traits:
    """What the suites are told of one driver.

    :param encoders: kind of image → what makes one; for a format that is only read.
    :param samples: kind of image → one that there is; for a format that is only read.
    :param layouts: options to create images with, so that all the ways to write them are taken.
    :param noise: what was never written does not read as zeros (it decrypts to noise).
    :param harmless: words of what a check may find after a crash or a failed write, though nothing is lost: a mark that
        the image is in use, say.
    :param grown: how large a disk is made, in bytes, so that its tables have no room where they are.
    :param options: of a filter: what it is opened with so that it changes nothing. A node that it stands on is the
        name of a file, ``"disk"`` or whatever, in braces: ``{"image": "{disk}"}``.
    :param keys: of a cipher: options to make it with, so that all its ways are taken, and soon.
    :param unproven: of a cipher: nothing tells that a passphrase is wrong.
    """

    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)
    layouts: Sequence[Mapping[str, Any]] = ({},)
    noise: bool = False
    harmless: Sequence[str] = ()
    grown: int = 5 * GiB
    options: Mapping[str, Any] = field(default_factory=dict)
    keys: Sequence[Mapping[str, Any]] = ({},)
    unproven: bool = False


_described: dict[str, Traits] = {}


def describe(name: str, traits: Traits) -> None:
    """Tell of the driver *name*: in a ``conftest.py``, or in the module that takes the suites, before it does."""
    _described[name] = traits


def traits_of(name: str) -> Traits:
    """What was told of the driver *name*."""
    if name not in _described:
        found = [entry.load() for entry in entry_points(group=GROUP, name=name)]
        _described[name] = found[0] if found else Traits()
    return _described[name]


def made_by(name: str) -> dict[str, Made]:
    """Kind of image → what makes one, of the format *name*; empty where nobody was named."""
    traits = traits_of(name)
    return {
        **{kind: _encoded(encoder) for kind, encoder in traits.encoders.items()},
        **{kind: _given(sample) for kind, sample in traits.samples.items()},
    }


def _encoded(encoder: Encoder) -> Made:
    return lambda data: (encoder(data), data)


def _given(sample: Sample) -> Made:
    return lambda data: (sample.image.read_bytes(), sample.disk.read_bytes())
