"""What the conformance suites are told of our own drivers: who makes their images, and in which ways they write."""

from __future__ import annotations

from diskmill.sizes import KiB, MiB
from diskmill_testkit import Traits, describe
from encoders import bochs, cloop, dmg, ewf, sparseimage, vma

for module in (bochs, cloop, dmg, ewf, sparseimage, vma):
    describe(module.__name__.rpartition(".")[2], Traits(encoders=module.VARIANTS))
describe("luks", Traits(layouts=[{}, {"version": "2", "pbkdf": "pbkdf2"}], noise=True, keys=[{"iter-time": 10}]))
describe("aes", Traits(unproven=True))
describe("throttle", Traits(options={"limits.bps-total": 1 << 40}))
describe("vdi", Traits(layouts=[{"cluster_size": 16 * KiB}, {}, {"static": True}]))
describe(
    "vpc",
    Traits(layouts=[{"force_size": True}, {"force_size": True, "subformat": "fixed"}], harmless=["footer"]),
)
describe(
    "vhdx",
    Traits(layouts=[{"block_size": MiB}], harmless=["not closed properly", "headers", "region table"]),
)
describe("parallels", Traits(layouts=[{"cluster_size": 16 * KiB}], harmless=["not closed properly"]))
describe("qed", Traits(layouts=[{"cluster_size": 16 * KiB, "table_size": 2}]))
describe("qcow2", Traits(layouts=[{"cluster_size": 4 * KiB}, {"cluster_size": 16 * KiB, "extended_l2": True}]))
describe(
    "vmdk",
    Traits(
        layouts=[
            *({}, {"zeroed_grain": True}, {"subformat": "monolithicFlat"}),
            *({"subformat": "twoGbMaxExtentFlat"}, {"subformat": "twoGbMaxExtentSparse"}),
        ],
        harmless=["not closed properly", "redundant copy differ"],
    ),
)
