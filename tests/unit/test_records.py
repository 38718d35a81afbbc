"""A record is what the data class of the same declaration is, to whoever uses it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from diskmill import records
from diskmill.opening.context import Context


class Plain:
    name: str
    size: int = 0
    parts: list[int] = records.field(default_factory=list)
    secret: str = records.field(default="s", repr=False)
    kind: ClassVar[str] = "no field"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", (self.name, self.size))


def declared(maker: Callable[..., Any], field: Callable[..., Any], *, frozen: bool) -> Any:
    body = {**vars(Plain), "parts": field(default_factory=list), "secret": field(default="s", repr=False)}
    body = {name: value for name, value in body.items() if name not in ("__dict__", "__weakref__")}
    return maker(frozen=frozen)(type("Plain", (), body))


def outcome(function: Callable[[], Any]) -> Any:
    """What it gives, or the kind of error that it raises."""
    try:
        return function()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        lambda cls: repr(cls("a")),
        lambda cls: repr(cls("a", 1, [2], secret="t")),
        lambda cls: vars(cls("a", parts=[1])),
        lambda cls: cls(),
        lambda cls: cls("a", name="b"),
        lambda cls: cls("a", nothing=1),
        lambda cls: cls("a", 1, [], "t", 2),
        lambda cls: (cls("a") == cls("a"), cls("a") == cls("b"), cls("a") == ("a", 0, [], "s")),
        lambda cls: hash(cls("a", 1, ())) == hash(cls("a", 1, ())),
        lambda cls: setattr(cls("a"), "name", "b"),
        lambda cls: delattr(cls("a"), "name"),
        lambda cls: cls("a").parts is cls("a").parts,
        lambda cls: (cls.size, hasattr(cls, "parts"), cls.__match_args__),
        lambda cls: repr(dataclasses.replace(cls("a", 3), name="b")),
        lambda cls: dataclasses.replace(cls("a"), nothing=1),
        lambda cls: dataclasses.asdict(cls("a", 3)),
        lambda cls: [(one.name, one.type, one.repr) for one in dataclasses.fields(cls)],
        lambda cls: [(one.name, one.kind) for one in inspect.signature(cls).parameters.values()],
        lambda cls: repr(copy.deepcopy(cls("a", 3))),
    ],
)
def test_a_record_behaves_as_a_data_class(use: Callable[[Any], Any], frozen: bool) -> None:
    expected = outcome(lambda: use(declared(dataclasses.dataclass, dataclasses.field, frozen=frozen)))
    assert outcome(lambda: use(declared(records.record, records.field, frozen=frozen))) == expected


def test_a_record_can_be_inherited_from() -> None:
    base = declared(records.record, records.field, frozen=False)
    under = dataclasses.make_dataclass("Under", [("more", int, 7)], bases=(base,))
    assert dataclasses.astuple(records.replace(under("a", more=8), size=2)) == ("a", 2, [], "s", 8)
    assert "more" in inspect.signature(under).parameters


def test_public_records_pickle() -> None:
    from diskmill.contract.limits import Limits

    assert pickle.loads(pickle.dumps(Limits.parse("memory=2G"))) == Limits.parse("memory=2G")


def test_what_a_data_class_tells_is_made_once() -> None:
    """It takes milliseconds, and ``dataclasses.replace`` asks for it twice."""
    assert Context.__dataclass_fields__ is Context.__dataclass_fields__  # type: ignore[attr-defined]
