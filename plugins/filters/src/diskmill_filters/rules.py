"""What blkdebug is told: which events are followed by which errors, and by which change of its state.

The names are those of ``BlkdebugEvent``, ``BlkdebugInjectErrorOptions`` and ``BlkdebugSetStateOptions`` in QEMU's
``qapi/block-core.json``; the configuration file is described in the QEMU documentation, "blkdebug".
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diskmill.contract.options import Option, validate
from diskmill.errors import StorageError, UsageError

EVENTS = frozenset(
    [
        "none",
        "l1_update",
        "l1_grow_alloc_table",
        "l1_grow_write_table",
        "l1_grow_activate_table",
        "l1_shrink_write_table",
        "l1_shrink_free_l2_clusters",
        "l2_load",
        "l2_update",
        "l2_update_compressed",
        "l2_alloc_cow_read",
        "l2_alloc_write",
        "read_aio",
        "read_backing_aio",
        "read_compressed",
        "write_aio",
        "write_compressed",
        "vmstate_load",
        "vmstate_save",
        "cow_read",
        "cow_write",
        "cor_write",
        "reftable_load",
        "reftable_grow",
        "reftable_update",
        "refblock_load",
        "refblock_update",
        "refblock_update_part",
        "refblock_alloc",
        "refblock_alloc_hookup",
        "refblock_alloc_write",
        "refblock_alloc_write_blocks",
        "refblock_alloc_write_table",
        "refblock_alloc_switch_table",
        "cluster_alloc",
        "cluster_alloc_bytes",
        "cluster_alloc_space",
        "cluster_free",
        "flush_to_os",
        "flush_to_disk",
        "pwritev_rmw_head",
        "pwritev_rmw_after_head",
        "pwritev_rmw_tail",
        "pwritev_rmw_after_tail",
        "pwritev",
        "pwritev_zero",
        "pwritev_done",
        "empty_image_prepare",
    ]
)
"""Every event that can be named, whether a driver tells of it or not."""

IO_TYPES = ("read", "write", "write-zeroes", "discard", "flush", "block-status")
"""Kinds of request that can fail; those before the last do where a rule names none."""

_OPTIONS = {
    "inject-error": (
        Option("event", "str", "what must happen for requests to fail", when=("open",)),
        Option("state", "int", "only in this state; 0: in any", default=0, when=("open",)),
        Option("iotype", "str", "only requests of this kind", choices=IO_TYPES, when=("open",)),
        Option("errno", "int", "the number of the error", default=errno.EIO, when=("open",)),
        Option("sector", "int", "only requests that touch this sector of 512 bytes", when=("open",)),
        Option("once", "bool", "only the next such request", default=False, when=("open",)),
        Option("immediately", "bool", "without effect: whether QEMU goes on first", default=False, when=("open",)),
    ),
    "set-state": (
        Option("event", "str", "what must happen for the state to change", when=("open",)),
        Option("state", "int", "only in this state; 0: in any", default=0, when=("open",)),
        Option("new_state", "int", "the state that follows", when=("open",)),
    ),
}
RULE_OPTIONS = tuple(
    Option(f"{kind}.*.{option.name}", option.type, option.help, option.default, option.choices, option.when)
    for kind, options in _OPTIONS.items()
    for option in options
)
"""The options of all rules, as the driver declares them."""
_MAX_CONFIG = 1 << 20
_SECTION = re.compile(r'\[\s*([A-Za-z0-9_-]+)(?:\s+"[^"]*")?\s*\]')
_SETTING = re.compile(r'([A-Za-z0-9_-]+)\s*=\s*"([^"]*)"')


@dataclass(eq=False)
class Rule:
    """One rule; *new_state* is None where it injects an error."""

    event: str
    state: int
    new_state: int | None = None
    io_type: str | None = None
    errno: int = errno.EIO
    sector: int | None = None
    once: bool = False

    def concerns(self, io_type: str, offset: int, length: int) -> bool:
        """Whether a request for *length* bytes at *offset* is to fail by it."""
        if io_type != self.io_type and (self.io_type is not None or io_type == "block-status"):
            return False
        return self.sector is None or offset < (self.sector + 1) * 512 and self.sector * 512 < offset + length


class Rules:
    """The rules of one node, its state, and the errors that wait for a request."""

    def __init__(self, rules: list[Rule]) -> None:
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self._rules.setdefault(rule.event, []).append(rule)
        self._state = 1
        self._waiting: list[Rule] = []
        self._lock = threading.Lock()
        self.happen("none")

    def happen(self, event: str) -> None:
        """*event* happens. Rules that inject errors for it take the place of those that waited."""
        rules = self._rules.get(event)
        if rules is None:
            return
        with self._lock:
            matching = [rule for rule in rules if rule.state in (0, self._state)]
            injecting = [rule for rule in matching if rule.new_state is None]
            if injecting:
                self._waiting = injecting[::-1]
            for rule in matching:
                if rule.new_state is not None:
                    self._state = rule.new_state

    def judge(self, io_type: str, offset: int, length: int) -> int:
        """The number of the error that a request ends with; 0: none."""
        if not self._waiting:
            return 0
        with self._lock:
            for rule in self._waiting:
                if rule.concerns(io_type, offset, length):
                    if rule.once:  # its event does not bring it back
                        self._waiting = [one for one in self._waiting if one is not rule]
                        self._rules[rule.event].remove(rule)
                    return rule.errno
        return 0


def rules_of(options: Mapping[str, Any]) -> list[Rule]:
    """The rules in the node's own, flat options: ``inject-error.0.event`` and so on."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for name, value in options.items():
        kind, _, rest = name.partition(".")
        if kind in _OPTIONS:
            number, _, field = rest.partition(".")
            found.setdefault((kind, int(number)), {})[field] = value
    return [_rule(kind, found[kind, number]) for kind, number in sorted(found)]


