import pytest
from diskmill_lay import BLOCK, HEADER, MAGIC
from diskmill_testkit import Traits, describe


def encode(disk, backing=b""):
    blocks = [disk[at : at + BLOCK] for at in range(0, len(disk), BLOCK)]
    states = bytes(2 if any(block) else 0 if backing else 1 for block in blocks)
    data = b"".join(block.ljust(BLOCK, b"\0") for block in blocks if any(block))
    return HEADER.pack(HEADER.new(magic=MAGIC, size=len(disk), backing=backing.ljust(496, b"\0"))) + states + data


describe("lay", Traits(encoders={"alone": encode}))


@pytest.fixture
def over():
    return encode
