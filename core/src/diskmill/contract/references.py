"""What an image says that it stands on: names that came out of a file, not from the user."""

from __future__ import annotations

from ..records import record


@record(frozen=True)
class Reference:
    """A node that an image asks for. The core opens it, if the trust policy lets it.

    :param role: ``backing``, ``data-file``, or ``extent``; as in ``file.filename`` it is also the child's name.
    :param name: the name as the image holds it: a relative path is relative to the image's own folder.
    :param format: the driver that the image asks for; None: probe it.
    :param writable: whether it is opened for writing when the image is (a backing file is not).
    :param storage: open only the protocol node, without a format on top.
    :param key: the driver's own mark, to know the reference by in ``attach``.
    :param optional: that there is no such file is fine: it is not attached then.
    """

    role: str
    name: str
    format: str | None = None
    writable: bool = False
    storage: bool = False
    key: int = 0
    optional: bool = False
