from diskmill_hdr import HEADER, MAGIC
from diskmill_testkit import Traits, describe


def encode(disk):
    return HEADER.pack(HEADER.new(magic=MAGIC, size=len(disk))).ljust(512, b"\0") + disk


describe("hdr", Traits(encoders={"plain": encode}))
