import zlib

from diskmill_pak import BLOCK, HEADER, MAGIC
from diskmill_testkit import Traits, describe


def encode(disk):
    blocks = [disk[at : at + BLOCK] for at in range(0, len(disk), BLOCK)]
    streams = [zlib.compress(block) if any(block) else b"" for block in blocks]
    at = HEADER.size + 8 * (len(blocks) + 1)
    offsets = [at + sum(map(len, streams[:number])) for number in range(len(blocks) + 1)]
    table = b"".join(offset.to_bytes(8, "little") for offset in offsets)
    return HEADER.pack(HEADER.new(magic=MAGIC, size=len(disk))) + table + b"".join(streams)


describe("pak", Traits(encoders={"zlib": encode}))
