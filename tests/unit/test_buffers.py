"""Memory for reads: where it begins, and that it is what a bytearray is."""

from __future__ import annotations

import ctypes

import pytest
from diskmill.engine.copy.reading import Buffers
from diskmill.sizes import MiB, new_buffer


def address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.mark.parametrize("length", [0, 1, 512, 64 * 1024, MiB + 1])
def test_it_is_zeros_of_that_length(length: int) -> None:
    buffer = new_buffer(length)
    assert type(buffer) is bytearray and buffer == bytes(length)


def test_a_large_one_does_not_begin_just_after_a_page() -> None:
    """Of 33 MiB every allocator asks the kernel. A copy from a page to less than 32 bytes after one is slow."""
    buffers = Buffers(33 * MiB)
    assert address(new_buffer(33 * MiB)) % 4096 >= 32
    assert address(buffers.guest) % 4096 >= 32
    assert address(buffers.for_guest(34 * MiB)) % 4096 >= 32
