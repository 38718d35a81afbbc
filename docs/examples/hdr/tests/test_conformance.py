from diskmill_hdr import HEADER, MAGIC
from diskmill_testkit import Traits, describe


def encode(disk):
    return HEADER.pack(HEADER.new(magic=MAGIC, size=len(disk))).ljust(512, b"\0") + disk


DRIVERS = ["hdr"]
describe("hdr", Traits(encoders={"plain": encode}))
from diskmill_testkit.formats import *  # noqa: E402, F403
