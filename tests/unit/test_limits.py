"""The budget that all opened images share."""

from __future__ import annotations

import os
from pathlib import Path

import diskmill
import pytest
import zstandard
from diskmill.contract.limits import Account, Budget, LimitError, Limits
from diskmill.errors import UsageError
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image

MiB = 1 << 20


class Kept:
    """A cache of so many bytes."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.size = 0

    def grow(self, size: int) -> None:
        self.size += size
        self.account.hold(self, self.size)

    def shrink(self) -> None:
        self.size = 0
        self.account.hold(self, 0)


def test_the_caches_filled_longest_ago_are_dropped() -> None:
    budget = Budget(Limits(memory=64 * MiB))
    caches = [Kept(Account(budget)) for _ in range(100)]
    for cache in caches:
        cache.grow(MiB)
    assert sum(cache.size for cache in caches) <= 32 * MiB
    assert caches[-1].size and not caches[0].size


def test_what_is_charged_is_given_back_and_makes_caches_small() -> None:
    budget = Budget(Limits(memory=64 * MiB))
    cache, account = Kept(Account(budget)), Account(budget)
    cache.grow(20 * MiB)
    account.charge(30 * MiB, "a table", "file")
    assert not cache.size
    with pytest.raises(LimitError, match=r"'file': .*memory=64M.*--limits memory="):
        Account(budget).charge(3 * MiB, "another table", "file")
    account.close()
    Account(budget).charge(32 * MiB, "another table", "file")


def test_limits_are_parsed() -> None:
    assert Limits.parse("memory=1G,chain=7") == Limits(memory=1 << 30, chain=7)
    assert Limits.parse("") == Limits()
    for text in ("memory", "memory=0", "time=3", "memory=x"):
        with pytest.raises(UsageError):
            Limits.parse(text)


def test_counts_of_clusters_that_a_file_does_not_hold_are_charged(tmp_path: Path) -> None:
    import numpy as np
    from diskmill_qcow2.recount import CHUNK, Counts, Room

    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 40)
    context = Context(budget=Budget(Limits(memory=32 << 20)))
    with open_image(str(path), "raw", context=context) as image:
        for _ in range(3):  # and all is given back
            counts = Counts(Room(image, 512, "sparse"))
            for index in range(8):
                counts.add(np.array([index * CHUNK], np.uint64), 1)
            with pytest.raises(LimitError, match="--limits memory="):
                counts.chunk(8)
            del counts


def test_counts_of_what_a_file_holds_are_not_charged(tmp_path: Path) -> None:
    from diskmill_qcow2.recount import Counts, Room

    path = tmp_path / "full"
    path.write_bytes(bytes(1 << 20))
    with open_image(str(path), "raw", context=Context(budget=Budget(Limits(memory=1 << 10)))) as image:
        room = Room(image, 4, "full")  # as if clusters had 4 bytes
        assert Counts(room).chunk(0) is not None


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_a_disk_that_is_all_alike_is_read_however_small_its_file(tmp_path: Path, method: str) -> None:
    """And what a file cannot hold, as all its clusters are one, is not."""
    plain, image = tmp_path / "plain", tmp_path / "image"
    plain.write_bytes(b"\xff" * (32 * MiB))
    narrow = Context(budget=Budget(Limits(work=1 << 8)))
    how = {"compression_type": method}
    diskmill.convert(str(plain), str(image), output_format="qcow2", compress=True, options=how)
    assert diskmill.compare(str(plain), str(image), context=narrow).identical

    diskmill.resize(str(image), 512 * MiB)
    with open(image, "r+b") as file:
        l1 = int.from_bytes(os.pread(file.fileno(), 8, 40), "big")
        l2 = int.from_bytes(os.pread(file.fileno(), 8, l1), "big") & ~(1 << 63)
        os.pwrite(file.fileno(), os.pread(file.fileno(), 8, l2) * 8192, l2)
    with pytest.raises(LimitError, match="--limits work="):
        diskmill.compare(str(image), str(image), context=narrow)


def test_an_empty_disk_in_a_compressed_file_is_read(tmp_path: Path) -> None:
    packed, image = tmp_path / "disk.zst", tmp_path / "image"
    packed.write_bytes(zstandard.compress(bytes(64 * MiB)))
    diskmill.convert(str(packed), str(image), context=Context(budget=Budget(Limits(work=1 << 6))))
    assert image.stat().st_size == 64 * MiB
    packed.write_bytes(zstandard.compress(b"\1" * (64 * MiB)))
    with pytest.raises(LimitError, match="--limits work="):
        diskmill.convert(str(packed), str(image), context=Context(budget=Budget(Limits(work=1 << 6))))


def limited(limits: Limits) -> Context:
    return Context(budget=Budget(limits))


def test_no_digest_is_made_of_a_disk_larger_than_anybody_can_hash(tmp_path: Path) -> None:
    image, copy, output = (str(tmp_path / name) for name in ("image", "copy", "output"))
    for path in (image, copy):
        diskmill.create(path, 1 << 50, format="qcow2")
    with pytest.raises(LimitError, match="work="):
        diskmill.digest(image)
    with pytest.raises(LimitError, match="work="):
        diskmill.convert(image, output, output_format="qcow2", verify=True)
    assert not os.path.exists(output)
    with pytest.raises(LimitError, match="a bit for each block"):
        diskmill.sync(image, copy, context=limited(Limits(work=1 << 60)))


def test_a_block_that_is_put_together_is_work_as_a_whole(tmp_path: Path) -> None:
    """A byte here and there costs hashing all between."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        for at in range(0, 64 * MiB, 1 << 20):
            file.seek(at)
            file.write(b"x")
        file.truncate(64 * MiB)
    few = Limits(work=1)  # beside the file's own: 64 pages of 4 KiB are 32,768 extents
    assert diskmill.digest(str(image), context=limited(few)) == diskmill.digest(str(image))
    with pytest.raises(LimitError, match="work="):
        diskmill.digest(str(image), block_size=256 * MiB, context=limited(few))
