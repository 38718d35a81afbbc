"""qcow2, QEMU's own format, as a diskmill driver: what it is called, what it can do, its options.

The rest of the package is imported when a hook needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.crypto import encrypt_options
from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.node import Image
    from diskmill.contract.options import Value
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import Bitmap, CheckResult, Measurement, Snapshot

    from .image import Qcow2Image

_BOTH = ("create", "amend")
_OPEN = ("open",)
_PARTS = (
    *("main-header", "active-l1", "active-l2", "refcount-table", "refcount-block", "snapshot-table", "inactive-l1"),
    *("inactive-l2", "bitmap-directory"),
)
_TEMPLATES = ("none", "constant", "cached", "all")
_IDLE = "without effect: QEMU's own, for a virtual machine that runs"
_RUNTIME = (
    *(
        Option(name, "size", _IDLE, when=_OPEN, runtime=True)
        for name in ("cache-size", "l2-cache-size", "l2-cache-entry-size")
    ),
    Option("refcount-cache-size", "size", _IDLE, when=_OPEN, runtime=True),
    Option("cache-clean-interval", "int", _IDLE, when=_OPEN, runtime=True),
    *(
        Option(name, "bool", _IDLE, when=_OPEN, runtime=True)
        for name in (
            *("lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other"),
            *("discard-no-unref", *(f"overlap-check.{part}" for part in _PARTS)),
        )
    ),
    *(
        Option(name, "str", _IDLE, choices=_TEMPLATES, when=_OPEN, runtime=True)
        for name in ("overlap-check", "overlap-check.template")
    ),
)
"""Options to open an image that say how QEMU does its work: what they ask for has no meaning here."""


class Qcow2Driver(FormatDriver):
    """``qcow2``."""

    contract = 1
    name = "qcow2"
    title = "QEMU's format: snapshots, backing files, compression, bitmaps"
    capabilities = frozenset(
        {
            "create",
            "write",
            "backing",
            "compression",
            "zero",
            "check",
            "repair",
            "resize",
            "shrink",
            "preallocation",
            "encryption",
            "amend",
            "snapshots",
            "bitmaps",
            "pipe",
            "forward",
        }
    )
    options = (
        Option("size", "size", "the guest disk's size in bytes", when=_BOTH),
        Option(
            "compat",
            "str",
            "the version: 0.10 (v2) or 1.1 (v3)",
            choices=("0.10", "1.1", "v2", "v3"),
            default="1.1",
            when=_BOTH,
        ),
        Option("backing_file", "str", "file name of a base image", when=_BOTH),
        Option("backing_fmt", "str", "format of the base image", when=_BOTH),
        Option("cluster_size", "size", "bytes in a cluster: a power of two from 512 to 2M", default=65536),
        Option(
            "preallocation",
            "str",
            "off; metadata (tables); falloc (tables, space allocated); full (tables, space written)",
            default="off",
            choices=("off", "metadata", "falloc", "full"),
        ),
        Option("lazy_refcounts", "bool", "postpone refcount updates", default=False, when=_BOTH, versions="1.1"),
        Option("refcount_bits", "int", "bits in a refcount: 1, 2, 4, … 64", default=16, when=_BOTH, versions="1.1"),
        Option(
            "compression_type",
            "str",
            "how clusters are compressed",
            default="zlib",
            choices=("zlib", "zstd"),
            versions="1.1",
        ),
        Option(
            "compression_level",
            "int",
            "1 to 9 of zlib, 1 to 19 of zstd; by default a fast one",
        ),
        Option("extended_l2", "bool", "32 subclusters a cluster, allocated one by one", default=False, versions="1.1"),
        Option("data_file", "str", "file name of an external data file", when=_BOTH, versions="1.1"),
        Option(
            "data_file_raw",
            "bool",
            "the external data file stays valid as a raw image",
            default=False,
            when=_BOTH,
            versions="1.1",
        ),
        Option("encryption", "bool", "encrypt with format aes; the old name of encrypt.format=aes", default=False),
        *encrypt_options("aes", "luks"),
        *_RUNTIME,
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """By magic and version."""
        return 100 if data.startswith(b"QFI\xfb") and data[4:8] >= b"\0\0\0\2" else 0

    @hookimpl
    def open(self, request: OpenRequest) -> Qcow2Image:
        """An existing image."""
        from .opening import open_image

        return open_image(self, request)

    def goes_forward(self, options: Mapping[str, Any], *, foreseen: bool) -> bool:
        """All tables come before the data, so each cluster must have its place beforehand."""
        plain = options["preallocation"] == "off" and not options["extended_l2"]
        return foreseen and plain and "data_file" not in options and "encrypt.format" not in options

    @hookimpl
    def create(self, request: CreateRequest) -> Image:
        """A new image."""
        from .create import create

        return create(self, request)

    @hookimpl
    def preflight(self, image: Qcow2Image, action: str, options: Mapping[str, Any]) -> bool | None:
        """Other options, another size, whether there can be bitmaps, and a backing image that shows."""
        from .amend import can_be_emptied, refuse
        from .resize import refuse_size

        if action == "amend":
            refuse(image, options["options"], options["force"])
        elif action == "resize":
            refuse_size(image, options["size"], options["preallocation"], image.header.version)
        elif action == "empty":
            return can_be_emptied(image)
        elif action == "bitmap":
            from .dirty import refuse_version

            refuse_version(image)
        else:
            return None
        return True

    @hookimpl
    def amend(self, image: Qcow2Image, options: Mapping[str, Value], force: bool) -> bool | None:
        """What the header says, and key slots."""
        keys = {name: value for name, value in options.items() if name.startswith("encrypt.")}
        rest = {name: value for name, value in options.items() if name not in keys}
        from .amend import amend, refuse

        refuse(image, rest, force)
        if keys:
            from .encryption import amend as amend_keys

            amend_keys(image, keys, force)
        if rest:
            amend(image, rest, force)
        return True

    @hookimpl
    def empty(self, image: Qcow2Image) -> bool | None:
        """Nothing of its own: the backing image shows."""
        from .amend import empty

        return empty(image)

    @hookimpl
    def snapshot(self, image: Qcow2Image, action: str, name: str) -> list[Snapshot]:
        """Internal snapshots are listed and read."""
        from .snapshots import act

        return act(image, action, name)

    @hookimpl
    def bitmap(self, image: Qcow2Image, action: str, name: str, options: Mapping[str, Any]) -> list[Bitmap]:
        """Persistent dirty bitmaps; changes reach the disk when the image is closed."""
        from .dirty import act

        return act(image, action, name, options)

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """What a new image would take."""
        from .measure import measure

        return measure(request)

    @hookimpl
    def check(self, image: Qcow2Image, repair: str) -> CheckResult:
        """Refcounts, leaks, overlaps, flags and offsets."""
        if not repair:
            from .quick_check import check

            return check(image)
        from .repair import repair as mend

        with image.lock:
            image.flush()
            image.order.give_back(last=True)  # else it would be found lost, and given back twice
            return mend(image, repair, give_up=image.repairing == "lost")

    @hookimpl
    def resize(self, image: Qcow2Image, size: int, preallocation: str) -> bool:
        """Another size for the guest disk."""
        from .resize import resize

        return resize(image, size, preallocation)


driver = Qcow2Driver()
