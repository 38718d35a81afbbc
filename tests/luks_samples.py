"""What the tests of LUKS share: a disk's contents, two passphrases, and images made by us and by others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diskmill
from diskmill.contract.node import Image
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from tools import qemu_img, run, tool

KiB = 1024
MiB = 1024 * KiB

SECRETS = {"key": b"open sesame", "other": b"swordfish", "wrong": b"let me in"}
QUICK = {"key-secret": "key", "iter-time": 1}
"""Options that make an image in a few milliseconds."""
CONTENT = os.urandom(700 * KiB) + bytes(100 * KiB) + b"\xa5" * (224 * KiB)
"""A disk: longer than the pieces that are encrypted at once, with zeros."""


def context() -> Context:
    """With :data:`SECRETS`; warnings become the attribute ``heard`` of the list that it carries."""
    return Context(secrets=dict(SECRETS))


def spec(path: Path, key: str | None = "key", **more: Any) -> dict[str, Any]:
    """Node options for the LUKS image at *path*."""
    found: dict[str, Any] = {"driver": "luks", "file": {"driver": "file", "filename": str(path)}, **more}
    if key is not None:
        found["key-secret"] = key
    return found


def opened(path: Path, key: str | None = "key", *, writable: bool = False, shallow: bool = False, **more: Any) -> Image:
    """The LUKS image at *path*."""
    return open_image(spec(path, key, **more), context=context(), writable=writable, shallow=shallow)


def raw(folder: Path, content: bytes = CONTENT) -> Path:
    """A raw image of *content*."""
    path = folder / "disk.raw"
    path.write_bytes(content)
    return path


def ours(folder: Path, options: Mapping[str, Any] | None = None, *, content: bytes = CONTENT) -> Path:
    """*content*, converted by diskmill."""
    path = folder / "ours.luks"
    diskmill.convert(
        [str(raw(folder, content))],
        str(path),
        output_format="luks",
        options={**QUICK, **(options or {})},
        context=context(),
    )
    return path


def read(path: Path, key: str | None = "key", **more: Any) -> bytes:
    """The whole disk in the LUKS image at *path*, as diskmill reads it."""
    with opened(path, key, **more) as image:
        return image.read(0, image.size)


def secret(name: str = "key") -> list[str]:
    """qemu-img's arguments that define a passphrase."""
    return ["--object", f"secret,id={name},data={SECRETS[name].decode()}"]


def qemu_options(path: Path, key: str = "key") -> str:
    """The image as qemu-img's ``--image-opts``."""
    return f"driver=luks,key-secret={key},file.filename={path}"


def qemu_luks(folder: Path, options: str, *, name: str = "theirs.luks", content: bytes = CONTENT) -> Path:
    """*content*, converted by qemu-img."""
    path = folder / name
    for _ in range(20):
        done = qemu_img(
            "convert",
            *secret(),
            "-f",
            "raw",
            "-O",
            "luks",
            "-o",
            f"key-secret=key,iter-time=10,{options}",
            raw(folder, content),
            path,
            check=False,
        )
        if "CPU usage" not in done.stderr:  # a clock too coarse for how quick it is: qemu-img asks to be run again
            break
    assert done.returncode == 0, done.stderr
    return path


def assert_qemu_reads(path: Path, content: bytes = CONTENT) -> None:
    """Fail unless qemu-img finds *content* in the LUKS image."""
    plain = path.with_suffix(".plain")
    qemu_img("convert", *secret(), "--image-opts", "-O", "raw", qemu_options(path), plain)
    assert plain.read_bytes() == content
    plain.unlink()


def key_file(folder: Path, name: str = "key") -> Path:
    """A file with a passphrase."""
    path = folder / f"{name}.secret"
    path.write_bytes(SECRETS[name])
    return path


def cryptsetup(*arguments: str | Path, check: bool = True) -> Any:
    """Run cryptsetup without questions."""
    return run(tool("cryptsetup"), "--batch-mode", *arguments, check=check)


def passes(path: Path, name: str = "key", *more: str | Path) -> bool:
    """Whether cryptsetup opens the image with a passphrase."""
    done = cryptsetup("open", "--test-passphrase", "--key-file", key_file(path.parent, name), *more, path, check=False)
    assert done.returncode in (0, 2), done.stderr
    return bool(done.returncode == 0)
