"""What ``create`` prints: the options of the new image as release 7.2 of qemu-img lists them.

Each format has an order of its own, and some options are listed though nobody gave them. Found by running it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diskmill.contract.results import Creation

_BACKING = ("backing_file", "backing_fmt")
_CIPHER = ("cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg", "iter-time")

_ORDER: Mapping[str, tuple[str, ...]] = {
    "qcow2": (
        *("encryption", "encrypt.format", "encrypt.key-secret", *(f"encrypt.{name}" for name in _CIPHER)),
        *("cluster_size", "extended_l2", "preallocation", "compression_type", "size", "compat", *_BACKING),
        *("data_file", "data_file_raw", "lazy_refcounts", "refcount_bits"),
    ),
    "qcow": ("size", *_BACKING, "encryption", "encrypt.format", "encrypt.key-secret"),
    "qed": ("size", *_BACKING, "cluster_size", "table_size"),
    "vdi": ("size", "static"),
    "vmdk": (
        *("size", "adapter_type", *_BACKING, "compat6", "hwversion", "toolsversion", "subformat", "zeroed_grain"),
    ),
    "vpc": ("size", "subformat", "force_size"),
    "vhdx": ("size", "log_size", "block_size", "subformat", "block_state_zero"),
    "parallels": ("size", "cluster_size"),
    "luks": ("size", "key-secret", *_CIPHER),
}
_FILE = ("nocow", "preallocation", "extent_size_hint")
"""Options of the file, after all of the format's."""

_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "qcow2": {
        "cluster_size": "65536",
        "extended_l2": "off",
        "compression_type": "zlib",
        "lazy_refcounts": "off",
        "refcount_bits": "16",
    },
    "qed": {"cluster_size": "65536"},
    "vdi": {"static": "off"},
    "vmdk": {"compat6": "off", "hwversion": "undefined"},
    "vhdx": {"log_size": "1048576", "block_size": "0"},
    "parallels": {"cluster_size": "1048576"},
}

_NUMBERS = frozenset({"cluster_size", "table_size", "log_size", "block_size", "extent_size_hint"})
_COUNTS = frozenset({"refcount_bits", "iter-time", "encrypt.iter-time"})


def words(made: Creation, given: Mapping[str, str]) -> Iterator[str]:
    """What follows the name and the format, for the image *made* with the options *given* as they were typed."""
    values = {**_DEFAULTS.get(made.format, {}), **given, "size": str(made.size)}
    if made.backing_filename is not None:
        values["backing_file"] = made.backing_filename
    if made.backing_format is not None:
        values["backing_fmt"] = made.backing_format
    order = _ORDER.get(made.format, ("size", *_BACKING))
    more = [name for name in given if name not in order and name not in _FILE]  # options of diskmill's own
    for name in dict.fromkeys((*order, *more, *_FILE)):
        if name in values:
            yield f"{name}={_value(name, values[name])}"


def _value(name: str, text: str) -> str:
    """Sizes and numbers as numbers, all else as it was typed."""
    from diskmill.sizes import parse_size

    if name in _NUMBERS:
        return str(parse_size(text))
    if name in _COUNTS:
        return str(int(text, 0))
    return text.replace(",", ",,")
