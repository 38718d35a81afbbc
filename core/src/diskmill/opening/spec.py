"""What the options of a node say: its driver, the driver's own options, and the nodes below.

Which of the options are nodes below is what the driver declares (``Driver.children``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..contract.drivers import FilterDriver, FormatDriver
from ..errors import UsageError
from .names import Spec, flatten, nest

if TYPE_CHECKING:
    from .registry import Registry


NodeSpec = tuple[str | None, Spec, Spec]
"""One node, as a user or an image describes it: the name of its driver (None: it is to be found out); its options, the
driver's and those that every node has, flat; the nodes below by role, each as options or as a name (None: there shall
be none).
"""


def node_spec(spec: Mapping[str, Any], registry: Registry, *, default: str | None = None) -> NodeSpec:
    """What *spec* says of its node. The nodes below are left as they are.

    :param default: the driver that will open it where *spec* names none.
    :raises UsageError: it contradicts itself.
    """
    name = spec.get("driver")
    if name is not None and not isinstance(name, str):
        raise UsageError("the option 'driver' takes a name")
    children, rest = children_of(spec, declared(name or default, registry))
    rest.pop("driver", None)
    return name, flatten(rest), children


def declared(name: str | None, registry: Registry) -> Sequence[str]:
    """The children of a node whose driver is called *name*: what all formats have, and what more the driver declares;
    of a filter, what it declares alone."""
    if name is not None and registry.has(FilterDriver.group, name):
        return registry.filter(name).children
    if name is not None and registry.has(FormatDriver.group, name):
        return tuple(dict.fromkeys((*FormatDriver.children, *registry.format(name).children)))
    return FormatDriver.children


def children_of(spec: Mapping[str, Any], declared: Sequence[str]) -> tuple[dict[str, Any], Spec]:
    """The nodes below that *spec* gives, by role, and its other options.

    :param declared: what the driver declares: option names, or ``NAME.*`` for a list, whose roles are ``NAME.0`` and so
        on, in the order of the numbers.
    :raises UsageError: options contradict each other, or a list's number is none.
    """
    given: dict[str, Any] = {}
    rest: Spec = {}
    parts: dict[str, list[tuple[str, Any]]] = {}
    for key, value in _flatten_lists(spec):
        role, inside = _role(key, declared)
        if role is None:
            rest[key] = value
        elif not inside:
            given[role] = value
        else:
            parts.setdefault(role, []).append((inside, value))
    for role, pairs in parts.items():
        if role in given and not isinstance(given[role], Mapping):
            raise UsageError(f"option '{role}' and option '{role}.{pairs[0][0]}' contradict each other")
        given[role] = {**given.get(role, {}), **nest(pairs)}
    return {role: given[role] for role in sorted(given, key=lambda role: _rank(role, declared))}, rest


def gathered(spec: Mapping[str, Any], declared: Sequence[str]) -> Spec:
    """*spec* of a driver with the children *declared*, with those nested, in lists where they stand in one, and other
    options flat: as QEMU shows it."""
    below, rest = children_of(spec, declared)
    result = flatten(rest)
    for role, value in below.items():
        name, _, number = role.rpartition(".")
        if number.isdecimal():
            result.setdefault(name, []).append(value)
        else:
            result[role] = value
    return result


def _flatten_lists(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options of *spec*, those of a list under numbered names: ``children.0``."""
    for key, value in spec.items():
        if isinstance(value, list):
            yield from _flatten_lists({f"{key}.{number}": one for number, one in enumerate(value)})
        else:
            yield key, value


def _role(key: str, declared: Sequence[str]) -> tuple[str | None, str]:
    """The child of those *declared* that the option *key* belongs to, and its name there; None: to no child."""
    for name in declared:
        if name.endswith(".*"):
            head, _, rest = key.removeprefix(name[:-1]).partition(".")
            if key.startswith(name[:-1]):
                if not head.isdecimal() or len(head) > 4:
                    raise UsageError(f"option '{key[:80]}': the nodes of a list are numbered: {name[:-1]}0 and so on")
                return f"{name[:-1]}{int(head)}", rest
        elif key == name or key.startswith(f"{name}."):
            return name, key[len(name) + 1 :]
    return None, ""


def _rank(role: str, declared: Sequence[str]) -> tuple[int, int]:
    """Where *role* stands among all children: as declared, those of a list by number."""
    if role in declared:
        return declared.index(role), 0
    name, _, number = role.rpartition(".")
    return declared.index(f"{name}.*"), int(number)
