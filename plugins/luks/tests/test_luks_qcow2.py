"""qcow2 with LUKS, and with the AES encryption of old, against qemu-img: both ways, and clean to its check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.contract.node import Image
from diskmill.errors import DiskmillError, ImageError, SecretError, UsageError
from diskmill.opening.graph import open_image
from luks_samples import CONTENT, KiB, context, raw, secret
from tools import qemu_img, qemu_img_json, run, tool

ENCRYPTIONS = ["luks", "aes"]


def options(encryption: str, **more: Any) -> dict[str, Any]:
    """Create options."""
    given: dict[str, Any] = {"encrypt.format": encryption, "encrypt.key-secret": "key", **more}
    if encryption == "luks":
        given["encrypt.iter-time"] = 1
    return given


def spec(path: Path, key: str | None = "key") -> dict[str, Any]:
    """Node options."""
    found: dict[str, Any] = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}
    return found if key is None else {**found, "encrypt.key-secret": key}


def opened(path: Path, key: str | None = "key", *, writable: bool = False, shallow: bool = False) -> Image:
    """The qcow2 image at *path*."""
    return open_image(spec(path, key), context=context(), writable=writable, shallow=shallow)


def read(path: Path, key: str = "key") -> bytes:
    """Its disk."""
    with opened(path, key) as image:
        return image.read(0, image.size)


def ours(folder: Path, encryption: str, **more: Any) -> Path:
    """CONTENT, converted by diskmill."""
    path = folder / "ours.qcow2"
    diskmill.convert(
        [str(raw(folder))], str(path), output_format="qcow2", options=options(encryption, **more), context=context()
    )
    return path


def qemu_options(path: Path) -> str:
    """For qemu-img's ``--image-opts``."""
    return f"driver=qcow2,encrypt.key-secret=key,file.filename={path}"


def assert_qemu_reads(path: Path, content: bytes = CONTENT) -> None:
    """Fail unless qemu-img reads *content*, and finds nothing to repair."""
    plain = path.with_suffix(".plain")
    qemu_img("convert", *secret(), "--image-opts", "-O", "raw", qemu_options(path), plain)
    assert plain.read_bytes() == content
    plain.unlink()
    qemu_img("check", *secret(), "--image-opts", qemu_options(path))


def qemu_qcow2(folder: Path, encryption: str) -> Path:
    """CONTENT, converted by qemu-img."""
    path = folder / "theirs.qcow2"
    words = f"encrypt.format={encryption},encrypt.key-secret=key"
    if encryption == "luks":
        words += ",encrypt.iter-time=10"
    for _ in range(20):
        done = qemu_img("convert", *secret(), "-f", "raw", "-O", "qcow2", "-o", words, raw(folder), path, check=False)
        if "CPU usage" not in done.stderr:  # a clock too coarse for how quick it is
            break
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"cluster_size": 4096},
        {"cluster_size": 2**21},
        {"extended_l2": True},
        {"preallocation": "metadata"},
        {"compat": "0.10"},
    ],
)
def test_ours(tmp_path: Path, encryption: str, more: dict[str, Any]) -> None:
    path = ours(tmp_path, encryption, **more)
    assert_qemu_reads(path)
    assert read(path) == CONTENT
    assert CONTENT[:512] not in path.read_bytes()


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
def test_theirs(tmp_path: Path, encryption: str) -> None:
    path = qemu_qcow2(tmp_path, encryption)
    assert read(path) == CONTENT
    theirs = qemu_img_json("info", path)["format-specific"]["data"]["encrypt"]
    with opened(path, None, shallow=True) as image:
        details = image.details()
    assert details is not None
    if encryption == "luks":
        theirs["detached-header"] = False
    assert details["encrypt"] == theirs


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
@pytest.mark.parametrize("extended", [False, True])
def test_writes_of_any_size(tmp_path: Path, encryption: str, extended: bool) -> None:
    path = ours(tmp_path, encryption, extended_l2=extended)
    expected = bytearray(CONTENT)
    end = len(CONTENT) - 7
    with opened(path, writable=True) as image:
        for at, data in ((1, b"a"), (511, b"bb"), (65_535, b"c" * 70_000), (730_001, bytes(3000)), (end, b"the end")):
            image.write(at, data)
            expected[at : at + len(data)] = data
        image.zero(200_000, 150_001)
        expected[200_000:350_001] = bytes(150_001)
        image.write(250_000, b"d" * 100)
        expected[250_000:250_100] = b"d" * 100
    assert read(path) == expected
    assert_qemu_reads(path, bytes(expected))


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
def test_what_qemu_io_writes(tmp_path: Path, encryption: str) -> None:
    path = ours(tmp_path, encryption)
    words = [tool("qemu-io"), *secret(), "--image-opts", "-c", "write -P 0x5a 100k 70k", qemu_options(path)]
    run(*words)
    expected = CONTENT[: 100 * KiB] + b"\x5a" * (70 * KiB) + CONTENT[170 * KiB :]
    assert read(path) == expected


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
def test_over_a_backing_image(tmp_path: Path, encryption: str) -> None:
    base = raw(tmp_path)
    path = tmp_path / "over.qcow2"
    diskmill.create(
        str(path),
        format="qcow2",
        options=options(encryption),
        backing=str(base),
        backing_format="raw",
        context=context(),
    )
    with opened(path, writable=True) as image:
        image.write(1000, b"new")
    expected = CONTENT[:1000] + b"new" + CONTENT[1003:]
    assert read(path) == expected
    assert_qemu_reads(path, expected)


