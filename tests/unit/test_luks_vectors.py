"""The primitives under LUKS against published vectors."""

from __future__ import annotations

import os

import pytest
from diskmill_luks import afsplit, kdf
from diskmill_luks.blocks import SLACK, block_cipher
from diskmill_luks.legacy import KEY_BYTES
from diskmill_luks.sectors import BulkCipher
from diskmill_luks.spec import MODES, Spec
from hypothesis import given, settings
from hypothesis import strategies as st

XTS_128 = (  # IEEE Std 1619-2007, annex B, vector 4: key 1, key 2, data unit number 0
    "2718281828459045235360287471352631415926535897932384626433832795",
    "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
)
XTS_256 = (  # vector 10: data unit number 0xff
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592",
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
)


@pytest.mark.parametrize(("vector", "number"), [(XTS_128, 0), (XTS_256, 0xFF)])
def test_xts_ieee_1619(vector: tuple[str, str], number: int) -> None:
    key, begin = (bytes.fromhex(text) for text in vector)
    plain = bytes(range(256)) * 2
    cipher = BulkCipher(Spec("aes", "xts"), key)
    stored = bytearray(cipher.encrypt(number, memoryview(plain)))
    assert stored[:32] == begin
    cipher.decrypt(number, memoryview(stored))
    assert stored == plain


@pytest.mark.parametrize(
    ("cipher", "key", "plain", "stored"),
    [
        # FIPS 197, appendix C
        ("aes", bytes(range(16)), "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"),
        ("aes", bytes(range(24)), "00112233445566778899aabbccddeeff", "dda97ca4864cdfe06eaf70a0ec0d7191"),
        ("aes", bytes(range(32)), "00112233445566778899aabbccddeeff", "8ea2b7ca516745bfeafc49904b496089"),
        # RFC 2144, appendix B.1
        ("cast5", bytes.fromhex("0123456712345678234567893456789a"), "0123456789abcdef", "238b4fe5847e44b2"),
        # Schneier's Twofish paper: the first of the known answer tests
        ("twofish", bytes(16), "00" * 16, "9f589f5cf6122c32b6bfec2f2ae8c35a"),
        ("twofish", bytes(32), "00" * 16, "57ff739d4dc92c1bd7fc01700cc8216f"),
    ],
)
def test_block_ciphers(cipher: str, key: bytes, plain: str, stored: str) -> None:
    block = block_cipher(cipher, key)
    data = bytes.fromhex(plain)
    target = bytearray(len(data) + SLACK)
    block.encrypt(data, memoryview(target))
    assert target[: len(data)].hex() == stored
    back = bytearray(len(data) + SLACK)
    block.decrypt(bytes(target[: len(data)]), memoryview(back))
    assert back[: len(data)] == data


@pytest.mark.parametrize(
    ("password", "salt", "iterations", "expected"),
    [  # RFC 6070
        (b"password", b"salt", 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
        (b"password", b"salt", 4096, "4b007901b765489abead49d926f721d065a429c1"),
        (
            b"passwordPASSWORDpassword",
            b"saltSALTsaltSALTsaltSALTsaltSALTsalt",
            4096,
            "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038",
        ),
    ],
)
def test_pbkdf2_rfc_6070(password: bytes, salt: bytes, iterations: int, expected: str) -> None:
    assert kdf.pbkdf2("sha1", password, salt, iterations, len(expected) // 2).hex() == expected


def test_argon2id_of_the_reference_program() -> None:
    # From the test suite of the reference implementation (phc-winner-argon2, test.c): t=2, m=64 MiB, p=1.
    found = kdf.argon2("argon2id", b"password", b"somesalt", 2, 64 << 20, 1, 32)
    assert found.hex() == "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"


@given(st.binary(min_size=1, max_size=80), st.integers(2, 50), st.sampled_from(["sha1", "sha256", "md5"]))
@settings(max_examples=50)
def test_what_is_split_can_be_merged(key: bytes, stripes: int, name: str) -> None:
    material = afsplit.split(bytearray(key), stripes, name)
    assert len(material) == stripes * len(key)
    assert afsplit.merge(material, stripes, len(key), name) == key
    material[0] ^= 1
    assert len(key) < 4 or afsplit.merge(material, stripes, len(key), name) != key


@given(
    st.builds(
        Spec, st.just("aes"), st.sampled_from(MODES), st.sampled_from(["plain", "plain64", "essiv"]), st.just("sha256")
    ),
    st.integers(0, 2**55),
    st.integers(1, 40),
    st.sampled_from([512, 4096]),
)
@settings(max_examples=60)
def test_a_run_is_its_sectors(spec: Spec, number: int, sectors: int, size: int) -> None:
    number = number // 8 * 8
    cipher = BulkCipher(spec, os.urandom(32), size)
    plain = os.urandom(sectors * size)
    run = bytes(cipher.encrypt(number, memoryview(plain)))
    for index in range(sectors):
        part = slice(index * size, (index + 1) * size)
        assert cipher.encrypt(number + index * size // 512, memoryview(plain)[part]) == run[part]
    back = bytearray(run)
    cipher.decrypt(number, memoryview(back))
    assert back == plain


def test_keys_do_not_show() -> None:
    key = b"0123456789abcdef" * 4
    cipher = BulkCipher(Spec("aes", "xts"), key)
    cipher.encrypt(0, memoryview(bytes(512)))
    assert "0123" not in repr(cipher) and KEY_BYTES == 16
    cipher.wipe()
    assert not any(cipher._key)
