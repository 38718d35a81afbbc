"""Filters that cannot be opened: diskmill refuses what qemu-img refuses, in one line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from tools import diskmill, qemu_img

sys.path.insert(0, str(Path(__file__).parent))

import images

LINES = Path(__file__).with_name("filter_refusals.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filters")
    images.build(folder)
    return folder


@pytest.mark.parametrize("line", LINES)
def test_refused(line: str, folder: Path) -> None:
    words = shlex.split(line)
    done = diskmill(*words, check=False, cwd=folder)
    assert done.returncode == qemu_img(*words, check=False, cwd=folder).returncode == 1
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
