"""pluggy's manager of all that is registered, for a process in which more than plain drivers is."""

from __future__ import annotations

import pluggy

from ..contract import hookspecs


class Manager(pluggy.PluginManager):
    """pluggy's, which does not look into what every object has: that takes most of the time of a registration."""

    def __init__(self) -> None:
        super().__init__("diskmill")
        self.add_hookspecs(hookspecs)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        """No hook's name begins with an underscore."""
        return None if name.startswith("_") else super().parse_hookimpl_opts(plugin, name)
