"""What a command that moves data tells of how far it is: it never goes back or beyond the whole, and ends there."""

from __future__ import annotations

import random
from pathlib import Path

import diskmill
import pytest
from formats import FORMATS, REGISTRY
from samples import KiB, MiB

SIZES = (512, 64 * KiB + 512, 3 * MiB - 512, 5 * MiB + 7 * 512)
WRITTEN = sorted(name for name, driver in FORMATS.items() if {"create", "write"} <= driver.capabilities)


class Told:
    """Holds every report against the one before."""

    def __init__(self) -> None:
        self.last = (0, 0)

    def __call__(self, done: int, total: int) -> None:
        before, whole = self.last
        assert before <= done <= total and whole <= total
        self.last = done, total

    @property
    def whole(self) -> bool:
        return self.last[0] == self.last[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", WRITTEN)
def test_progress_stays_within_the_whole_and_ends_there(format: str, size: int, tmp_path: Path) -> None:
    chance = random.Random(size)
    disk, image, back = tmp_path / "disk", tmp_path / "image", tmp_path / "back"
    data = bytearray(size)
    for _ in range(6):  # neither begins nor ends where a cluster does
        at = chance.randrange(size)
        data[at : at + 3000] = chance.randbytes(3000)[: size - at]
    disk.write_bytes(data)
    secrets = {"s": b"pass"}
    context = diskmill.Context(secrets=secrets, registry=REGISTRY)
    options = {"key-secret": "s", "iter-time": "10"} if format == "luks" else {}
    name = f"json:{{'driver':'{format}','file.filename':'{image}'" + (",'key-secret':'s'}" if options else "}")
    told = Told()
    diskmill.convert(
        [str(disk)],
        str(image),
        format="raw",
        output_format=format,
        options=options,
        context=context,
        progress=told,
        verify=True,
    )
    assert told.whole, told.last
    for work in (
        lambda told: diskmill.convert([name], str(back), context=context, progress=told),
        lambda told: diskmill.digest(name, context=context, progress=told),
        lambda told: diskmill.compare(name, str(disk), format_b="raw", context=context, progress=told),
        lambda told: diskmill.dd(name, str(back), block=1000, skip=1, context=context, progress=told),
        lambda told: diskmill.measure(name, output_format="qcow2", context=context, progress=told),
        lambda told: diskmill.measure(name, output_format="raw", context=context, progress=told),
    ):
        told = Told()
        work(told)
        assert told.whole, told.last
