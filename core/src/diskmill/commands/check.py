"""``check``: is an image consistent, and what can be repaired?"""

from __future__ import annotations

from typing import Literal

from ..contract import calls
from ..contract.calls import Repair, expect_word
from ..contract.results import CheckResult
from ..engine.progress import Report, tell_phase
from ..errors import CheckUnsupportedError, UnsupportedError, UsageError
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from ..records import replace


def check(
    name: Name,
    *,
    format: str | None = None,
    repair: Repair | Literal["lost"] = "",
    dry_run: bool = False,
    image_opts: bool = False,
    context: Context | None = None,
    progress: Report | None = None,
) -> CheckResult:
    """Check the metadata of the image *name*.

    :param repair: ``""`` only look; ``"leaks"`` give lost space back; ``"all"`` repair whatever can be; ``"lost"`` even
        where that gives up data which the image lost track of, but which is still in the file. After a repair
        the image is checked again: the result tells what is left, and what was fixed.
    :param progress: is told the phases; nobody knows how long a check takes.
    :param dry_run: write nothing. The result tells what is there now, what would be fixed, and how.
    :raises CheckUnsupportedError: the format has no check.
    :raises DiskmillError: the image cannot be opened.
    """
    name = given_name(name)
    context = context or Context()
    expect_word(repair or "", Literal["", "leaks", "all", "lost"], "repair")
    if dry_run and not repair:
        raise UsageError("a dry run is one of a repair: say which, leaks or all")
    with open_image(
        name,
        format,
        context=context,
        writable=bool(repair),
        backing=False,
        image_opts=image_opts,
        repair=repair,
        rehearse=dry_run,
    ) as image:
        if "check" not in image.driver.capabilities:
            raise CheckUnsupportedError(f"format '{image.driver.name}' does not support checks", file=name)
        if repair and "repair" not in image.driver.capabilities:
            raise UnsupportedError(f"format '{image.driver.name}' cannot be repaired by its driver", file=name)
        tell_phase(progress, "check" if dry_run or not repair else "check and repair")
        now = calls.check(context.registry, image) if dry_run else None
        result = calls.check(context.registry, image, "all" if repair == "lost" else repair)
        corruptions, leaks = result.corruptions_fixed, result.leaks_fixed
        if now is not None:
            result = replace(now, findings=result.findings, corruptions_fixed=corruptions, leaks_fixed=leaks)
        elif corruptions or leaks:
            tell_phase(progress, "check again")
            image.flush()
            again = calls.check(context.registry, image)
            fixed = [replace(finding, fixed=True) for finding in result.findings]
            findings = [*fixed, *again.findings]
            result = replace(again, findings=findings, corruptions_fixed=corruptions, leaks_fixed=leaks)
    return replace(result, filename=name, format=image.driver.name)
