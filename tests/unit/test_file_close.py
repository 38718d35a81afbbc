"""Closing fails, at last: what could not be written is told with its file; what was only looked at does not matter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from diskmill.errors import StorageError
from diskmill.opening.context import Context
from diskmill.opening.creation import create_image
from diskmill.opening.graph import open_image


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors whose closing fails; as with Linux, they are closed all the same."""
    fails: list[int] = []
    real = os.close

    def close(fd: int) -> None:
        real(fd)
        if fd in fails:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "close", close)
    return fails


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_a_close_that_fails_names_its_file(tmp_path: Path, failing: list[int], format: str) -> None:
    path = tmp_path / "disk"
    image = create_image(str(path), format, 1 << 20, {}, context=Context())
    image.settle()
    image.close()
    image = open_image(str(path), format, context=Context(), writable=True)
    fd = image.file.fileno()  # type: ignore[attr-defined]
    failing.append(fd)
    with pytest.raises(StorageError, match=r"disk.*close.*Input/output error"):
        image.close()
    image.close()  # harmless, and closes nobody else's descriptor
    failing.clear()


def test_descriptors_of_folders_do_not_matter(tmp_path: Path, failing: list[int]) -> None:
    failing += range(3, 4096)
    path = tmp_path / "disk"
    image = create_image(str(path), "raw", 1 << 20, {}, context=Context())
    image.settle()
    with pytest.raises(StorageError, match="disk"):
        image.close()
    with pytest.raises(StorageError, match="missing"):
        open_image(str(tmp_path / "missing"), "raw", context=Context())
    assert path.stat().st_size == 1 << 20
    failing.clear()
