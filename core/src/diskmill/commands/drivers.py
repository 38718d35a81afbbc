"""``drivers``: what is installed, and what each driver can do."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..contract.drivers import CAPABILITIES, CryptoDriver, FilterDriver, FormatDriver, ProtocolDriver
from ..contract.options import Option
from ..opening.registry import Registry, default_registry


@dataclass
class DriverInfo:
    """One installed driver.

    :param kind: ``format``, ``protocol``, ``filter`` or ``crypto``; ``unknown`` for a broken one.
    :param capabilities: names out of :data:`diskmill.contract.drivers.CAPABILITIES`, in their order.
    :param broken: why it cannot be used; empty: it can.
    """

    kind: str
    name: str
    title: str = ""
    capabilities: list[str] = field(default_factory=list)
    options: list[Option] = field(default_factory=list)
    broken: str = ""


def list_drivers(registry: Registry | None = None) -> list[DriverInfo]:
    """Every installed driver, by kind and name; broken ones last."""
    registry = registry or default_registry()
    found = []
    for kind in (FormatDriver, ProtocolDriver, FilterDriver, CryptoDriver):
        for driver in registry.all(kind.group):
            able = [name for name in CAPABILITIES if name in driver.capabilities]
            found.append(
                DriverInfo(kind.group.rpartition(".")[2], driver.name, driver.title, able, list(driver.options))
            )
    found += [DriverInfo("unknown", name, broken=why) for name, why in sorted(registry.failures.items())]
    return found
