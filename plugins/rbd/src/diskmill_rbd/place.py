"""Places of the protocol ``rbd``: images of a pool, with the cluster that it belongs to.

Names are those of QEMU, ``rbd:pool[/namespace]/image[@snapshot][:key=value…]``, where a backslash takes from the
character behind it what it means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diskmill.contract.place import Place
from diskmill.errors import UsageError

if TYPE_CHECKING:
    from diskmill.contract.drivers import ProtocolDriver

_WHERE = ("pool", "namespace", "image", "snapshot")
_SHOWN = ("mon_host",)
"""Settings of a name that are shown, beside ``conf`` and ``id``; others may be secret."""
_FORM = "a name of this protocol is rbd:pool[/namespace]/image[@snapshot][:conf=FILE][:id=USER][:mon_host=…]"


@dataclass(frozen=True)
class Cluster:
    """How a cluster is reached, and who one is to it; ``settings`` are those of Ceph, as a name gives them."""

    conf: str | None = None
    user: str | None = None
    settings: tuple[tuple[str, str], ...] = ()


class RbdPlace(Place):
    """The image *image* of *pool* and *namespace*; without a name, all of them.

    :param chosen: an option that was given with it and is the user's to give.
    """

    def __init__(
        self,
        driver: ProtocolDriver,
        cluster: Cluster,
        pool: str,
        namespace: str,
        image: str,
        snapshot: str | None = None,
        *,
        chosen: str = "",
    ) -> None:
        self.driver = driver
        self.cluster = cluster
        self.pool = pool
        self.namespace = namespace
        self.image = image
        self.snapshot = snapshot
        self._chosen = chosen

    def display(self) -> str:
        cluster = self.cluster
        namespace = f"{_escaped(self.namespace)}/" if self.namespace else ""
        snapshot = "" if self.snapshot is None else f"@{_escaped(self.snapshot)}"
        told = [("conf", cluster.conf), ("id", cluster.user), *(pair for pair in cluster.settings if pair[0] in _SHOWN)]
        rest = "".join(f":{key}={_escaped(value, '')}" for key, value in told if value is not None)
        return f"rbd:{_escaped(self.pool)}/{namespace}{_escaped(self.image)}{snapshot}{rest}"

    def _at(self, image: str, snapshot: str | None = None) -> RbdPlace:
        return RbdPlace(self.driver, self.cluster, self.pool, self.namespace, image, snapshot)

    def beside(self, reference: str) -> RbdPlace:
        """An image, or a snapshot of one, of the same pool and namespace."""
        parts = _split(reference, "@")
        return self._at(_expected(parts[0], reference), parts[1] if len(parts) == 2 else None)

    def inside(self, name: str) -> RbdPlace:
        return self._at(_expected(name, name))

    def folder(self) -> RbdPlace | None:
        return self._at("") if self.image else None

    def objection(self) -> str | None:
        return f"it sets '{self._chosen}'" if self._chosen else None

    def within(self, folder: Place) -> bool:
        """An image itself, with its snapshots, or any of the same pool and namespace of the same cluster."""
        if not isinstance(folder, RbdPlace) or self._pool() != folder._pool():
            return False
        return folder.image in ("", self.image) and folder.snapshot in (None, self.snapshot)

    def _pool(self) -> object:
        return self.cluster, self.pool, self.namespace

    def identity(self) -> object:
        return "rbd", self._pool(), self.image, self.snapshot


def place_of(driver: ProtocolDriver, options: Mapping[str, Any]) -> RbdPlace:
    """Where the flat *options*, which are those of a node, say that it is.

    :raises UsageError: they name no possible place.
    """
    name = options.get("filename")
    shown = None if name is None else str(name).partition(":key=")[0]
    if any(key.startswith("encrypt.") for key in options):
        raise UsageError("option 'encrypt' is not supported: open it with the driver 'luks' over 'rbd'", file=shown)
    if name is not None:
        if any(key in options for key in _WHERE):
            raise UsageError("a name says where it is, and so do options: give one of them", file=shown)
        found, settings = _parse(str(name), shown or "")
    else:
        found, settings = {key: str(options[key]) for key in _WHERE if key in options}, {}
        for key in ("pool", "image"):
            if not found.get(key):
                raise UsageError(f"the option '{key}' is missing, or a name, rbd:pool/image")
    for key, option in (("conf", "conf"), ("id", "user")):
        if option in options:
            if key in settings:
                raise UsageError(f"a name has '{key}', and so do options: give one of them", file=shown)
            settings[key] = str(options[option])
    chosen = next(iter(settings), "") or next((key for key in options if key not in (*_WHERE, "filename")), "")
    if hosts := _hosts(options, shown):
        settings["mon_host"] = hosts
    if "auth-client-required.0" in options:
        ways = (options.get(f"auth-client-required.{number}") for number in range(2))
        settings["auth_client_required"] = ";".join(str(way) for way in ways if way is not None)
    conf, user = settings.pop("conf", None), settings.pop("id", None)
    for text in (*found.values(), *settings, *settings.values(), conf or "", user or ""):
        if "\0" in text or "\n" in text or len(text) > 4096:
            raise UsageError("it is not a possible name of an image", file=shown)
    return RbdPlace(
        driver,
        Cluster(conf, user, tuple(settings.items())),
        found["pool"],
        found.get("namespace", ""),
        found.get("image", ""),
        found.get("snapshot"),
        chosen=chosen,
    )


def _hosts(options: Mapping[str, Any], shown: str | None) -> str:
    found = []
    for number in range(8):
        host, port = (options.get(f"server.{number}.{part}") for part in ("host", "port"))
        if host is None and port is not None:
            raise UsageError(f"the option 'server.{number}.host' is missing", file=shown)
        if host is not None:
            text = f"[{host}]" if ":" in str(host) else str(host)
            found.append(text if port is None else f"{text}:{port}")
    return ",".join(found)


def _parse(name: str, shown: str) -> tuple[dict[str, str], dict[str, str]]:
    """Where *name* says that it is, and the settings in it."""
    prefix, colon, rest = name.partition(":")
    first, *pairs = _split(rest, ":", keep=True)
    pool, slash, path = _halves(first, "/")
    if prefix != "rbd" or not colon or not pool or not slash:
        raise UsageError(_FORM, file=shown)
    namespace, between, image = _halves(path, "/")
    if not between:
        namespace, image = "", path
    image, at, snapshot = _halves(image, "@")
    found = {"pool": _plain(pool), "namespace": _plain(namespace), "image": _plain(image)}
    if at:
        found["snapshot"] = _plain(snapshot)
    settings = {}
    for pair in pairs:
        key, equals, value = _halves(pair, "=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_ -]+", key):
            raise UsageError("what follows the image's name are settings, key=value", file=shown)
        settings[key.replace(" ", "_").replace("-", "_")] = _plain(value)
    return found, settings


def _halves(text: str, at: str) -> tuple[str, str, str]:
    """*text* before and behind the first *at* that has no backslash before it."""
    found = re.match(rf"((?:\\.|[^\\{at}])*){at}(.*)", text, re.DOTALL)
    return (found[1], at, found[2]) if found else (text, "", "")


def _split(text: str, at: str, *, keep: bool = False) -> list[str]:
    parts = []
    while True:
        part, found, text = _halves(text, at)
        parts.append(part if keep else _plain(part))
        if not found:
            return parts


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _escaped(text: str, separators: str = "/") -> str:
    """*text* as it is typed. A slash parts pool, namespace and image; in a setting's value it means nothing."""
    return re.sub(rf"([\\:@={separators}])", r"\\\1", text)


def _expected(name: str, reference: str) -> str:
    if not name or "/" in name or "\0" in name:
        raise UsageError("beside an image of a pool lie images of the same pool", file=reference[:80])
    return name
