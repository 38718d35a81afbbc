"""Which clients may come in, by the names in their certificates: QEMU's objects ``authz-simple`` and ``authz-list``.

Source: QEMU manual, "Client authorization"; ``qapi/authz.json``. Names are those of RFC 4514, with the parts in either
order: libraries differ in that.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from diskmill.errors import StorageError, UsageError

Name = Sequence[tuple[str, str]]
"""A distinguished name: keyword and value of each part."""
_LARGEST = 1 << 20


class _Rule(NamedTuple):
    match: str
    allow: bool
    glob: bool

    def fits(self, name: Name) -> bool:
        if self.glob:
            return any(fnmatchcase(text, self.match) for text in (_text(name), _text(name[::-1])))
        return sorted(_parts(self.match)) == sorted(_parts(_text(name)))


def authorization(properties: Mapping[str, str]) -> Callable[[Name], bool]:
    """What says whether a client with a certificate for this name may come in, as the object's *properties* have it.

    :raises UsageError: the object makes no sense. StorageError: its file cannot be read.
    """
    kind = properties.get("qom-type", "")
    if kind == "authz-simple":
        if "identity" not in properties:
            raise UsageError("an authz-simple object needs 'identity', the name in the certificate")
        rules, default = [_Rule(properties["identity"], True, False)], False
    elif kind == "authz-list":
        rules, default = _rules(_nested(properties))
    elif kind == "authz-list-file":
        rules, default = _rules(_load(properties.get("filename", "")))
    else:
        raise UsageError(f"authorization is by objects authz-simple, authz-list or authz-list-file, not '{kind}'")

    def allowed(name: Name) -> bool:
        return next((rule.allow for rule in rules if rule.fits(name)), default)

    return allowed


def _rules(given: Mapping[str, Any]) -> tuple[list[_Rule], bool]:
    """The rules, and what holds where none fits."""
    listed = given.get("rules", [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise UsageError("the rules of an authorization list are a list of objects")
    found = []
    for one in listed:
        if not isinstance(one.get("match"), str):
            raise UsageError("a rule of an authorization list needs 'match'")
        form = one.get("format", "exact")
        if form not in ("exact", "glob"):
            raise UsageError(f"a rule's format is exact or glob, not '{form}'")
        found.append(_Rule(one["match"], _policy(one.get("policy")), form == "glob"))
    return found, _policy(given.get("policy", "deny"))


def _policy(text: object) -> bool:
    if text not in ("allow", "deny"):
        raise UsageError(f"the policy of an authorization list or rule is allow or deny, not '{text}'")
    return text == "allow"


def _nested(properties: Mapping[str, str]) -> dict[str, Any]:
    """Properties as ``rules.0.match=…`` has them, with the rules as a list."""
    rules: dict[int, dict[str, str]] = {}
    for key, value in properties.items():
        found = re.fullmatch(r"rules\.(\d{1,6})\.(match|policy|format)", key)
        if found is not None:
            rules.setdefault(int(found[1]), {})[found[2]] = value
        elif key not in ("qom-type", "id", "policy"):
            raise UsageError(f"an authz-list object has no property '{key}'")
    if sorted(rules) != list(range(len(rules))):
        raise UsageError("the rules of an authz-list object are numbered 0, 1, 2, …")
    return {"policy": properties.get("policy", "deny"), "rules": [rules[number] for number in sorted(rules)]}


def _load(path: str) -> dict[str, Any]:
    if not path:
        raise UsageError("an authz-list-file object needs 'filename'")
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            found = json.loads(file.read(_LARGEST))
    except OSError as error:
        raise StorageError.from_os(error, path) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is no authorization list: {error}", file=path) from None
    if not isinstance(found, dict):
        raise UsageError("it is no authorization list", file=path)
    return found


def _text(name: Name) -> str:
    """RFC 4514, section 2.4: what separates parts is escaped where it is in a value."""
    return ",".join(f"{key}={_SPECIAL.sub(_escaped, value)}" for key, value in name)


def _escaped(found: re.Match[str]) -> str:
    return "\\" + found[0]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in _COMMA.split(text)]


_SPECIAL = re.compile(r'[,+"\\<>;]')
_COMMA = re.compile(r"(?<!\\),")
