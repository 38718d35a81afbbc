"""``snapshot``: the internal snapshots of an image."""

from __future__ import annotations

from ..contract import calls
from ..contract.calls import SnapshotAction
from ..contract.node import Image
from ..contract.options import split
from ..contract.results import Snapshot
from ..errors import UnsupportedError, UsageError
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name

ACTIONS = ("list", "create", "apply", "delete")


def snapshot(
    name: Name,
    action: SnapshotAction = "list",
    snapshot: str = "",
    *,
    format: str | None = None,
    image_opts: bool = False,
    context: Context | None = None,
) -> list[Snapshot]:
    """List, create, apply or delete snapshots of the image *name*; gives those that it has afterwards.

    :param action: one of :data:`ACTIONS`.
    :param snapshot: the snapshot's id or name; for a new one, its name.
    :raises UnsupportedError: the format has no internal snapshots.
    :raises UsageError: there is no such snapshot.
    """
    name = given_name(name)
    context = context or Context()
    if action not in ACTIONS:
        raise UsageError(f"invalid action '{action}': choose from {', '.join(ACTIONS)}")
    writable = action != "list"
    with open_image(name, format, context=context, writable=writable, backing=False, image_opts=image_opts) as image:
        if "snapshots" not in image.driver.capabilities:
            if not writable:
                return []
            raise UnsupportedError(f"format '{image.driver.name}' has no internal snapshots", file=name)
        return calls.snapshot(context.registry, image, action, snapshot)


def load_snapshot(image: Image, name: str, context: Context) -> None:
    """Let *image* read as its internal snapshot *name*: an id or a name, or ``snapshot.id=…,snapshot.name=…``.

    :raises UnsupportedError: the format has no internal snapshots.
    :raises UsageError: there is no such snapshot.
    """
    if "snapshots" not in image.driver.capabilities:
        raise UnsupportedError(f"format '{image.driver.name}' has no internal snapshots", file=image.name)
    if image.lent:
        raise UsageError("an image that is open reads as it does: open its snapshot", file=image.name)
    if name.startswith("snapshot."):
        name = _snapshot_id(image, name, context)
    calls.snapshot(context.registry, image, "load", name)


def _snapshot_id(image: Image, text: str, context: Context) -> str:
    """The id of the snapshot that has all that *text* says."""
    wanted = dict(split(text))
    unknown = sorted(set(wanted) - {"snapshot.id", "snapshot.name"})
    if unknown:
        raise UsageError(f"invalid snapshot '{text}': there is no '{unknown[0]}'")
    for one in calls.snapshots(context.registry, image):
        if wanted.get("snapshot.id", one.id) == one.id and wanted.get("snapshot.name", one.name) == one.name:
            return str(one.id)
    raise UsageError(f"there is no snapshot '{text}'", file=image.name)
