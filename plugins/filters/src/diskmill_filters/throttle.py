"""The filter ``throttle``: lets no more than so many bytes, or requests, a second pass to the node below.

Limits stand in a throttle group, which several nodes may share, or in the node's own options. A limit is a bucket that
leaks at the average rate; a request waits until the bucket is no fuller than what may come in a burst. See
``ThrottleLimits`` in QEMU's ``qapi/block-core.json`` and the QEMU manual, "throttle".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.options import Option, validate
from diskmill.errors import StorageError, UsageError
from diskmill.kit.filter import Filter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diskmill.contract.node import Buffer, Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest

_COUNTED = tuple(f"{what}-{way}" for what in ("bps", "iops") for way in ("total", "read", "write"))
_PHRASES = {"bps": "bytes", "iops": "requests"}
_BURST = 0.1
"""Seconds' worth of the average rate that may come at once where no burst is set, so that small requests flow."""


def _limits() -> Iterator[Option]:
    for name in _COUNTED:
        what, _, way = name.partition("-")
        unit = _PHRASES[what]
        of = {"total": "", "read": ", of reads", "write": ", of writes"}[way]
        yield Option(f"limits.{name}", "int", f"{unit} a second{of}; 0: no limit", default=0, when=("open",))
        yield Option(f"limits.{name}-max", "int", f"{unit} a second in bursts{of}", default=0, when=("open",))
        yield Option(f"limits.{name}-max-length", "int", f"seconds that a burst lasts{of}", default=1, when=("open",))
    yield Option("limits.iops-size", "int", "bytes that count as a request each", default=0, when=("open",))


LIMITS = tuple(_limits())


class Bucket:
    """What passed lately, leaking at *average* units a second; over *burst* seconds there may be *most* a second."""

    def __init__(self, average: int, most: int, burst: int) -> None:
        self._average = average
        self._most = most
        self._room = most * burst if most else average * _BURST
        self._level = self._peak = 0.0
        self._leaked = time.monotonic()

    def delay(self, now: float) -> float:
        """Seconds until the next request may pass."""
        passed, self._leaked = now - self._leaked, now
        self._level = max(self._level - passed * self._average, 0.0)
        self._peak = max(self._peak - passed * self._most, 0.0)
        wait = max(self._level - self._room, 0.0) / self._average
        if self._most:  # bursts have a rate of their own
            wait = max(wait, (self._peak - self._most * _BURST) / self._most)
        return max(wait, 0.0)

    def fill(self, units: float) -> None:
        """*units* pass."""
        self._level += units
        self._peak += units if self._most else 0.0


class Group:
    """Limits, and what passed them, of all nodes that share them."""

    def __init__(self, limits: Mapping[str, Any]) -> None:
        self._lock = threading.Lock()
        self._request = int(limits["limits.iops-size"])
        self._buckets: dict[str, Bucket] = {}
        for name in _COUNTED:
            average, most, burst = (int(limits[f"limits.{name}{end}"]) for end in ("", "-max", "-max-length"))
            if most and not average:
                raise UsageError(f"the limit '{name}-max' needs '{name}'")
            if most and most < average:
                raise UsageError(f"the limit '{name}-max' cannot be lower than '{name}'")
            if burst != 1 and not most:
                raise UsageError(f"the limit '{name}-max-length' needs '{name}-max'")
            if not burst:
                raise UsageError(f"the limit '{name}-max-length' is at least 1 second")
            if average:
                self._buckets[name] = Bucket(average, most, burst)
        for what in _PHRASES:
            if f"{what}-total" in self._buckets and {f"{what}-read", f"{what}-write"} & set(self._buckets):
                raise UsageError(f"'{what}-total' and '{what}-read' or '{what}-write' exclude each other")
        if self._request and not any(name.startswith("iops") for name in self._buckets):
            raise UsageError("the limit 'iops-size' needs a limit of requests")

    def take(self, way: str, count: int, stopped: threading.Event) -> bool:
        """Wait until *count* bytes may pass in one request; *way* is ``read`` or ``write``. False: *stopped*."""
        requests = max(count / self._request, 1.0) if self._request else 1.0
        units = {"bps": float(count), "iops": requests}
        counted = [(self._buckets.get(f"{what}-{which}"), what) for what in units for which in ("total", way)]
        while not stopped.is_set():
            with self._lock:
                now = time.monotonic()
                wait = max((bucket.delay(now) for bucket, _ in counted if bucket is not None), default=0.0)
                if not wait:
                    for bucket, what in counted:
                        if bucket is not None:
                            bucket.fill(units[what])
                    return True
            stopped.wait(min(wait, 3600.0))
        return False


class Throttle(Filter):
    """*file*, no faster than *group* allows."""

    def __init__(self, driver: ThrottleDriver, file: Node, group: Group) -> None:
        super().__init__(driver, file)
        self._group = group
        self._stopped = threading.Event()

    def _wait(self, way: str, count: int) -> None:
        if not self._group.take(way, count, self._stopped):
            raise StorageError("the operation was cancelled", file=self.name)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self._wait("read", len(buffer))
        super().read_into(offset, buffer)

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._wait("write", len(data))
        super().write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._wait("write", length)
        super().zero(offset, length, unmap=unmap)

    def interrupt(self) -> None:
        self._stopped.set()
        super().interrupt()


class ThrottleDriver(FilterDriver):
    """``throttle``."""

    contract = 1
    name = "throttle"
    title = "limits how fast the node below is read and written"
    options = (
        Option("throttle-group", "str", "the id of the group (--object throttle-group,id=…)", when=("open",)),
        *LIMITS,
    )

    @hookimpl
    def open(self, request: OpenRequest) -> Throttle:
        """The node below, slowed down."""
        name = request.options.get("throttle-group")
        if name is not None:
            if any(request.options[one.name] != one.default for one in LIMITS):
                raise UsageError("give limits, or the throttle group that has them")
            return Throttle(self, request.below(), _group(request, str(name)))
        if all(request.options[one.name] == one.default for one in LIMITS):
            raise UsageError("please specify a throttle group, or limits")
        return Throttle(self, request.below(), Group(request.options))


def _group(request: OpenRequest, name: str) -> Group:
    """The group that the user defined as *name*, one for all nodes."""
    found = request.context.objects.get(name)
    if found is None or found.kind != "throttle-group":
        raise UsageError(f"throttle group '{name[:80]}' does not exist: define it with --object throttle-group,id=…")
    if found.state is None:
        given: dict[str, Any] = {}
        for key, value in found.properties.items():
            if key == "limits" and isinstance(value, Mapping):
                given.update({f"limits.{one}": limit for one, limit in value.items()})
            else:  # in an option string, limits have names of their own
                given[f"limits.{key[2:]}" if key.startswith("x-") else key] = value
        found.state = Group(validate(LIMITS, given, when="open", driver="throttle-group"))
    group: Group = found.state
    return group


driver = ThrottleDriver()
