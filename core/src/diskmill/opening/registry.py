"""Which drivers are installed, and calling them.

Drivers are found by entry point (:mod:`diskmill.opening.discovery`), pluggy calls them. A driver is imported when it is
first asked for by name, or when an image must be probed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from ..contract import calls
from ..contract.drivers import CryptoDriver, Driver, FilterDriver, FormatDriver, ProtocolDriver
from ..errors import DriverError, did_you_mean
from . import dispatch
from .discovery import EntryPoint, installed
from .known_drivers import ALIASES, PACKAGES, how_to_install, recognise

if TYPE_CHECKING:
    import pluggy

SURE = 100
"""What a driver's ``probe`` answers when it cannot be another's image."""
PLUGIN_GROUP = "diskmill.plugin"
"""Entry points of plugins that are not drivers: hook wrappers for all formats at once."""

PREFIX_GROUP = "diskmill.prefix"
"""Entry points that name the protocol driver of a prefix."""

MAGIC_GROUP = "diskmill.magic"
"""Entry points that name the format driver of a magic: the bytes in hexadecimal, behind them a dot and their offset,
where that is not 0."""

_WORDS = {kind.group: kind.kind for kind in (FormatDriver, ProtocolDriver, FilterDriver, CryptoDriver)}


def _unmarked(driver: Driver) -> Iterator[str]:
    """Methods of *driver* that are called as a hook is, but would never be."""
    for hook in dispatch.HOOKS:
        method = getattr(type(driver), hook, None)
        if method is not None and not hasattr(method, "diskmill_impl"):
            yield f"its method '{hook}' is not marked as a hook: put @hookimpl above it"


def _begins(data: bytes, magic: str) -> bool:
    """Whether an image that begins with *data* has the *magic* of an entry point; one that is none keeps nobody out."""
    digits, _, offset = magic.partition(".")
    try:
        return data.startswith(bytes.fromhex(digits), int(offset or "0"))
    except ValueError:
        return True


class Registry:
    """The installed drivers. One is enough for a process: :func:`default_registry`."""

    def __init__(self) -> None:
        self._manager: pluggy.PluginManager | None = None
        self._plain: dict[str, Driver] = {}
        self.failures: dict[str, str] = {}
        """Drivers that are installed but could not be imported: name → why."""
        self._drivers: dict[tuple[str, str], Driver] = {}
        self._callers: dict[tuple[Driver, str], Callable[..., Any]] = {}
        self._complete: set[str] = set()
        self._installed = installed()
        self._names = {(entry.group, entry.name) for entry in self._installed}
        for entry in self.entries(PLUGIN_GROUP):
            for plugin in self._loaded(entry):
                self._register(plugin, entry.name)
        # A plugin may be there to forbid something: going on without it would allow that.
        for name, why in self.failures.items():
            raise DriverError(f"plugin '{name}' could not be loaded: {why}; repair or uninstall it")

    @property
    def plugins(self) -> pluggy.PluginManager:
        """pluggy's manager of all that is registered. As long as nobody has asked for it, and there are plain drivers
        and no more, there is none: a hook then is one method, and importing pluggy takes longer than opening an image.
        """
        if self._manager is None:
            from .plugins import Manager

            manager = Manager()
            for label, driver in self._plain.items():
                manager.register(driver, label)
            self._manager = manager
            self._callers.clear()
        return self._manager

    def entries(self, group: str) -> list[EntryPoint]:
        """What is installed under *group*."""
        return [entry for entry in self._installed if entry.group == group]

    def _loaded(self, entry: EntryPoint) -> list[Any]:
        """What *entry* names; nothing where it cannot be imported."""
        try:
            return [entry.load()]
        except Exception as error:  # whatever a stranger's module raises
            self.failures[entry.name] = f"{type(error).__name__}: {error}"
            return []

    def _add(self, group: str, entries: list[EntryPoint]) -> None:
        found: dict[str, list[tuple[Any, str]]] = {}
        for entry in entries:
            same = found.setdefault(entry.name, [])
            for driver in self._loaded(entry):
                if all(other is not driver for other, _ in same):
                    same.append((driver, entry.value))
        for name, same in found.items():
            if not same or (group, name) in self._drivers:
                continue
            driver = same[0][0]
            if len(same) > 1:
                places = " and ".join(sorted(value for _, value in same))
                self.failures[name] = f"{places} both bring it: uninstall one of the packages"
            elif not isinstance(driver, Driver) or driver.group != group or driver.name != name:
                self.failures[name] = f"its entry point is not a {_WORDS[group]} driver of that name"
            elif self._register(driver, f"{group}:{name}", name):
                self._drivers[group, name] = driver
                self._callers.clear()

    def _register(self, plugin: object, label: str, name: str | None = None) -> bool:
        """Let pluggy check the signatures of *plugin*'s hooks, and that there are such hooks; and what it declares."""
        faults = [*plugin.faults(), *_unmarked(plugin)] if isinstance(plugin, Driver) else []
        if faults:
            self.failures[name or label] = "; ".join(faults)
            return False
        known = label in self._plain or any(plugin is other for other in self._plain.values())
        if self._manager is None and not known and isinstance(plugin, Driver) and dispatch.is_plain(plugin):
            self._plain[label] = plugin
            return True
        plugins = self.plugins  # imports pluggy
        from pluggy import PluginValidationError

        try:
            plugins.register(plugin, label)
            plugins.check_pending()
        except (PluginValidationError, ValueError) as error:
            self.failures[name or label] = " ".join(str(error).split())
            if plugins.is_registered(plugin):  # what of it was valid must not be called
                plugins.unregister(plugin)
            return False
        return True

    def add(self, driver: Driver) -> None:
        """Register *driver* without an entry point: for tests, and for programs that bring their own."""
        if not self._register(driver, f"{driver.group}:{driver.name}", driver.name):
            raise DriverError(f"{_WORDS[driver.group]} driver '{driver.name}': {self.failures[driver.name]}")
        self._drivers[driver.group, driver.name] = driver
        self._callers.clear()

    def all(self, group: str) -> list[Any]:
        """Every driver of *group* that can be imported, by name."""
        if group not in self._complete:
            self._add(group, self.entries(group))
            self._complete.add(group)
        return [driver for (kind, _), driver in sorted(self._drivers.items()) if kind == group]

    def get(self, group: str, name: str) -> Driver:
        """The driver called *name*.

        :raises DriverError: it is not installed (the message says what to install) or broken.
        """
        name = ALIASES.get((group, name), name)
        driver = self._usable(group, name)
        if driver is not None:
            return driver
        raise DriverError(self.why_missing(group, name), hint=self._alike(group, name))

    def _usable(self, group: str, name: str) -> Driver | None:
        driver = self._drivers.get((group, name))
        if driver is None and (group, name) in self._names and group not in self._complete:
            self._add(group, [entry for entry in self.entries(group) if entry.name == name])
            driver = self._drivers.get((group, name))
        return driver

    def why_missing(self, group: str, name: str) -> str:
        """What is the matter with the driver *name*, which :meth:`has` has not found, and what to do about it."""
        if name in self.failures:
            return f"{_WORDS[group]} driver '{name}' could not be loaded: {self.failures[name]}"
        if name in PACKAGES:
            return f"{_WORDS[group]} driver '{name}' is not installed: {how_to_install(PACKAGES[name])}"
        return f"unknown {_WORDS[group]} '{name}'; 'diskmill drivers' lists what is installed"

    def _alike(self, group: str, name: str) -> str | None:
        """What may have been meant by *name*, which no driver has."""
        if name in self.failures or name in PACKAGES:
            return None
        return did_you_mean(name, (driver for kind, driver in self.names() if kind == group))

    def names(self) -> Iterator[tuple[str, str]]:
        """The (group, name) of every driver that is installed, or was added; none is imported."""
        yield from self._drivers
        yield from ((entry.group, entry.name) for entry in self._installed if entry.group in _WORDS)

    def format(self, name: str) -> FormatDriver:
        """The format driver *name*; see :meth:`get`."""
        return cast(FormatDriver, self.get(FormatDriver.group, name))

    def prefixed(self, prefix: str) -> ProtocolDriver | None:
        """The protocol driver of names that begin with *prefix* and a colon; None: none has it.

        :raises DriverError: it is broken, or two packages claim the prefix.
        """
        names_it = {prefix, prefix.partition("+")[0] + "+*"} if "+" in prefix else {prefix}
        for driver in self._drivers.values():  # those without an entry point, too
            if isinstance(driver, ProtocolDriver) and not names_it.isdisjoint((driver.name, *driver.prefixes)):
                return driver
        claims = {entry.value for entry in self.entries(PREFIX_GROUP) if entry.name in names_it}
        names = {entry.name for entry in self.entries(ProtocolDriver.group) if entry.value in claims}
        if len(names) > 1:
            raise DriverError(f"the prefix '{prefix}:' is claimed by {' and by '.join(sorted(names))}: uninstall one")
        if not names and any(entry.name == prefix for entry in self.entries(ProtocolDriver.group)):
            names = {prefix}
        return self.protocol(names.pop()) if names else None

    def filter(self, name: str) -> FilterDriver:
        """The filter driver *name*; see :meth:`get`."""
        return cast(FilterDriver, self.get(FilterDriver.group, name))

    def protocol(self, name: str) -> ProtocolDriver:
        """The protocol driver *name*; see :meth:`get`."""
        return cast(ProtocolDriver, self.get(ProtocolDriver.group, name))

    def crypto(self, name: str) -> CryptoDriver:
        """The crypto driver *name*; see :meth:`get`."""
        return cast(CryptoDriver, self.get(CryptoDriver.group, name))

    def has(self, group: str, name: str) -> bool:
        """Whether a usable driver of that name is installed. It is asked for each image that is opened, mostly of names
        that there are not: what may have been meant is not looked for."""
        return self._usable(group, ALIASES.get((group, name), name)) is not None

    def call(self, driver: Driver, hook: str, **arguments: Any) -> Any:
        """Call *hook* of *driver*, and of every plugin that is not a driver. None: the driver has no such hook."""
        caller = self._callers.get((driver, hook))
        if caller is None:
            if self._manager is None:
                caller = dispatch.caller(driver, hook)
            else:
                others = [other for other in self._drivers.values() if other is not driver]
                caller = self._manager.subset_hook_caller(hook, others)
            self._callers[driver, hook] = caller
        return caller(**arguments)

    def looks_like(self, data: bytes, name: str) -> str | None:
        """The format that a file called *name* would be taken for if it began with *data*, installed or not."""
        found = self.probe(data, name)
        return recognise(data, name) if found is None or found.name == "raw" else found.name

    def _formats_for(self, data: bytes) -> list[Any]:
        """The format drivers that may know an image that begins with *data*, by name. Who has told its magics in
        entry points is not even imported where the image has none of them."""
        group = FormatDriver.group
        matched: dict[str, bool] = {}
        for entry in self.entries(MAGIC_GROUP):
            matched[entry.value] = matched.get(entry.value, False) or _begins(data, entry.name)
        entries = self.entries(group)
        out = {entry.name for entry in entries} - {one.name for one in entries if matched.get(one.value, True)}
        if group not in self._complete:
            seen = {name for kind, name in self._drivers if kind == group} | self.failures.keys() | out
            self._add(group, [entry for entry in entries if entry.name not in seen])
        return [driver for (kind, name), driver in sorted(self._drivers.items()) if kind == group and name not in out]

    def probe(self, data: bytes, name: str) -> FormatDriver | None:
        """The format driver that is surest of an image that begins with *data* and is called *name*."""
        # Nobody can be surer than sure: then the other drivers need not even be imported.
        likely = recognise(data)
        if likely is not None and self.has(FormatDriver.group, likely):
            driver = self.format(likely)
            if calls.probe(self, driver, data, name) == SURE:
                return driver
        best, best_score = None, 0
        for driver in self._formats_for(data):
            score = calls.probe(self, driver, data, name)
            if score > best_score:
                best, best_score = driver, score
        return best


_default: Registry | None = None


def default_registry() -> Registry:
    """The registry of this process, made when first asked for."""
    global _default
    if _default is None:
        _default = Registry()
    return _default
