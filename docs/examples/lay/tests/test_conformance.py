import diskmill
import pytest
from diskmill_lay import BLOCK, HEADER, MAGIC
from diskmill_testkit import Traits
from diskmill_testkit.formats import *  # noqa: F403


def encode(disk, backing=b""):
    blocks = [disk[at : at + BLOCK] for at in range(0, len(disk), BLOCK)]
    states = bytes(2 if any(block) else 0 if backing else 1 for block in blocks)
    data = b"".join(block.ljust(BLOCK, b"\0") for block in blocks if any(block))
    return HEADER.pack(HEADER.new(magic=MAGIC, size=len(disk), backing=backing.ljust(496, b"\0"))) + states + data


DRIVERS = {"lay": Traits(encoders={"alone": encode})}


def test_the_backing_file_shows_where_it_has_nothing_and_must_be_trusted(tmp_path):
    (tmp_path / "base").write_bytes(b"b" * 2 * BLOCK)
    (tmp_path / "top.lay").write_bytes(encode(bytes(BLOCK) + b"t" * BLOCK + bytes(BLOCK), b"base"))
    with diskmill.open(tmp_path / "top.lay") as image:
        assert image.read(0, 3 * BLOCK) == b"b" * BLOCK + b"t" * BLOCK + bytes(BLOCK)
    (tmp_path / "evil.lay").write_bytes(encode(bytes(BLOCK), b"/etc/passwd"))
    with pytest.raises(diskmill.errors.RefusedError):
        diskmill.open(tmp_path / "evil.lay")
