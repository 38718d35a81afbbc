"""``snapshot``: the internal snapshots of an image."""

from __future__ import annotations

from ..contract import calls
from ..contract.calls import SnapshotAction
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
