from diskmill_hdr import HEADER, MAGIC
from diskmill_testkit import Traits
from diskmill_testkit.formats import *  # noqa: F403


def encode(disk):
    return HEADER.pack(HEADER.new(magic=MAGIC, size=len(disk))).ljust(512, b"\0") + disk


DRIVERS = {"hdr": Traits(encoders={"plain": encode})}
