"""``check``: is an image consistent, and what can be repaired?"""

from __future__ import annotations

from dataclasses import replace

from ..context import Context
from ..errors import CheckUnsupportedError, UnsupportedError
from ..graph import open_image
from ..node import Image
from ..results import CheckResult


def check(
    name: str,
    *,
    format: str | None = None,
    repair: str = "",
    image_opts: bool = False,
    context: Context | None = None,
) -> CheckResult:
    """Check the metadata of the image *name*.

    :param repair: ``""`` only look; ``"leaks"`` give lost space back; ``"all"`` repair whatever can be. After a repair
        the image is checked again: the result tells what is left, and what was fixed.
    :raises CheckUnsupportedError: the format has no check.
    :raises DiskmillError: the image cannot be opened.
    """
    context = context or Context()
    with open_image(
        name, format, context=context, writable=bool(repair), backing=False, image_opts=image_opts
    ) as image:
        if "check" not in image.driver.capabilities:
            raise CheckUnsupportedError(f"format '{image.driver.name}' does not support checks", file=name)
        if repair and "repair" not in image.driver.capabilities:
            raise UnsupportedError(f"format '{image.driver.name}' cannot be repaired by its driver", file=name)
        result = _ask(image, repair, context)
        if result.corruptions_fixed or result.leaks_fixed:
            image.flush()
            again = _ask(image, "", context)
            fixed = [replace(finding, fixed=True) for finding in result.findings]
            result = replace(
                again,
                findings=[*fixed, *again.findings],
                corruptions_fixed=result.corruptions_fixed,
                leaks_fixed=result.leaks_fixed,
            )
    return replace(result, filename=name, format=image.driver.name)


def _ask(image: Image, repair: str, context: Context) -> CheckResult:
    result: CheckResult | None = context.registry.call(image.driver, "check", image=image, repair=repair)
    if result is None:
        raise CheckUnsupportedError(f"format '{image.driver.name}' does not support checks", file=image.name)
    return result
