"""The budget that all opened images share."""

from __future__ import annotations

import pytest
from diskmill.contract.limits import Account, Budget, LimitError, Limits
from diskmill.errors import UsageError

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
