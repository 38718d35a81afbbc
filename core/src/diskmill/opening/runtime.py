"""Options of every node that say how it is used, and nothing about what it holds.

They are those that ``blockdev-add`` takes for all nodes, whatever their driver: see ``BlockdevOptions`` in QEMU's
``qapi/block-core.json``. Those that mean nothing to a program that runs for one command are checked, and taken without
effect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..contract.drivers import FilterDriver, FormatDriver, ProtocolDriver
from ..contract.options import Option, validate
from ..errors import UsageError
from ..records import record, replace
from .context import Context
from .places import place_of
from .registry import Registry
from .spec import gathered

OPTIONS = (
    Option("cache.direct", "bool", "go around the page cache", when=("open",)),
    Option("cache.no-flush", "bool", "never wait until data is on the disk", when=("open",)),
    Option(
        "detect-zeroes",
        "str",
        "store zeros that are written as zeros: off, on, or unmap (giving their space back)",
        choices=("off", "on", "unmap"),
        when=("open",),
    ),
    Option(
        "discard",
        "str",
        "whether space that is not needed goes back: ignore (off) or unmap (on)",
        choices=("ignore", "off", "unmap", "on"),
        when=("open",),
    ),
    Option("force-share", "bool", "open it though another process writes it", when=("open",)),
    Option("node-name", "str", "a name that nobody asks for here", when=("open",)),
    Option("read-only", "bool", "refuse to open it for writing", when=("open",)),
    Option("auto-read-only", "bool", "without effect: what is to be written is opened so", when=("open",)),
    Option("active", "bool", "without effect: off is for virtual machines that move", when=("open",)),
)
"""What every node takes. Children inherit ``cache.*`` and ``force-share``."""

_NAMES = frozenset(option.name for option in OPTIONS)
_NODE_NAME = r"[A-Za-z][A-Za-z0-9._-]{0,30}"
_MODES = {  # (direct, no-flush) of each cache mode, and back
    "writeback": (False, False),
    "writethrough": (False, False),
    "none": (True, False),
    "directsync": (True, False),
    "unsafe": (False, True),
}


@record(frozen=True)
class Runtime:
    """How one node is used."""

    direct: bool | None = None
    no_flush: bool | None = None
    share: bool | None = None
    read_only: bool = False
    discards: bool = True
    """Whether space that is not needed is given back."""
    detect_zeroes: str = "off"

    def context(self, context: Context) -> Context:
        """*context* as it holds for the node and what is below it."""
        if self.direct is None and self.no_flush is None and self.share is None:
            return context
        through = context.cache in ("writethrough", "directsync")
        direct, no_flush = _MODES[context.cache]
        direct = direct if self.direct is None else self.direct
        no_flush = no_flush if self.no_flush is None else self.no_flush
        if direct:  # with the page cache out of the way there is little left to wait for
            cache = "directsync" if through else "none"
        elif no_flush:
            cache = "unsafe"
        else:
            cache = "writethrough" if through else "writeback"
        return replace(context, cache=cache, share=context.share if self.share is None else self.share)

    def allow(self, writable: bool, name: str) -> None:
        """Refuse to open the node *name* for writing where it may not be.

        :raises UsageError: it is read-only, or shared with whoever writes it.
        """
        if writable and self.read_only:
            raise UsageError("Block node is read-only", file=name)
        if writable and self.share:
            raise UsageError("force-share=on can only be used with read-only images", file=name)


def split_runtime(options: Mapping[str, Any]) -> tuple[Runtime, dict[str, Any]]:
    """What the flat *options* of a node say about its use, and the rest, which is its driver's.

    :raises UsageError: a value is wrong, or contradicts another.
    """
    rest = {name: value for name, value in options.items() if name not in _NAMES}
    if len(rest) == len(options):
        return Runtime(), rest
    given = {name: value for name, value in options.items() if name in _NAMES}
    values = validate(OPTIONS, given, when="open", driver="node")
    label = str(values.get("node-name", "node"))
    if not re.fullmatch(_NODE_NAME, label):
        raise UsageError(f"Invalid node-name: '{label[:80]}'")
    discard, zeroes = values.get("discard"), str(values.get("detect-zeroes", "off"))
    if zeroes == "unmap" and discard not in ("unmap", "on"):
        raise UsageError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")

    def switch(name: str) -> bool | None:
        return bool(values[name]) if name in values else None

    return (
        Runtime(
            direct=switch("cache.direct"),
            no_flush=switch("cache.no-flush"),
            share=switch("force-share"),
            read_only=bool(values.get("read-only")),
            discards=discard not in ("ignore", "off"),
            detect_zeroes=zeroes,
        ),
        rest,
    )


def without_runtime(spec: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """The node options *spec* without those that say nothing about what is read, every node's and its driver's, and
    without credentials."""
    name = spec.get("driver", "file" if "filename" in spec else None)
    if isinstance(name, str) and registry.has(FilterDriver.group, name):
        spec = gathered(spec, registry.filter(name).children)
    weak, shown = set(_NAMES), {}
    for group in (FormatDriver.group, ProtocolDriver.group):
        if isinstance(name, str) and registry.has(group, name):
            driver = registry.get(group, name)
            weak |= {option.name for option in driver.options if option.runtime or option.secret}
            if isinstance(driver, ProtocolDriver) and any(option.secret for option in driver.options):
                shown["filename"] = place_of(spec, registry).display()
    kept = {
        key: _without_runtime(value, registry) if isinstance(value, Mapping | list) else value
        for key, value in spec.items()
        if key not in weak
    }
    return {**kept, **shown}


def _without_runtime(value: Any, registry: Registry) -> Any:
    if isinstance(value, list):
        return [_without_runtime(one, registry) for one in value]
    if not isinstance(value, Mapping):
        return value
    if "filename" in value and "driver" not in value:
        value = {"driver": "file", **value}
    return without_runtime(value, registry)
