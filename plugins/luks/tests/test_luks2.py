"""LUKS2 against cryptsetup, and both versions' key slots, headers and passphrases."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import diskmill
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from diskmill.errors import ImageError, SecretError, UnsupportedError
from luks_samples import CONTENT, MiB, context, cryptsetup, key_file, opened, ours, passes, read

FORMATS = [{"version": "1"}, {"version": "2", "pbkdf": "pbkdf2"}, {"version": "2", "pbkdf-memory": 1024}]
"""Create options: LUKS1, LUKS2 with PBKDF2, LUKS2 with Argon2id."""


def theirs(folder: Path, *options: str, type: str = "luks2", key: str = "key") -> Path:
    """An empty image that cryptsetup makes."""
    path = folder / "theirs.luks"
    with path.open("wb") as file:
        file.truncate(17 * MiB)
    slow = any("pbkdf" in option for option in options) or type == "luks1"
    quick = ["--pbkdf-force-iterations=1000"] if slow else ["--pbkdf-force-iterations=4", "--pbkdf-memory=1024"]
    cryptsetup("luksFormat", f"--type={type}", *quick, *options, path, key_file(folder, key))
    return path


def volume_key(path: Path) -> bytes:
    """The key that encrypts the payload, as cryptsetup tells it."""
    text = cryptsetup("luksDump", "--dump-volume-key", "--key-file", key_file(path.parent), path).stdout
    digits = re.search(r"MK dump:((?:\s+[0-9a-f]{2})+)", text)
    assert digits is not None, text
    return bytes.fromhex("".join(digits[1].split()))


def payload(path: Path, offset: int, sector: int, length: int) -> bytes:
    """The disk in a LUKS2 image with aes-xts-plain64, decrypted sector by sector with OpenSSL's own XTS."""
    key = volume_key(path)
    data = path.read_bytes()[offset : offset + length]
    plain = b""
    for at in range(0, length, sector):
        tweak = (at // 512).to_bytes(16, "little")  # dm-crypt counts 512 bytes whatever the sector's size
        plain += Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor().update(data[at : at + sector])
    return plain


def write_content(path: Path, **more: Any) -> None:
    """Put CONTENT at the start of the disk."""
    with opened(path, writable=True, **more) as image:
        image.write(0, CONTENT)


def amended(path: Path, key: str = "key", *, force: bool = False, **options: str | int) -> None:
    """``amend -o``."""
    given = {name.replace("_", "-"): value for name, value in options.items()}
    name = {"driver": "luks", "key-secret": key, "file": {"driver": "file", "filename": str(path)}}
    diskmill.amend("json:" + json.dumps(name), given, force=force, context=context())


# -- LUKS2 images of ours -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pbkdf", ["argon2id", "argon2i", "pbkdf2"])
@pytest.mark.parametrize("sector", [512, 1024, 2048, 4096])
def test_ours(tmp_path: Path, sector: int, pbkdf: str) -> None:
    path = ours(tmp_path, {"version": "2", "sector-size": sector, "pbkdf": pbkdf, "pbkdf-memory": 1024})
    assert read(path) == CONTENT
    dump = cryptsetup("luksDump", path).stdout
    assert f"sector: {sector} [bytes]" in dump and re.search(rf"PBKDF:\s+{pbkdf}\n", dump)
    assert passes(path)
    assert not passes(path, "wrong")
    assert payload(path, 16 * MiB, sector, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("cipher", ["aes-128", "aes-192", "aes-256", "serpent-256", "twofish-192"])
@pytest.mark.parametrize("mode", ["xts", "cbc"])
def test_other_ciphers(tmp_path: Path, cipher: str, mode: str) -> None:
    path = ours(tmp_path, {"version": "2", "cipher-alg": cipher, "cipher-mode": mode, "pbkdf": "pbkdf2"})
    assert read(path) == CONTENT
    assert passes(path)  # the key slots are AES's, so that cryptsetup needs no other cipher for them
    assert len(volume_key(path)) == int(cipher.split("-")[1]) // 8 * (2 if mode == "xts" else 1)


def test_label_and_sizes(tmp_path: Path) -> None:
    path = ours(tmp_path, {"version": "2", "label": "backup", "pbkdf": "pbkdf2", "sector-size": 4096}, content=bytes(5))
    assert re.search(r"Label:\s+backup\n", cryptsetup("luksDump", path).stdout)
    with opened(path) as image:
        assert image.size == 4096  # whole sectors


@pytest.mark.parametrize("sector", [512, 4096])
def test_random_writes(tmp_path: Path, sector: int) -> None:
    path = ours(tmp_path, {"version": "2", "sector-size": sector, "pbkdf": "pbkdf2"})
    expected = bytearray(CONTENT)
    with opened(path, writable=True) as image:
        for at, data in (
            (1, b"a"),
            (511, b"bb"),
            (4095, b"c" * 5000),
            (100_001, bytes(33)),
            (len(CONTENT) - 3, b"end"),
        ):
            image.write(at, data)
            expected[at : at + len(data)] = data
        image.zero(8191, 70_000)
        expected[8191:78191] = bytes(70_000)
    assert read(path) == expected
    assert payload(path, 16 * MiB, sector, len(CONTENT)) == expected


# -- images of cryptsetup -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--sector-size=512",),
        ("--sector-size=2048",),
        ("--pbkdf=pbkdf2",),
        ("--pbkdf=pbkdf2", "--hash=sha512", "--key-size=256"),
        ("--luks2-metadata-size=64k", "--luks2-keyslots-size=1M"),
        ("--offset=32768",),
    ],
)
def test_theirs(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = theirs(tmp_path, *options)
    write_content(path)
    assert read(path)[: len(CONTENT)] == CONTENT
    with opened(path, shallow=True) as image:
        details = image.details()
    assert details is not None
    assert payload(path, details["payload-offset"], details["sector-size"], len(CONTENT)) == CONTENT
    assert passes(path)


@pytest.mark.parametrize("cipher", ["aes-xts-plain64", "aes-cbc-essiv:sha256", "aes-cbc-plain"])
def test_their_luks1(tmp_path: Path, cipher: str) -> None:
    path = theirs(tmp_path, "--cipher", cipher, "--key-size=256", type="luks1")
    write_content(path)
    assert read(path)[: len(CONTENT)] == CONTENT
    assert passes(path)


def test_integrity_is_refused_by_name(tmp_path: Path) -> None:
    path = ours(tmp_path, {"version": "2", "pbkdf": "pbkdf2"})
    rewrite(path, lambda meta: meta["segments"]["0"].update(integrity={"type": "hmac(sha256)"}))
    with pytest.raises(UnsupportedError, match="integrity"):
        opened(path)


def test_reencryption_is_refused_by_name(tmp_path: Path) -> None:
    path = theirs(tmp_path)
    rewrite(path, lambda meta: meta["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}))
    with pytest.raises(UnsupportedError, match="online-reencrypt-v2"):
        opened(path)


def rewrite(path: Path, change: Any) -> None:
    """Let *change* alter the JSON metadata in both copies, and make the checksums right again."""
    import hashlib

    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[8:16], "big")
    for at in (0, size):
        area = data[at + 4096 : at + size]
        meta = json.loads(bytes(area).partition(b"\0")[0])
        change(meta)
        data[at + 4096 : at + size] = json.dumps(meta).encode().ljust(size - 4096, b"\0")
        data[at + 448 : at + 512] = bytes(64)
        data[at + 448 : at + 480] = hashlib.sha256(data[at : at + size]).digest()
    path.write_bytes(data)


# -- two copies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 100, 450, 4096, 5000])
@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_copy_of_the_header(tmp_path: Path, copy: int, where: int) -> None:
    path = ours(tmp_path, {"version": "2", "pbkdf": "pbkdf2"})
    with path.open("r+b") as file:
        file.seek(copy * 16384 + where)
        file.write(b"\xff" * 16)
    heard: list[str] = []
    here = context()
    here.warn = heard.append
    name = {"driver": "luks", "key-secret": "key", "file": {"driver": "file", "filename": str(path)}}
    from diskmill.opening.graph import open_image

    with open_image(name, context=here) as image:
        assert image.read(0, len(CONTENT)) == CONTENT
    assert len(heard) == 1 and ("first", "second")[copy] in heard[0] and "damaged" in heard[0]
    amended(path, state="active", new_secret="other", iter_time=1)  # what writes the header makes both whole
    done = subprocess.run(["cmp", "-n", "1", path, path], check=False)
    assert done.returncode == 0
    assert read(path, "other") == CONTENT
    assert passes(path, "other")


def test_both_copies_damaged(tmp_path: Path) -> None:
    path = ours(tmp_path, {"version": "2", "pbkdf": "pbkdf2"})
    with path.open("r+b") as file:
        for at in (5000, 16384 + 5000):
            file.seek(at)
            file.write(b"\xff" * 16)
    with pytest.raises(ImageError, match="checksum"):
        opened(path)


def test_the_newer_copy_counts(tmp_path: Path) -> None:
    path = ours(tmp_path, {"version": "2", "pbkdf": "pbkdf2"})
    before = path.read_bytes()[:16384]
    amended(path, state="active", new_secret="other", iter_time=1)
    with path.open("r+b") as file:
        file.write(before)  # as if the second write had not reached the disk
    assert read(path, "other") == CONTENT


# -- key slots ------------------------------------------------------------------------------------------------


def active(path: Path) -> list[int]:
    """The slots in use, as we see them."""
    with opened(path, shallow=True) as image:
        details = image.details()
    assert details is not None
    return [slot.get("keyslot", at) for at, slot in enumerate(details["slots"]) if slot["active"]]


@pytest.mark.parametrize("options", FORMATS)
def test_a_second_passphrase(tmp_path: Path, options: dict[str, Any]) -> None:
    path = ours(tmp_path, options)
    amended(path, state="active", new_secret="other", iter_time=1)
    assert active(path) == [0, 1]
    assert passes(path) and passes(path, "other") and not passes(path, "wrong")
    assert read(path, "other") == read(path) == CONTENT
    amended(path, "other", state="inactive", old_secret="key")
    assert active(path) == [1]
    assert passes(path, "other") and not passes(path)
    with pytest.raises(SecretError):
        opened(path)
    amended(path, "other", state="active", new_secret="key", keyslot=5, iter_time=1)
    assert active(path) == [1, 5]
    assert passes(path)
    amended(path, state="inactive", keyslot=1)
    assert active(path) == [5]
    assert not passes(path, "other")
    assert read(path) == CONTENT


@pytest.mark.parametrize("options", FORMATS)
def test_the_last_key_is_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    path = ours(tmp_path, options)
    before = path.read_bytes()
    for change in ({"keyslot": 0}, {"old_secret": "key"}):
        with pytest.raises(diskmill.DiskmillError, match="last key"):
            amended(path, state="inactive", **change)
    with pytest.raises(SecretError):
        amended(path, state="inactive", old_secret="wrong")
    with pytest.raises(diskmill.DiskmillError, match="active"):
        amended(path, state="active", new_secret="other", keyslot=0, iter_time=1)
    with pytest.raises(diskmill.DiskmillError, match="inactive"):
        amended(path, state="inactive", keyslot=3)
    with pytest.raises(diskmill.DiskmillError, match="numbered"):
        amended(path, state="inactive", keyslot=99)
    with pytest.raises(diskmill.DiskmillError, match="new-secret"):
        amended(path, state="active")
    with pytest.raises(diskmill.DiskmillError, match="keyslot"):
        amended(path, state="inactive")
    assert path.read_bytes() == before
    amended(path, state="active", new_secret="other", keyslot=0, iter_time=1, force=True)
    assert active(path) == [0]
    assert read(path, "other") == CONTENT
    amended(path, "other", state="inactive", keyslot=0, force=True)
    assert active(path) == []
    with pytest.raises(ImageError, match="no active key slot"):
        opened(path)


@pytest.mark.parametrize("options", FORMATS)
def test_old_key_material_is_overwritten(tmp_path: Path, options: dict[str, Any]) -> None:
    path = ours(tmp_path, options)
    amended(path, state="active", new_secret="other", iter_time=1)
    with opened(path, shallow=True) as image:
        details = image.details()
    assert details is not None
    start = details["slots"][0]["key-offset"]
    before = path.read_bytes()[start : start + 256_000]
    amended(path, "other", state="inactive", keyslot=0)
    after = path.read_bytes()[start : start + 256_000]
    same = sum(a == b for a, b in zip(before, after, strict=True))
    assert same < 2000  # as many as two random strings share, a 256th


def test_all_slots_in_use(tmp_path: Path) -> None:
    path = ours(tmp_path)
    for slot in range(1, 8):
        amended(path, state="active", new_secret="other", iter_time=1)
        assert len(active(path)) == slot + 1
    with pytest.raises(diskmill.DiskmillError, match="in use"):
        amended(path, state="active", new_secret="other", iter_time=1)
    assert passes(path, "other")
    amended(path, state="inactive", old_secret="other")
    assert active(path) == [0]


@pytest.mark.parametrize("options", FORMATS)
def test_cryptsetup_changes_our_slots(tmp_path: Path, options: dict[str, Any]) -> None:
    path = ours(tmp_path, options)
    quick = ["--pbkdf-force-iterations=1000", "--pbkdf=pbkdf2"]
    old, new = key_file(tmp_path), key_file(tmp_path, "other")
    cryptsetup("luksAddKey", *quick, "--key-file", old, path, new)
    assert active(path) == [0, 1]
    assert read(path, "other") == CONTENT
    cryptsetup("luksKillSlot", path, "0")
    assert active(path) == [1]
    assert read(path, "other") == CONTENT
    cryptsetup("luksChangeKey", *quick, "--key-file", new, path, key_file(tmp_path, "wrong"))
    assert read(path, "wrong") == CONTENT


@pytest.mark.parametrize("pbkdf", ["pbkdf2", "argon2id", "argon2i"])
def test_cryptsetup_converts_our_keys(tmp_path: Path, pbkdf: str) -> None:
    path = ours(
        tmp_path, {"version": "2", "pbkdf": "pbkdf2" if pbkdf != "pbkdf2" else "argon2id", "pbkdf-memory": 1024}
    )
    force = (
        ["--pbkdf-force-iterations=1000"]
        if pbkdf == "pbkdf2"
        else ["--pbkdf-force-iterations=4", "--pbkdf-memory=1024"]
    )
    cryptsetup("luksConvertKey", f"--pbkdf={pbkdf}", *force, "--key-file", key_file(tmp_path), path)
    assert re.search(rf"PBKDF:\s+{pbkdf}\n", cryptsetup("luksDump", path).stdout)
    assert read(path) == CONTENT


def test_cryptsetup_converts_between_versions(tmp_path: Path) -> None:
    path = theirs(tmp_path, type="luks1")
    write_content(path)
    cryptsetup("convert", "--type=luks2", path)
    assert read(path)[: len(CONTENT)] == CONTENT
    cryptsetup("convert", "--type=luks1", path)
    assert read(path)[: len(CONTENT)] == CONTENT


@pytest.mark.parametrize("type", ["luks1", "luks2"])
def test_we_change_their_slots(tmp_path: Path, type: str) -> None:
    path = theirs(tmp_path, type=type)
    write_content(path)
    amended(path, state="active", new_secret="other", iter_time=1)
    assert passes(path) and passes(path, "other")
    amended(path, "other", state="inactive", old_secret="key")
    assert not passes(path) and passes(path, "other")
    assert read(path, "other")[: len(CONTENT)] == CONTENT


# -- detached headers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", FORMATS)
def test_a_header_in_a_file_of_its_own(tmp_path: Path, options: dict[str, Any]) -> None:
    path = ours(tmp_path, {**options, "header": "disk.header"})
    header = tmp_path / "disk.header"
    assert path.stat().st_size == len(CONTENT)
    assert passes(path, "key", "--header", header) and not passes(path, "wrong", "--header", header)
    child = {"header": {"driver": "file", "filename": str(header)}}
    assert read(path, **child) == CONTENT
    with opened(path, writable=True, **child) as image:
        image.write(1000, b"changed")
    assert read(path, **child)[1000:1007] == b"changed"
    with opened(path, None, shallow=True, **child) as image:
        details = image.details()
        assert details is not None and details["detached-header"] is True
    with pytest.raises(ImageError):
        opened(path)


def test_a_header_made_alone(tmp_path: Path) -> None:
    header, disk = tmp_path / "header", tmp_path / "disk"
    options = {"key-secret": "key", "iter-time": 1, "detached-header": True}
    diskmill.create(str(header), 0, format="luks", options=options, context=context())
    disk.write_bytes(bytes(len(CONTENT)))
    child = {"header": {"driver": "file", "filename": str(header)}}
    write_content(disk, **child)
    assert read(disk, **child) == CONTENT
    assert passes(disk, "key", "--header", header)


def test_a_header_that_cryptsetup_detaches(tmp_path: Path) -> None:
    header, disk = tmp_path / "header", tmp_path / "disk"
    disk.write_bytes(bytes(2 * MiB))
    quick = ["--pbkdf-force-iterations=1000", "--pbkdf=pbkdf2"]
    cryptsetup("luksFormat", "--type=luks2", *quick, "--header", header, disk, key_file(tmp_path))
    child = {"header": {"driver": "file", "filename": str(header)}}
    write_content(disk, **child)
    assert read(disk, **child)[: len(CONTENT)] == CONTENT
    amended_header = {"state": "active", "new-secret": "other", "iter-time": 1}
    name = {"driver": "luks", "key-secret": "key", "file": {"driver": "file", "filename": str(disk)}, **child}
    diskmill.amend("json:" + json.dumps(name), amended_header, context=context())
    assert passes(disk, "other", "--header", header)


# -- passphrases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", FORMATS)
def test_a_wrong_or_missing_passphrase(tmp_path: Path, options: dict[str, Any]) -> None:
    path = ours(tmp_path, options)
    with pytest.raises(SecretError, match="wrong"):
        opened(path, "wrong")
    with pytest.raises(SecretError, match="key-secret"):
        opened(path, None)
    with pytest.raises(SecretError, match="nobody"):
        opened(path, "nobody")


def test_a_passphrase_is_asked_for(tmp_path: Path) -> None:
    from diskmill.opening.graph import open_image

    path = ours(tmp_path)
    asked: list[str] = []

    def ask(prompt: str) -> bytes:
        asked.append(prompt)
        return b"open sesame"

    here = context()
    here.ask = ask
    with open_image(str(path), context=here) as image:
        assert image.read(0, 100) == CONTENT[:100]
    assert len(asked) == 1 and str(path) in asked[0]
    with open_image(str(path), context=here, shallow=True):
        assert len(asked) == 1


@pytest.mark.parametrize("options", FORMATS)
def test_a_damaged_key_slot(tmp_path: Path, options: dict[str, Any]) -> None:
    path = ours(tmp_path, options)
    with opened(path, shallow=True) as image:
        details = image.details()
    assert details is not None
    with path.open("r+b") as file:
        file.seek(details["slots"][0]["key-offset"] + 1234)
        file.write(b"\0")
    with pytest.raises(SecretError, match="opens no key slot"):
        opened(path)
