"""Data classes that cost next to nothing to declare, for those that every start declares.

``dataclasses`` imports ``inspect``, and compiles five functions for each class: together that took a third of the time
of a plain ``info``. A :func:`record` is what the data class of the same declaration is, to a type checker and to who
uses it; but its methods are the same functions for all, which go by a table of fields. What ``dataclasses`` itself
asks for (``fields``, ``asdict``, a data class that inherits from a record) is made when it is asked for. Where objects
are made by the hundred thousand, the class has an ``__init__`` of its own, which is quicker.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__all__ = ["field", "record", "replace"]

if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from dataclasses import field, replace
else:
    _MISSING = object()

    class _Field:
        """How a value comes about that is not given, and whether it is shown."""

        __slots__ = ("default", "factory", "repr")

        def __init__(self, default, factory, repr):
            self.default, self.factory, self.repr = default, factory, repr

        def new(self, name):
            if self.factory is not _MISSING:
                return self.factory()
            if self.default is _MISSING:
                raise TypeError(f"missing argument: '{name}'")
            return self.default

    class _AsDataclass:
        """An attribute that the data class of the same declaration has."""

        def __init__(self, name):
            self.name = name

        def __get__(self, one, owner):
            nearest = next(cls for cls in owner.__mro__ if "__record__" in vars(cls))
            if self.name == "__signature__" and nearest is not owner:  # it may have an __init__ of its own
                raise AttributeError(self.name)
            twin = vars(nearest).get("__twin__")
            if twin is None:  # it takes milliseconds, and is asked for with each dataclasses.replace
                twin = nearest.__twin__ = _twin(nearest)
            return getattr(twin, self.name)

    def field(*, default=_MISSING, default_factory=_MISSING, repr=True):
        """As in ``dataclasses``."""
        return _Field(default, default_factory, repr)

    def record(cls=None, /, *, frozen=False):
        """As ``dataclasses.dataclass``."""
        return _made(cls, frozen) if cls is not None else lambda cls: _made(cls, frozen)

    def replace(one, /, **changes):
        """As in ``dataclasses``."""
        cls = type(one)
        if "__record__" not in vars(cls):
            import dataclasses

            return dataclasses.replace(one, **changes)
        return cls(**{**{name: getattr(one, name) for name in cls.__record__}, **changes})

    def _made(cls, frozen):
        fields = {}
        for base in reversed(cls.__mro__[1:]):
            fields.update(vars(base).get("__record__", {}))
        for name, kind in vars(cls).get("__annotations__", {}).items():
            if str(kind).startswith(("ClassVar", "typing.ClassVar")):
                continue
            value = vars(cls).get(name, _MISSING)
            one = fields[name] = value if isinstance(value, _Field) else _Field(value, _MISSING, True)
            if one.default is not _MISSING:
                setattr(cls, name, one.default)
            elif value is not _MISSING:
                delattr(cls, name)
        own = vars(cls)
        cls.__record__ = fields
        cls.__defaults__ = {name: one.default for name, one in fields.items()}
        cls.__made__ = [name for name, one in fields.items() if one.default is _MISSING]
        cls.__match_args__ = tuple(fields)
        if "__eq__" not in own:
            cls.__eq__ = _eq
            if "__hash__" not in own or own["__hash__"] is None:
                cls.__hash__ = _hash if frozen else None
        for name, method in (("__init__", _init), ("__repr__", _repr)):
            if name not in own:
                setattr(cls, name, method)
        if frozen:
            cls.__setattr__, cls.__delattr__ = _refuse, _refuse
        for name in ("__dataclass_fields__", "__dataclass_params__", "__signature__"):
            setattr(cls, name, _AsDataclass(name))
        return cls

    def _init(self, /, *values, **named):
        fields = self.__record__
        given = dict(zip(fields, values, strict=False)) if values else {}
        if len(given) < len(values):
            raise TypeError(f"{type(self).__name__}() takes {len(fields)} arguments, not {len(values)}")
        for name in named:
            if name not in fields or name in given:
                what = "more than one" if name in given else "an unexpected"
                raise TypeError(f"{type(self).__name__}() got {what} argument '{name}'")
        given.update(named)
        # In the order of the fields, and past a frozen record's refusal.
        values = self.__dict__
        values.update(self.__defaults__)
        values.update(given)
        if len(given) < len(fields):
            for name in self.__made__:
                if name not in given:
                    values[name] = fields[name].new(name)
        done = getattr(self, "__post_init__", None)
        if done is not None:
            done()

    def _values(one):
        return tuple([getattr(one, name) for name in one.__record__])

    def _eq(self, other):
        return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented

    def _hash(self):
        return hash(_values(self))

    def _repr(self):
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name, one in self.__record__.items() if one.repr)
        return f"{type(self).__qualname__}({shown})"

    def _refuse(self, name, *value):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field '{name}'")

    def _twin(cls):
        """The data class that *cls* behaves like."""
        from dataclasses import MISSING, make_dataclass
        from dataclasses import field as true_field

        def given(value):
            return MISSING if value is _MISSING else value

        kinds = {}
        for base in reversed(cls.__mro__):
            kinds.update(vars(base).get("__annotations__", {}))
        parts = [
            (name, kinds[name], true_field(default=given(f.default), default_factory=given(f.factory), repr=f.repr))
            for name, f in cls.__record__.items()
        ]
        frozen = cls.__setattr__ is _refuse
        twin = make_dataclass(cls.__name__, parts, frozen=frozen)
        import inspect

        try:
            names = vars(sys.modules[cls.__module__])
            twin.__signature__ = inspect.signature(twin, globals=names, eval_str=True)
        except NameError:  # some types are there for a type checker only
            twin.__signature__ = inspect.signature(twin)
        return twin