def read_config(path: str) -> list[Rule]:
    """The rules in the configuration file *path*.

    :raises StorageError: it cannot be read. UsageError: it is malformed.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_MAX_CONFIG + 1)
    except OSError as error:
        raise StorageError.from_os(error, path, "blkdebug config file") from None
    except ValueError:
        raise UsageError("it is not a possible file name", file=path) from None
    if len(text) > _MAX_CONFIG:
        raise UsageError(f"a blkdebug config file has at most {_MAX_CONFIG} characters", file=path)
    try:
        return [_rule(kind, given) for kind, given in _sections(text)]
    except UsageError as error:
        raise UsageError(error.cause, file=path) from None


def _sections(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    kind: str | None = None
    given: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if section := _SECTION.fullmatch(line):
            if kind is not None:
                yield kind, given
            kind, given = section[1], {}
            if kind not in _OPTIONS:
                raise UsageError(f"line {number}: there is no option group '{kind}'")
        elif kind is not None and (setting := _SETTING.fullmatch(line)):
            given[setting[1]] = setting[2]
        else:
            raise UsageError(f'line {number}: neither [section] nor name = "value"')
    if kind is not None:
        yield kind, given


def _rule(kind: str, given: Mapping[str, Any]) -> Rule:
    values = validate(_OPTIONS[kind], given, when="open", driver=f"blkdebug {kind}")
    event = str(values.get("event", "")).replace(".", "_")  # older QEMU wrote l2_alloc.write
    if event not in EVENTS:
        raise UsageError(f"{kind}: there is no event '{event[:80]}'" if event else f"{kind}: the event is missing")
    if kind == "set-state":
        if "new_state" not in values:
            raise UsageError("set-state: 'new_state' is missing")
        return Rule(event, int(values["state"]), int(values["new_state"]))
    if not 0 < int(values["errno"]) < 4096:
        raise UsageError(f"inject-error: {values['errno']} is not the number of an error")
    return Rule(
        event,
        int(values["state"]),
        io_type=str(values["iotype"]) if "iotype" in values else None,
        errno=int(values["errno"]),
        sector=int(values["sector"]) if "sector" in values else None,
        once=bool(values["once"]),
    )
