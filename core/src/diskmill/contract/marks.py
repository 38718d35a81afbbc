"""The marks that make a function a hook: those of pluggy, without importing it for a plain one.

pluggy reads them off the function (``diskmill_impl``, ``diskmill_spec``), and what it imports takes several times as
long as all drivers of a start. It is wanted where hooks are wrapped: see :mod:`diskmill.opening.registry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pluggy

    hookimpl = pluggy.HookimplMarker("diskmill")
    hookspec = pluggy.HookspecMarker("diskmill")
else:

    def hookimpl(function: Any = None, **options: Any) -> Any:
        """Marks a method or function as the implementation of the hook of its name; *options* are pluggy's."""
        if function is None or options:
            import pluggy

            return pluggy.HookimplMarker("diskmill")(function, **options)
        function.diskmill_impl = dict(PLAIN)
        return function

    def hookspec(*, firstresult: bool = False) -> Any:
        """Marks a function as the declaration of a hook."""

        def mark(function: Any) -> Any:
            function.diskmill_spec = {
                "firstresult": firstresult,
                "historic": False,
                "warn_on_impl": None,
                "warn_on_impl_args": None,
            }
            return function

        return mark


PLAIN = {
    "wrapper": False,
    "hookwrapper": False,
    "optionalhook": False,
    "tryfirst": False,
    "trylast": False,
    "specname": None,
}
"""The mark of an implementation that asks for nothing special."""
