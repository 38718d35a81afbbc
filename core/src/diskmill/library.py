"""Opening images from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .contract.node import Image
from .contract.server import Server
from .errors import UsageError
from .opening.context import Context
from .opening.gate import Trust
from .opening.graph import open_image
from .opening.names import Name, given_name
from .opening.registry import default_registry
from .records import replace


def open(
    name: Name | Mapping[str, Any],
    format: str | None = None,
    *,
    writable: bool = False,
    trust: Trust | str | Sequence[str] | None = None,
    secrets: Mapping[str, bytes | str] | None = None,
    share: bool = False,
    backing: bool = True,
    snapshot: str | None = None,
    image_opts: bool = False,
    rehearse: bool = False,
    context: Context | None = None,
) -> Image:
    """Open a disk image; use it as a context manager, or close it.

    The image has ``size`` (bytes), ``read(offset, length)``, ``write(offset, data)``, ``zero``, ``discard``,
    ``flush``, ``extents`` and ``stream()``, a file object.

    :param name: a path, ``protocol:…``, ``json:{…}``, or node options (``{"driver": "raw", "file": …}``).
    :param format: the driver's name; None: probe. Name it for images from strangers: a raw disk can look like anything.
    :param writable: open for writing; the image is locked against other writers, QEMU's included.
    :param trust: which references inside the image may be opened: a :class:`Trust`, or its words: ``"nothing"``,
        ``"folder"`` (the image's own, as by default), ``"anything"``, or folders.
    :param secrets: secret id → passphrase (text is taken as UTF-8), for encrypted images.
    :param share: open an image that another process is writing; what is read may be inconsistent.
    :param backing: whether to open the backing chain; without it, its data reads as zeros.
    :param snapshot: read this internal snapshot: an id or a name, or ``snapshot.id=…,snapshot.name=…``.
    :param image_opts: *name* is an option string (``driver=qcow2,file.filename=…``).
    :param rehearse: what is written is kept aside, and forgotten when it is closed.
    :param context: settings to go by; the arguments above change a copy of them.
    :raises DiskmillError: it cannot be opened; the message is one line that says why.
    """
    if not isinstance(name, Mapping):
        name = given_name(name)
    context = context or Context()
    context = replace(
        context,
        trust=context.trust if trust is None else Trust.of(trust),
        secrets={**context.secrets, **_encoded(secrets or {})},
        share=share or context.share,
    )
    if snapshot is not None and writable:
        raise UsageError("a snapshot is read only: writable contradicts it", file=str(name))
    image = open_image(
        name, format, context=context, writable=writable, backing=backing, image_opts=image_opts, rehearse=rehearse
    )
    if snapshot is None:
        return image
    from .commands.snapshot import load_snapshot

    try:
        load_snapshot(image, snapshot, context)
    except BaseException:
        image.abandon()
        raise
    return image


def _encoded(secrets: Mapping[str, bytes | str]) -> dict[str, bytes]:
    return {key: value.encode() if isinstance(value, str) else value for key, value in secrets.items()}


def serve(image: str, *, protocol: str = "nbd", **options: Any) -> Server:
    """Export the guest disk of *image* to other programs, as long as the ``with`` block runs; ``uri`` says where.

    >>> with diskmill.serve("disk.qcow2") as server:       # doctest: +SKIP
    ...     subprocess.run(["nbdcopy", server.uri, "disk.raw"])

    :param image: as :func:`open` takes it.
    :param protocol: whose server it is. NBD's comes with the package diskmill-nbd.
    :param options: the server's own, such as ``format``, ``writable``, ``export``, ``unix``, ``host`` and ``port``: see
        ``diskmill_nbd.serving.serve``.
    :raises DiskmillError: the package is not installed, the image cannot be opened, or the address is not to be had.
    """
    return default_registry().protocol(protocol).serve(image, **options)
