"""``drivers``: what is installed, and what each driver can do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..contract.drivers import CAPABILITIES, CryptoDriver, Driver, FilterDriver, FormatDriver, ProtocolDriver
from ..contract.options import Option
from ..errors import DriverError, did_you_mean
from ..opening.discovery import EntryPoint
from ..opening.known_drivers import PACKAGES
from ..opening.registry import PLUGIN_GROUP, Registry, default_registry

_KINDS = (FormatDriver, ProtocolDriver, FilterDriver, CryptoDriver)
_COMMAND_GROUP = "diskmill.command"


@dataclass
class DriverInfo:
    """One installed driver, or what else a package brings.

    :param kind: ``format``, ``protocol``, ``filter``, ``crypto``; ``plugin``: no driver, but called around all of them;
        ``command``; ``unknown``: broken, and given without a package.
    :param capabilities: names out of :data:`diskmill.contract.drivers.CAPABILITIES`, in their order.
    :param broken: why it cannot be used; empty: it can.
    :param package: the distribution that brings it, and its *version*; empty: it was given without one.
    :param origin: the file of its module, or else what its entry point names.
    :param prefixes: of a protocol: what its names begin with, before the colon.
    """

    kind: str
    name: str
    title: str = ""
    capabilities: list[str] = field(default_factory=list)
    options: list[Option] = field(default_factory=list)
    broken: str = ""
    package: str = ""
    version: str = ""
    origin: str = ""
    prefixes: list[str] = field(default_factory=list)


def list_drivers(registry: Registry | None = None, *, name: str | None = None) -> list[DriverInfo]:
    """Every installed driver, by kind and name; then plugins that are no drivers, commands, and what is broken.

    :param name: only those of this name.
    :raises DriverError: there is none of that name.
    """
    registry = registry or default_registry()
    packages = _packages()
    found = [info for kind in _KINDS for info in _drivers(registry, kind.group, packages)]
    named = {(info.kind, info.name) for info in found}
    for entry in registry.entries(PLUGIN_GROUP):
        found.append(_described("plugin", entry, _sentence(entry.load()), packages))
    for entry in registry.entries(_COMMAND_GROUP):
        try:
            found.append(_described("command", entry, str(getattr(entry.load(), "help", "")).rstrip("."), packages))
        except Exception as error:  # whatever a stranger's module raises
            broken = _described("command", entry, "", packages)
            broken.broken = f"{type(error).__name__}: {error}"
            found.append(broken)
    found += [info for info in _failures(registry, packages) if (info.kind, info.name) not in named]
    if name is not None:
        found = [info for info in found if info.name == name]
        if not found:
            if name in registry.failures or name in PACKAGES:
                registry.get(FormatDriver.group, name)  # says what to do about it
            raise DriverError(
                f"no driver is called '{name}'; 'diskmill drivers' lists what is installed",
                hint=did_you_mean(name, (known for _, known in registry.names())),
            )
    return found


def _drivers(registry: Registry, group: str, packages: dict[EntryPoint, tuple[str, str]]) -> Iterator[DriverInfo]:
    entries = {entry.name: entry for entry in registry.entries(group)}
    for driver in registry.all(group):
        entry = entries.get(driver.name, EntryPoint(group, driver.name, type(driver).__module__))
        info = _described(_word(group), entry, driver.title, packages)
        info.capabilities = [name for name in CAPABILITIES if name in driver.capabilities]
        info.options = list(driver.options)
        info.prefixes = sorted(getattr(driver, "prefixes", ()))
        yield info


def _failures(registry: Registry, packages: dict[EntryPoint, tuple[str, str]]) -> Iterator[DriverInfo]:
    for name, why in sorted(registry.failures.items()):
        entries = [entry for kind in _KINDS for entry in registry.entries(kind.group) if entry.name == name]
        for entry in entries[:1]:
            info = _described(_word(entry.group), entry, "", packages)
            info.broken = why
            yield info
        if not entries:
            yield DriverInfo("unknown", name, broken=why)


def _word(group: str) -> str:
    return group.rpartition(".")[2]


def _described(kind: str, entry: EntryPoint, title: str, packages: dict[EntryPoint, tuple[str, str]]) -> DriverInfo:
    package, version = packages.get(entry, ("", ""))
    module = sys.modules.get(entry.value.partition(":")[0].strip())
    origin = getattr(module, "__file__", None) or entry.value
    return DriverInfo(kind, entry.name, title, package=package, version=version, origin=origin)


def _packages() -> dict[EntryPoint, tuple[str, str]]:
    """Which distribution, of which version, brings each entry point."""
    from importlib.metadata import entry_points

    from ..opening.discovery import GROUPS

    return {
        EntryPoint(group, one.name, one.value): (one.dist.name, one.dist.version)
        for group in GROUPS
        for one in entry_points(group=group)
        if one.dist is not None
    }


def _sentence(plugin: Any) -> str:
    """What a plugin says that it is: the first line of its docstring."""
    text = getattr(plugin, "title", "") or (getattr(plugin, "__doc__", None) or "")
    return str(text).strip().partition("\n")[0].rstrip(".") if not isinstance(plugin, Driver) else plugin.title
