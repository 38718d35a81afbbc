"""Options that drivers declare once, as data: parsed from ``-o``, checked, and printed by ``-o help`` from there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UsageError, did_you_mean
from ..records import record
from ..sizes import parse_size

Value = str | int | bool


@record(frozen=True)
class Option:
    """One option of a driver.

    :param name: as typed in ``-o name=value``; ``encrypt.format`` style names are allowed. A part that is ``*`` stands
        for a number: ``inject-error.*.event`` is that of each in a list.
    :param type: ``str``, ``bool`` (on/off), ``int`` or ``size`` (bytes, with suffixes).
    :param help: a phrase for ``-o help`` and the docs.
    :param default: what holds where it is not given; None: the driver decides.
    :param choices: the only values allowed, for ``str``.
    :param others: of ``choices``: drivers that are installed may bring others, so that the driver looks itself.
    :param when: the operations that take it: of ``create``, ``amend``, ``open``, ``resize``.
    :param versions: which versions of the format allow it, for the docs; empty: all.
    :param runtime: of ``open``: it says how the node is used, and nothing about what is read there, so it is no part
        of the name that is shown.
    :param secret: its value may be, or hold, a credential: it is not shown. A node of a protocol with such options is
        shown with what its place displays.
    """

    name: str
    type: str
    help: str
    default: Value | None = None
    choices: tuple[str, ...] = ()
    when: tuple[str, ...] = ("create",)
    versions: str = ""
    runtime: bool = False
    secret: bool = False
    others: bool = False

    def parse(self, text: str | Value) -> Value:
        """The value that *text* stands for.

        :raises UsageError: it does not fit the option's type or choices.
        """
        if self.type == "bool":
            return self._bool(text)
        if self.type == "size":
            return parse_size(str(text), what=f"parameter '{self.name}'")
        if self.type == "int":
            return self._int(str(text))
        value = str(text)
        if self.choices and value not in self.choices and not self.others:
            hint = did_you_mean(value, self.choices)
            choices = ", ".join(self.choices)
            raise UsageError(f"invalid value '{value}' for '{self.name}': choose from {choices}", hint=hint)
        return value

    def _bool(self, text: str | Value) -> bool:
        if isinstance(text, bool):
            return text
        if text in ("on", "yes", "true", "y"):
            return True
        if text in ("off", "no", "false", "n"):
            return False
        raise UsageError(f"parameter '{self.name}' expects 'on' or 'off', not '{text}'")

    def _int(self, text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise UsageError(f"parameter '{self.name}' expects a number, not '{text}'") from None
        if value < 0:
            raise UsageError(f"parameter '{self.name}' expects a number of at least 0, not '{text}'")
        return value


class HelpAsked(Exception):
    """``-o help`` or ``-o ?`` stood among the options."""


def split(text: str) -> list[tuple[str, str]]:
    """The pairs in ``a=1,b=2``, in order. A doubled comma stands for one; a bare name means ``name=on``.

    :raises HelpAsked: one of the parts is ``help`` or ``?``.
    :raises UsageError: a part has no name.
    """
    pairs = []
    for part in text.replace(",,", "\0").split(","):
        part = part.replace("\0", ",")
        if part in ("help", "?"):
            raise HelpAsked
        name, equals, value = part.partition("=")
        if not name:
            if part:
                raise UsageError(f"invalid parameter '{part}'")
            continue
        pairs.append((name, value if equals else "on"))
    return pairs


def _starred(name: str) -> str:
    """*name* with ``*`` for each part that is a number."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def validate(
    declared: Iterable[Option], given: Mapping[str, Any] | Iterable[tuple[str, Any]], *, when: str, driver: str
) -> dict[str, Value]:
    """The options *given*, parsed and checked against those *declared* for the operation *when*.

    Options that are not given and have a default are filled in; not for ``amend``, which changes only what it is told.

    :raises UsageError: an unknown name (the known ones are listed) or a bad value.
    """
    table = {option.name: option for option in declared if when in option.when}
    result: dict[str, Value] = {}
    for name, value in given.items() if isinstance(given, Mapping) else given:
        option = table.get(name) or table.get(_starred(name))
        if option is None:
            known = f"; it has {', '.join(sorted(table))}" if table else ""
            hint = did_you_mean(name, table)
            raise UsageError(f"driver '{driver}' has no option '{name}' to {when}{known}", hint=hint)
        result[name] = option.parse(value)  # under its own number, if it stands in a list
    if when != "amend":
        for option in table.values():
            if option.default is not None and "*" not in option.name:
                result.setdefault(option.name, option.default)
    return result
