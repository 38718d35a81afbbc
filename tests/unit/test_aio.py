"""The library from asyncio programs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import diskmill
import pytest
from diskmill import aio

MiB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"".join(number.to_bytes(4, "big") * (MiB // 4) for number in range(1, 9)))
    return path


def test_commands_are_awaited(tmp_path: Path, disk: Path) -> None:
    async def job() -> None:
        await aio.convert(disk, tmp_path / "a.qcow2", format="raw", output_format="qcow2")
        told, same, ranges = await asyncio.gather(
            aio.info(tmp_path / "a.qcow2"),
            aio.compare(disk, tmp_path / "a.qcow2", format_a="raw"),
            aio.map(tmp_path / "a.qcow2"),
        )
        assert (told.virtual_size, same.identical) == (8 * MiB, True)
        assert sum(one.length for one in ranges) == 8 * MiB
        with pytest.raises(diskmill.StorageError, match="No such file"):
            await aio.info(tmp_path / "none")

    asyncio.run(job())


def test_a_disk_is_read_and_written(tmp_path: Path, disk: Path) -> None:
    async def job() -> None:
        async with await aio.open(disk, "raw", writable=True) as image:
            await image.write(512, b"diskmill")
            await image.flush()
            assert await image.read(512, 8) == b"diskmill"
            pieces = [piece async for piece in image.chunks(chunk=3 * MiB)]
            assert [len(piece) for piece in pieces] == [3 * MiB, 3 * MiB, 2 * MiB]
            await image.zero(0, MiB)
            ahead = image.chunks()
            assert await anext(ahead) == bytes(MiB)
            await ahead.aclose()
        assert b"".join(pieces)[MiB:] == disk.read_bytes()[MiB:]
        with pytest.raises(diskmill.ClosedError):
            await image.read(0, 1)

    asyncio.run(job())


def test_the_loop_runs_on_while_a_disk_is_copied(tmp_path: Path, disk: Path) -> None:
    async def job() -> int:
        turns = 0
        copy = asyncio.ensure_future(aio.convert(disk, tmp_path / "b.raw", rate=32 * MiB))
        while not copy.done():
            await asyncio.sleep(0.005)
            turns += 1
        await copy
        return turns

    assert asyncio.run(job()) > 5


def test_a_task_that_is_cancelled_leaves_nothing_behind(tmp_path: Path, disk: Path) -> None:
    output = tmp_path / "c.qcow2"

    async def job() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def progress(done: int, total: int) -> None:
            loop.call_soon_threadsafe(begun.set)

        copy = asyncio.ensure_future(
            aio.convert(disk, output, format="raw", output_format="qcow2", rate=MiB, progress=progress)
        )
        await asyncio.wait_for(begun.wait(), 10)
        copy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copy
        assert list(tmp_path.iterdir()) == [disk]  # and not later: the thread is done

    asyncio.run(job())
