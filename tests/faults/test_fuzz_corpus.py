"""What the fuzzer has kept does no harm: the images that reach most of each driver, and those that did harm once."""

from __future__ import annotations

import pytest
from fuzz.__main__ import DRIVERS
from fuzz.corpus import FOLDER, stored
from fuzz.target import Target


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_kept_images(driver: str) -> None:
    with Target(driver) as target:
        for mutant in stored(driver):
            target.run(mutant)


def test_the_corpus_is_small() -> None:
    assert sum(len(stored(driver)) for driver in DRIVERS) > 100
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 500_000
