"""LUKS1 as qemu-img has it: every combination of cipher, mode and generator, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.errors import DiskmillError, UnsupportedError
from luks_samples import (
    CONTENT,
    KiB,
    assert_qemu_reads,
    context,
    cryptsetup,
    key_file,
    opened,
    ours,
    passes,
    qemu_luks,
    qemu_options,
    raw,
    read,
    secret,
)
from tools import diskmill as diskmill_command
from tools import qemu_img, qemu_img_json, run, tool

CIPHERS = ["aes-128", "aes-192", "aes-256", "cast5-128"]
CIPHERS += [f"{name}-{bits}" for name in ("serpent", "twofish") for bits in (128, 192, 256)]
MODES = ["xts", "cbc", "ctr", "ecb"]
GENERATORS = ["plain", "plain64", "essiv"]


def possible(cipher: str, mode: str, generator: str) -> bool:
    """Whether qemu-img can create it: CAST5's blocks are too short for XTS, its keys for a hash; and where a split key
    of 24 bytes does not fill whole sectors, qemu-img 7.2 stops with a failed assertion."""
    if "192" in cipher and mode != "xts":
        return False
    return not (cipher == "cast5-128" and (mode == "xts" or generator == "essiv"))


COMBINATIONS = [
    (cipher, mode, generator)
    for cipher in CIPHERS
    for mode in MODES
    for generator in GENERATORS
    if possible(cipher, mode, generator)
]


@pytest.mark.parametrize(("cipher", "mode", "generator"), COMBINATIONS)
def test_every_combination_both_ways(tmp_path: Path, cipher: str, mode: str, generator: str) -> None:
    path = ours(tmp_path, {"cipher-alg": cipher, "cipher-mode": mode, "ivgen-alg": generator})
    assert_qemu_reads(path)
    # What qemu-img encrypts, in the same image.
    other = CONTENT[::-1]
    qemu_img("convert", *secret(), "-n", "--target-image-opts", "-f", "raw", raw(tmp_path, other), qemu_options(path))
    assert read(path) == other


@pytest.mark.parametrize(("cipher", "mode"), [("serpent-192", "xts"), ("twofish-256", "xts"), ("cast5-128", "ctr")])
def test_compare_agrees(tmp_path: Path, cipher: str, mode: str) -> None:
    """A few of the combinations: for each new image qemu-img tries out its key derivation for seconds."""
    content = CONTENT[-64 * KiB :] + CONTENT[: 64 * KiB]
    path = qemu_luks(tmp_path, f"cipher-alg={cipher},cipher-mode={mode}", content=content)
    assert read(path) == content
    names = ["--image-opts", qemu_options(path), f"driver=raw,file.filename={raw(tmp_path, content)}"]
    qemu_img("compare", *secret(), *names)
    diskmill_command("compare", *secret(), *names)


@pytest.mark.parametrize(
    "options",
    [
        "cipher-alg=aes-256",
        "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512",
        "cipher-alg=serpent-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5,hash-alg=ripemd160",
        "cipher-alg=twofish-128,cipher-mode=ctr,ivgen-alg=plain,hash-alg=sha1",
        "cipher-alg=cast5-128,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=md5",
        "cipher-alg=aes-128,cipher-mode=ecb,hash-alg=sha224",
    ],
)
def test_images_that_qemu_img_makes(tmp_path: Path, options: str) -> None:
    path = qemu_luks(tmp_path, options)
    assert read(path) == CONTENT
    theirs = qemu_img_json("info", path)
    assert diskmill.info(str(path)).format == "luks"
    with opened(path, None, shallow=True) as image:
        # QAPI has the last since QEMU 9.
        assert image.details() == theirs["format-specific"]["data"] | {"detached-header": False}
        assert image.size == theirs["virtual-size"]
        assert image.encrypted


@pytest.mark.parametrize("mode", ["cbc", "ctr"])
def test_keys_whose_split_does_not_fill_sectors(tmp_path: Path, mode: str) -> None:
    path = ours(tmp_path, {"cipher-alg": "aes-192", "cipher-mode": mode})
    assert passes(path)
    assert not passes(path, "wrong")
    assert read(path) == CONTENT


@pytest.mark.parametrize("hash", ["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"])
def test_every_hash(tmp_path: Path, hash: str) -> None:
    path = ours(tmp_path, {"hash-alg": hash})
    assert_qemu_reads(path)
    assert read(path) == CONTENT


@pytest.mark.parametrize("hash", ["md5", "sha256"])
@pytest.mark.parametrize("cipher", ["aes-128", "serpent-128", "twofish-256"])
def test_every_hash_for_essiv(tmp_path: Path, cipher: str, hash: str) -> None:
    path = ours(tmp_path, {"cipher-alg": cipher, "cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": hash})
    assert_qemu_reads(path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cipher-alg": "cast5-128"}, "cast5"),
        ({"cipher-alg": "cast5-128", "cipher-mode": "cbc", "ivgen-alg": "essiv"}, "cast5"),
        ({"cipher-alg": "aes-256", "cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "sha1"}, "aes"),
        ({"cipher-alg": "aes-512"}, "aes"),
        ({"cipher-alg": "3des"}, "3des"),
        ({"cipher-alg": "sm4"}, "sm4"),
        ({"cipher-alg": "kuznyechik-256"}, "kuznyechik"),
        ({"cipher-mode": "gcm"}, "gcm"),
        ({"ivgen-alg": "lmk"}, "lmk"),
        ({"hash-alg": "whirlpool"}, "whirlpool"),
        ({"iter-time": 0}, "iter-time"),
        ({"iter-time": 10**12}, "iter-time"),
        ({"pbkdf": "argon2id"}, "pbkdf"),
        ({"sector-size": 4096}, "sector-size"),
        ({"version": "2", "sector-size": 3000}, "sector-size"),
        ({"version": "2", "pbkdf-memory": 2**40}, "pbkdf-memory"),
        ({"version": "2", "label": "x" * 48}, "label"),
    ],
)
def test_what_cannot_be_done_is_named(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(DiskmillError, match=named):
        ours(tmp_path, options)
    assert not (tmp_path / "ours.luks").exists()


@pytest.mark.parametrize(
    "field", [(8, b"idea\0"), (40, b"wrap-plain64\0"), (40, b"cbc-tcw:sha256\0"), (72, b"blake9\0")]
)
def test_what_an_image_needs_and_is_lacking_is_named(tmp_path: Path, field: tuple[int, bytes]) -> None:
    path = ours(tmp_path)
    offset, value = field
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)
    word = value.rstrip(b"\0").split(b"-")[0].decode()
    with pytest.raises(UnsupportedError, match="tcw" if b"tcw" in value else word):
        opened(path)
    with opened(path, shallow=True) as image:  # info still works
        assert image.encrypted


@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_preallocation(tmp_path: Path, mode: str) -> None:
    path = ours(tmp_path, {"preallocation": mode})
    assert path.stat().st_size == 2068480 + len(CONTENT)
    assert_qemu_reads(path)


def test_an_image_may_be_any_number_of_sectors_long(tmp_path: Path) -> None:
    content = CONTENT[: 512 * 3]
    path = ours(tmp_path, content=content)
    assert_qemu_reads(path, content)


def test_sector_numbers_beyond_32_bits(tmp_path: Path) -> None:
    """*plain* begins again at 2 TiB, *plain64* does not."""
    at = 2**41 - 512
    for generator in ("plain", "plain64"):
        path = tmp_path / f"{generator}.luks"
        options = {"key-secret": "key", "iter-time": 1, "ivgen-alg": generator, "cipher-mode": "cbc"}
        diskmill.create(str(path), 2**41 + 4096, format="luks", options=options, context=context())
        with opened(path, writable=True) as image:
            image.write(at, b"\x11" * 1024)
        read_back = f"read -P 0x11 {at} 1024"
        run(tool("qemu-io"), *secret(), "--image-opts", "-r", "-c", read_back, qemu_options(path))


def test_cryptsetup_opens_ours(tmp_path: Path) -> None:
    path = ours(tmp_path)
    assert passes(path)
    assert not passes(path, "wrong")
    dump = cryptsetup("luksDump", path).stdout
    assert "Key Slot 0: ENABLED" in dump and "Key Slot 1: DISABLED" in dump and "xts-plain64" in dump


def test_whirlpool_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.luks"
    path.write_bytes(bytes(4 << 20))
    how = ("--type", "luks1", "--hash", "whirlpool", "--iter-time", "10")
    cryptsetup("luksFormat", *how, "--key-file", key_file(tmp_path), path)
    with opened(path, writable=True) as image:  # the digest of the master key fits
        assert image.details()["hash-alg"] == "whirlpool"
        image.write(0, b"x" * 512)
    assert passes(path)
    with pytest.raises(DiskmillError, match="passphrase"):
        opened(path, "wrong")


def test_measure_agrees_with_qemu_img(tmp_path: Path) -> None:
    theirs = qemu_img_json("measure", *secret(), "-O", "luks", "-o", "key-secret=key", "--size", "1G")
    found = diskmill.measure(size=2**30, output_format="luks")
    assert found.required == theirs["required"]
    assert found.fully_allocated == theirs["fully-allocated"]


def test_resize(tmp_path: Path) -> None:
    path = ours(tmp_path)
    name = "json:" + json.dumps(
        {"driver": "luks", "key-secret": "key", "file": {"driver": "file", "filename": str(path)}}
    )
    diskmill.resize(name, len(CONTENT) // 2, shrink=True, context=context())
    assert_qemu_reads(path, CONTENT[: len(CONTENT) // 2])
    diskmill.resize(name, len(CONTENT), context=context())
    assert read(path)[: len(CONTENT) // 2] == CONTENT[: len(CONTENT) // 2]
