"""The hooks: everything that the core asks of drivers, and that other plugins can wrap.

A hook goes to *one* driver plus every plugin that is not a driver. So a hook wrapper registered under the entry-point
group ``diskmill.plugin`` sees the operation for every format. Hooks are the control plane: one call for an operation,
never one for a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .marks import hookspec

if TYPE_CHECKING:
    from .calls import BitmapAction, Preallocation, PreflightAction, Repair, SnapshotAction
    from .crypto import CryptoRequest, Volume
    from .extents import Extent
    from .node import Image, Node
    from .options import Value
    from .place import Place
    from .requests import CreateRequest, MeasureRequest, OpenRequest
    from .results import Bitmap, CheckResult, Measurement, Snapshot


@hookspec(firstresult=True)
def probe(data: bytes, name: str) -> int | None:
    """How sure the format driver is that this is its format: 0 (not at all) to 100.

    Pure: no I/O, and no import of the rest of the driver.

    :param data: the first 4096 bytes, fewer where the file is shorter.
    :param name: the file's name, for formats that have no magic at the start.
    """


@hookspec(firstresult=True)
def open(request: OpenRequest) -> Node | None:
    """Open an image (a format driver gives an ``Image``) or storage (a protocol driver gives a ``Storage``).

    :raises ImageError: it is not, or is damaged so that it cannot be read.
    :raises UnsupportedError: it needs a feature that the driver lacks.
    """


@hookspec(firstresult=True)
def create(request: CreateRequest) -> Node | None:
    """Make a new, empty image (or file), open for writing.

    What it writes becomes valid when the caller flushes it; the caller closes it.
    """


@hookspec(firstresult=True)
def listing(request: OpenRequest) -> Iterator[Place] | None:
    """The files below the folder ``request.place``, in whatever depth, one after the other: there may be very many.

    Asked of protocol drivers with the capability ``list``. Where there is no such folder, there are none.

    :raises StorageError: it cannot be told.
    """


@hookspec(firstresult=True)
def preflight(image: Image, action: PreflightAction, options: Mapping[str, Any]) -> bool | None:
    """*action* is to follow, after other writes: refuse now what it would refuse, and change nothing. True: it can be.

    False: it is nothing that this image can do at all. None is for drivers that cannot tell.

    :param action: a hook that takes the image (``amend``, ``bitmap``, ``empty``, ``resize``) with these *options* as
        its other arguments, or ``read``: all of the image's extents will be asked for.
    :raises DiskmillError: what the action itself would raise.
    """


@hookspec(firstresult=True)
def amend(image: Image, options: Mapping[str, Value], force: bool) -> bool | None:
    """Change options of an image, open for writing, in place. True when done."""


@hookspec(firstresult=True)
def check(image: Image, repair: Repair) -> CheckResult | None:
    """Check consistency.

    :param repair: ``""`` only look; ``"leaks"`` give lost space back; ``"all"`` repair everything that can be without
        destroying what can still be saved.
    :raises ImageError: a repair would give up data that is still there; nothing was changed. A driver that can tell
        refuses so, unless the image was opened with ``OpenRequest.repair`` being ``"lost"``.
    """


@hookspec(firstresult=True)
def map(image: Image, offset: int, length: int) -> Iterator[Extent] | None:
    """Where guest bytes *offset* to *offset + length* live."""


@hookspec(firstresult=True)
def snapshot(image: Image, action: SnapshotAction, name: str) -> list[Snapshot] | None:
    """Internal snapshots: gives the list afterwards.

    :param action: ``list``; of an image that is open for writing ``create``, ``apply`` (the disk becomes as it was
        then) or ``delete``; of one that is open for reading ``load``: from now on it reads as the snapshot.
    :param name: the snapshot's id or name; of a new one, its name.
    :raises UsageError: there is no such snapshot.
    """


@hookspec(firstresult=True)
def resize(image: Image, size: int, preallocation: Preallocation) -> bool | None:
    """Change the guest disk's size to *size* bytes, which are whole sectors; *preallocation* is for what is new.

    True when done.

    What a longer backing image holds behind the old end never shows: it is hidden before the new size is on disk.
    """


@hookspec(firstresult=True)
def measure(request: MeasureRequest) -> Measurement | None:
    """How many bytes a new image would take."""


@hookspec(firstresult=True)
def bitmap(image: Image, action: BitmapAction, name: str, options: Mapping[str, Any]) -> list[Bitmap] | None:
    """Persistent dirty bitmaps: gives the list afterwards.

    What changes may stay in memory until the image is flushed and closed.

    :param action: ``list``; of an image that is open for writing also ``add``, ``remove``, ``clear``, ``enable``,
        ``disable``, ``merge``.
    :param options: of ``add``: ``granularity`` (bytes; default: as the driver likes), ``disabled``. Of ``merge``:
        ``source``, a :class:`~diskmill.contract.results.Bitmap` that is consistent and may be of another image
        and format.
    :raises UsageError: there is no such bitmap, or one already; it is inconsistent; the sizes differ.
    """


@hookspec(firstresult=True)
def crypto_open(request: CryptoRequest) -> Volume | None:
    """Unlock what is stored encrypted. Asked of crypto drivers.

    :raises SecretError: no passphrase, or a wrong one.
    :raises ImageError: the encryption header is damaged.
    :raises UnsupportedError: no library at hand has the cipher; it is named.
    """


@hookspec(firstresult=True)
def crypto_create(request: CryptoRequest) -> Volume | None:
    """Make a new key and the header that keeps it, in ``header`` of the volume. Asked of crypto drivers."""


@hookspec(firstresult=True)
def crypto_amend(request: CryptoRequest, force: bool) -> bool | None:
    """Change key slots in the request's header, in place, as its options say. Asked of crypto drivers. True when done.

    The passphrase that opens the header now is that of option ``key-secret`` (an ``open`` option, which the format
    passes on along with the ``amend`` options).

    :param force: the last key may be erased, and one in use be replaced.
    """


@hookspec(firstresult=True)
def empty(image: Image) -> bool | None:
    """Drop all data of the image, open for writing, so that it reads as its backing image does. True when done.

    The backing image has the data already, so the guest reads what it read before.
    """
