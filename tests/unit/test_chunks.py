"""Compressed chunks of any size: what they read as, how often they are decoded, and in how much memory."""

from __future__ import annotations

import random
import threading
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
from diskmill.contract.drivers import FormatDriver
from diskmill.contract.extents import Extent, Kind, joined
from diskmill.engine.copy import CopyPlan, copy
from diskmill.errors import DiskmillError, ImageError
from diskmill.kit.chunks import PIECE, WHOLE, Chunk, Chunks, Method, unreadable
from diskmill.kit.image import FormatImage
from diskmill.sizes import KiB, MiB
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import igzip_lib
from twins import Clustered, memory


class Counted:
    """A zlib stream that counts how many there are."""

    made = 0

    def __init__(self, length: int) -> None:
        Counted.made += 1
        self._stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB, hist_bits=15)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return self._stream.needs_input

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        return self._stream.decompress(data, max_length)


ZLIB = Method("zlib", Counted, (igzip_lib.error,))


class Chunked(FormatImage):
    """An image of chunks that lie one after the other on the guest disk."""

    def __init__(self, data: bytes, lengths: list[int]) -> None:
        payload, self.table, at = b"", [], 0
        for length in lengths:
            stored = zlib.compress(data[at : at + length], 1)
            self.table.append(Chunk(at, length, len(payload), len(stored), ZLIB))
            payload += stored
            at += length
        super().__init__(FormatDriver(), memory(payload), name="chunked", size=at, writable=False)
        self.chunks = Chunks(self.file, self.name)
        Counted.made = 0

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for chunk in self.table:
            if chunk.start < offset + length and chunk.start + chunk.length > offset:
                yield from self.chunks.extents(chunk, offset, offset + length)