def test_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskmillError, match="encrypted"):
        diskmill.convert(
            [str(raw(tmp_path))],
            str(tmp_path / "out"),
            output_format="qcow2",
            options=options("luks"),
            compress=True,
            context=context(),
        )
    assert not (tmp_path / "out").exists()


def test_passphrases(tmp_path: Path) -> None:
    path = ours(tmp_path, "luks")
    with pytest.raises(SecretError, match="wrong"):
        opened(path, "wrong")
    with pytest.raises(SecretError, match=r"encrypt\.key-secret"):
        opened(path, None)
    with pytest.raises(UsageError, match=r"encrypt\.format"):
        diskmill.create(
            str(tmp_path / "x"), 2**20, format="qcow2", options={"encrypt.key-secret": "key"}, context=context()
        )
    with pytest.raises(UsageError, match="luks"):
        open_image({**spec(path), "encrypt.format": "aes"}, context=context())


def test_key_slots(tmp_path: Path) -> None:
    path = ours(tmp_path, "luks")

    def amend(key: str, **given: Any) -> None:
        words = {f"encrypt.{name.replace('_', '-')}": value for name, value in given.items()}
        diskmill.amend("json:" + json.dumps(spec(path, key)), words, context=context())

    amend("key", state="active", new_secret="other", iter_time=1)
    assert read(path, "other") == read(path) == CONTENT
    amend("other", state="inactive", old_secret="key")
    with pytest.raises(SecretError):
        opened(path)
    with pytest.raises(UsageError, match="last key"):
        amend("other", state="inactive", keyslot=1)
    amend("other", state="active", new_secret="key", iter_time=1)
    assert_qemu_reads(path)
    # And what qemu-img does to ours.
    qemu_img(
        "amend",
        *secret(),
        *secret("other"),
        "--image-opts",
        "-o",
        "encrypt.state=inactive,encrypt.old-secret=other",
        qemu_options(path),
    )
    with pytest.raises(SecretError):
        opened(path, "other")
    assert read(path) == CONTENT


@pytest.mark.parametrize(("offset", "length"), [(0, 100), (2**62, 2**20), (65536 * 3 + 1, 4096), (65536 * 3, 2**63)])
def test_an_encryption_header_that_cannot_be(tmp_path: Path, offset: int, length: int) -> None:
    path = ours(tmp_path, "luks")
    data = bytearray(path.read_bytes())
    at = data.index(b"\x05\x37\xbe\x77", 100) + 8
    data[at : at + 16] = offset.to_bytes(8, "big") + length.to_bytes(8, "big")
    path.write_bytes(data)
    with pytest.raises(ImageError, match="encryption header"):
        opened(path)


def test_check_and_growth(tmp_path: Path) -> None:
    path = ours(tmp_path, "luks")
    found = diskmill.check("json:" + json.dumps(spec(path)), context=context())
    assert (found.corruptions, found.leaks, found.check_errors) == (0, 0, 0)
    diskmill.resize("json:" + json.dumps(spec(path)), 2 * len(CONTENT), context=context())
    assert read(path) == CONTENT + bytes(len(CONTENT))
    assert_qemu_reads(path, CONTENT + bytes(len(CONTENT)))
