"""``diskmill dd``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example
from ..progress import shown

if TYPE_CHECKING:
    from ..session import Session

_MOST = 2**63 - 1


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.dd import dd
    from diskmill.errors import UsageError, did_you_mean

    values: dict[str, str] = {}
    for word in arguments.operands:
        key, equals, value = word.partition("=")
        if not equals or key not in ("if", "of", "bs", "count", "skip"):
            hint = did_you_mean(key, ("if", "of", "bs", "count", "skip")) if equals else "they are KEY=VALUE"
            raise UsageError(f"unrecognized operand '{word}'", hint=hint)
        values[key] = value
    if "if" not in values or "of" not in values:
        raise UsageError("must specify both input and output file names (if= and of=)")
    skip = _number(values, "skip", 0)
    count = _number(values, "count", 0) if "count" in values else None
    if count is not None and session.count_includes_skipped:
        count = max(count - skip, 0)
    common.tell_of_raw(arguments, session, "output_format", "-O", values["of"])
    with shown(arguments, session, "dd") as report:
        dd(
            values["if"],
            values["of"],
            block=_number(values, "bs", 512, low=1),
            count=count,
            skip=skip,
            format=arguments.one("format"),
            output_format=common.format_of(arguments, "output_format"),
            image_opts=arguments.has("image_opts"),
            context=common.context_of(arguments, session),
            progress=report,
        )
    return 0


def _number(values: dict[str, str], key: str, default: int, low: int = 0) -> int:
    from diskmill.errors import UsageError
    from diskmill.sizes import parse_size

    if key not in values:
        return default
    value = parse_size(values[key], what=f"number for '{key}'")
    if not low <= value <= _MOST:
        raise UsageError(f"invalid number for '{key}': '{values[key]}'")
    return value


COMMAND = Command(
    "dd",
    "Copy some blocks of an image into a new one.",
    "[bs=SIZE] [count=N] [skip=N] if=NAME of=OUTPUT",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        replace(common.TARGET_FORMAT, flags=("-O", "--output-format", "--target-format")),
        *common.OVERWRITE,
        common.PROGRESS,
        common.QUIET,
        *common.ACCESS,
    ),
    run,
    examples=(Example("diskmill dd bs=1M count=64 skip=1 if=disk.qcow2 of=part.img", "64 MiB, after the first one"),),
)
