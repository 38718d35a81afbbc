"""How large a new image will be, before it is made.

The figures are those of ``qemu-img measure``: all metadata of the fully allocated image is always counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diskmill.contract import calls
from diskmill.contract.crypto import sub_options
from diskmill.contract.requests import MeasureRequest
from diskmill.sizes import round_up

from .encryption import PREFIX
from .parameters import fully_allocated, parameters

if TYPE_CHECKING:
    from diskmill.contract.results import Measurement


def measure(request: MeasureRequest) -> Measurement:
    """Bytes for the image that ``create`` would make with the same options.

    :raises UsageError: bad options, or a disk that is too large for them.
    """
    from diskmill.contract.results import Measurement

    chosen = parameters(request.options)
    size = round_up(request.size, chosen.cluster_size)
    chosen.check_size(size)
    full = fully_allocated(size, chosen) + _encryption_bytes(request, chosen.cluster_size)
    if chosen.preallocation in ("falloc", "full") or chosen.backing_file:
        data = size
    else:
        data = round_up(min(request.data_bytes(chosen.cluster_size), size), chosen.cluster_size)
    bitmaps = None
    if request.bitmaps is not None and chosen.version >= 3:
        bitmaps = _bitmap_bytes(request.size, request.bitmaps, chosen.cluster_size)
    return Measurement(full - size + data, full, bitmaps)


def _encryption_bytes(request: MeasureRequest, cluster: int) -> int:
    """Bytes for the header inside the image that a crypto driver would write."""
    wanted = request.options.get(PREFIX + "format")
    if wanted is None or request.context is None:
        return 0
    driver = calls.crypto_for(request.context.registry, "qcow2", str(wanted))
    return round_up(driver.header_size(sub_options(request.options, PREFIX)), cluster)


def _bitmap_bytes(size: int, bitmaps: Sequence[tuple[str, int]], cluster: int) -> int:
    """Bytes for persistent bitmaps of (name, granularity): their data, their tables, and the directory."""
    total = directory = 0
    for name, granularity in bitmaps:
        bits = round_up(size, granularity) // granularity
        clusters = round_up(bits, 8 * cluster) // (8 * cluster)
        total += clusters * cluster + round_up(clusters * 8, cluster)
        directory += round_up(24 + len(name.encode("utf-8", "surrogateescape")), 8)
    return total + round_up(directory, cluster)
