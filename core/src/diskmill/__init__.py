"""diskmill: virtual disk images from Python.

>>> import diskmill
>>> with diskmill.open("disk.qcow2") as disk:       # doctest: +SKIP
...     disk.size, disk.read(0, 512)

Every command of the ``diskmill`` command line is one function here; they take and return typed objects, count in
bytes, and raise :class:`DiskmillError`. Names are imported when first used, so that ``import diskmill`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .commands.amend import amend as amend
    from .commands.bench import bench as bench
    from .commands.bitmap import bitmap as bitmap
    from .commands.check import check as check
    from .commands.commit import commit as commit
    from .commands.compare import compare as compare
    from .commands.conversion import Source as Source
    from .commands.conversion import Target as Target
    from .commands.convert import convert as convert
    from .commands.create import create as create
    from .commands.dd import dd as dd
    from .commands.digest import digest as digest
    from .commands.drivers import list_drivers as list_drivers
    from .commands.info import info as info
    from .commands.info import info_chain as info_chain
    from .commands.listing import listing as listing
    from .commands.map import map as map
    from .commands.measure import measure as measure
    from .commands.rebase import rebase as rebase
    from .commands.resize import resize as resize
    from .commands.snapshot import snapshot as snapshot
    from .commands.sync import sync as sync
    from .contract.drivers import CryptoDriver as CryptoDriver
    from .contract.drivers import FormatDriver as FormatDriver
    from .contract.drivers import ProtocolDriver as ProtocolDriver
    from .contract.drivers import hookimpl as hookimpl
    from .contract.limits import LimitError as LimitError
    from .contract.node import Image as Image
    from .errors import CancelledError as CancelledError
    from .errors import CheckUnsupportedError as CheckUnsupportedError
    from .errors import ClosedError as ClosedError
    from .errors import DiskmillError as DiskmillError
    from .errors import DriverError as DriverError
    from .errors import ImageError as ImageError
    from .errors import LockedError as LockedError
    from .errors import RefusedError as RefusedError
    from .errors import SecretError as SecretError
    from .errors import StorageError as StorageError
    from .errors import UnsupportedError as UnsupportedError
    from .errors import UsageError as UsageError
    from .library import open as open
    from .library import serve as serve
    from .opening.context import Context as Context
    from .opening.gate import ANYTHING as ANYTHING
    from .opening.gate import FOLDER as FOLDER
    from .opening.gate import NOTHING as NOTHING
    from .opening.gate import Trust as Trust
    from .opening.secrets import Secret as Secret
    from .opening.settings import Settings as Settings
    from .storages.memory import memory as memory

_HOMES = {
    "ANYTHING": "opening.gate",
    "Context": "opening.context",
    "CancelledError": "errors",
    "CheckUnsupportedError": "errors",
    "ClosedError": "errors",
    "CryptoDriver": "contract.drivers",
    "DiskmillError": "errors",
    "DriverError": "errors",
    "FOLDER": "opening.gate",
    "FormatDriver": "contract.drivers",
    "Image": "contract.node",
    "ImageError": "errors",
    "LimitError": "contract.limits",
    "LockedError": "errors",
    "NOTHING": "opening.gate",
    "ProtocolDriver": "contract.drivers",
    "RefusedError": "errors",
    "SecretError": "errors",
    "Secret": "opening.secrets",
    "Settings": "opening.settings",
    "Source": "commands.conversion",
    "StorageError": "errors",
    "Target": "commands.conversion",
    "Trust": "opening.gate",
    "UnsupportedError": "errors",
    "UsageError": "errors",
    "amend": "commands.amend",
    "bench": "commands.bench",
    "bitmap": "commands.bitmap",
    "check": "commands.check",
    "commit": "commands.commit",
    "compare": "commands.compare",
    "convert": "commands.convert",
    "create": "commands.create",
    "dd": "commands.dd",
    "digest": "commands.digest",
    "hookimpl": "contract.drivers",
    "info": "commands.info",
    "info_chain": "commands.info",
    "list_drivers": "commands.drivers",
    "listing": "commands.listing",
    "map": "commands.map",
    "measure": "commands.measure",
    "memory": "storages.memory",
    "open": "library",
    "rebase": "commands.rebase",
    "resize": "commands.resize",
    "serve": "library",
    "snapshot": "commands.snapshot",
    "sync": "commands.sync",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'diskmill' has no attribute {name!r}")
    value = getattr(import_module(f"diskmill.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