def text(length: int, seed: int = 0) -> bytes:
    return (b"%d what is written once is read often " % seed * (length // 30 + 1))[:length]


LENGTHS = [512, WHOLE, WHOLE + 512, 3 * PIECE, 700 * KiB, 5 * PIECE + 1024]
DATA = b"".join(text(length, seed) for seed, length in enumerate(LENGTHS))


@settings(max_examples=25)
@given(data=st.data())
def test_any_range_reads_as_it_is(data: st.DataObject) -> None:
    image = Chunked(DATA, LENGTHS)
    for _ in range(4):
        offset = data.draw(st.integers(0, len(DATA) - 1))
        length = data.draw(st.integers(0, min(3 * MiB, len(DATA) - offset)))
        assert image.read(offset, length) == DATA[offset : offset + length]


def test_small_reads_decode_a_chunk_once() -> None:
    image = Chunked(DATA, LENGTHS)
    start = 512 + WHOLE
    for at in range(0, WHOLE, 64 * KiB):
        image.read(start + at, 4096)
    assert Counted.made == 1
    for at in range(0, WHOLE, 64 * KiB):
        image.read(512 + at, 4096)
    assert Counted.made == 2


def test_reading_backwards_starts_again_for_each_piece_and_no_more() -> None:
    image = Chunked(DATA, [len(DATA)])
    for at in range(len(DATA) - 4096, -1, -64 * KiB):
        assert image.read(at, 4096) == DATA[at : at + 4096]
    assert Counted.made <= -(-len(DATA) // PIECE)


@pytest.mark.parametrize("lengths", [[200 * KiB + 512] * 40, [MiB + 1536] * 8, [WHOLE] * 4, LENGTHS])
@pytest.mark.parametrize("unit", [512, 64 * KiB, MiB])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_copy_decodes_each_chunk_once(lengths: list[int], unit: int, threads: int) -> None:
    data = (DATA * 2)[: sum(lengths)]
    image, out = Chunked(data, lengths), Clustered(memory(), len(data), unit)
    copy(image, out, CopyPlan(zeroed=True, threads=threads))
    assert out.read(0, len(data)) == data
    large = sum(length > WHOLE for length in lengths)
    # The stream of a large chunk stands where a thread was that has come further: then it begins once more.
    assert Counted.made <= len(lengths) + large * (threads - 1)


def test_zeros_are_decoded_once_for_all() -> None:
    lengths = [64 * KiB, 64 * KiB, 128 * KiB, 64 * KiB, 512]
    data = bytes(256 * KiB) + DATA[: 64 * KiB] + bytes(512)
    image = Chunked(data, lengths)
    assert image.read(0, len(data)) == data
    assert Counted.made == 4


def test_a_copy_onto_contents_that_matter() -> None:
    lengths = [MiB + 512] * 5
    data = (DATA * 2)[: sum(lengths)]
    image, out = Chunked(data, lengths), Clustered(memory(), len(data), 4096)
    out.write(0, bytes(7) + b"old" * 1000)
    copy(image, out, CopyPlan(zeroed=False, threads=3))
    assert out.read(0, len(data)) == data


def test_threads_in_one_chunk_agree() -> None:
    image = Chunked(DATA, [len(DATA)])
    wrong: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(15):
            at = chance.randrange(len(DATA) - 5000)
            if image.read(at, 5000) != DATA[at : at + 5000]:
                wrong.append(at)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_memory_is_bounded_whatever_the_chunk_is() -> None:
    stored = zlib.compress(bytes(64 * MiB), 1)
    stream = zlib.compressobj()
    head = stream.compress(b"x" * 512) + stream.flush(zlib.Z_FULL_FLUSH)
    padded = head + b"\0\0\0\xff\xff" * 1_200_000 + stream.flush()  # 6 MB of blocks that come to nothing
    for payload, length in ((stored, 64 * MiB), (padded, 512)):
        node = memory(payload)
        chunks = Chunks(node, "one chunk")
        chunk = Chunk(0, length, 0, len(payload), ZLIB)
        tracemalloc.start()
        for extent in chunks.extents(chunk, 0, length):
            assert extent.codec is not None
            assert (
                len(extent.codec.decode(extent, memoryview(bytes(extent.stored)), memoryview(bytearray(extent.unit))))
                == extent.unit
            )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 24 * MiB


def test_a_chunk_that_is_cut_short_or_too_long_or_damaged() -> None:
    for sizes in ([100 * KiB], [3 * MiB]):
        image = Chunked(DATA, sizes)
        chunk = image.table[0]
        for change in (
            chunk._replace(stored=chunk.stored - 1),
            chunk._replace(length=chunk.length + 512),
            chunk._replace(length=chunk.length - 512),
            chunk._replace(offset=1, stored=chunk.stored - 1),
            chunk._replace(stored=0),
        ):
            image.table[0], image.size = change, change.length
            with pytest.raises(ImageError, match="the zlib chunk of guest offset 0 is damaged"):
                image.read(0, change.length)


def test_what_is_unreadable_can_be_mapped_and_salvaged() -> None:
    error = ImageError("nobody knows")

    class Half(Chunked):
        def extents(self, offset: int, length: int) -> Iterator[Extent]:
            for extent in super().extents(offset, length):
                cut = min(max(extent.start, 64 * KiB), extent.end)
                if extent.start < cut:
                    yield extent.clip(extent.start, cut)
                if cut < extent.end:
                    yield unreadable(self.file, cut, extent.end - cut, error)

    image = Half(DATA, [128 * KiB])
    assert sum(extent.length for extent in image.extents(0, image.size)) == image.size
    assert image.read(0, 64 * KiB) == DATA[: 64 * KiB]
    with pytest.raises(ImageError, match="nobody knows"):
        image.read(64 * KiB - 1, 2)
    lost: list[tuple[int, int]] = []
    out = Clustered(memory(), image.size, 4096)

    def salvage(offset: int, length: int, cause: DiskmillError) -> None:
        lost.append((offset, length))

    copy(image, out, CopyPlan(zeroed=True, salvage=salvage))
    assert out.read(0, image.size) == DATA[: 64 * KiB] + bytes(64 * KiB)
    assert sorted(lost) == [(at, 4096) for at in range(64 * KiB, 128 * KiB, 4096)]


def test_joined_joins_what_goes_on() -> None:
    node, other = memory(b""), memory(b"")
    parts = [
        Extent(0, 10, Kind.DATA, node, 100),
        Extent(10, 10, Kind.DATA, node, 110),
        Extent(20, 10, Kind.DATA, other, 120),
        Extent(30, 10, Kind.ZERO),
        Extent(40, 10, Kind.ZERO),
        Extent(50, 10, Kind.HOLE),
        Extent(60, 10, Kind.HOLE),
        Extent(70, 10, Kind.DATA, node, 0),
        Extent(80, 10, Kind.DATA, node, 11),
    ]
    found = [(extent.start, extent.length, extent.kind) for extent in joined(iter(parts))]
    assert found == [
        (0, 20, Kind.DATA),
        (20, 10, Kind.DATA),
        (30, 20, Kind.ZERO),
        (50, 20, Kind.HOLE),
        (70, 10, Kind.DATA),
        (80, 10, Kind.DATA),
    ]
    assert not list(joined(iter(())))
