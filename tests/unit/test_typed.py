"""What a user writes against the library passes mypy --strict, and what is wrong does not."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import diskmill

ROOT = Path(__file__).parents[2]
SCRIPT = """
import io
import threading
from pathlib import Path

import diskmill
from diskmill import aio, jobs


class Reader(diskmill.FormatDriver):
    name = "mine"

    @diskmill.hookimpl
    def probe(self, data: bytes, name: str) -> int:
        return 0


class Place(diskmill.ProtocolDriver):
    name = "there"


class Cipher(diskmill.CryptoDriver):
    name = "secret"


def look(name: str | Path) -> int:
    context = diskmill.Context(trust=diskmill.NOTHING, secrets={"s": b"x"}, warn=print)
    with diskmill.open(name, "qcow2", context=context) as image:
        first: bytes = image.read(0, 512)
        with image.open_stream() as stream:
            stream.seek(100)
        sizes = [extent.length for extent in image.extents(0, image.size)]
        other: diskmill.Image = image
        print(first, other.name, diskmill.digest(image), diskmill.info(image).virtual_size)
    with diskmill.open(io.BytesIO(b"x" * 512), "raw", writable=True, trust=diskmill.FOLDER) as image:
        image.write(0, b"y")
    chain = [one.backing_filename for one in diskmill.info_chain(name)]
    where = [entry.start + entry.length for entry in diskmill.map(name, start=0)]
    told = [f"{one.kind} {one.name}" for one in diskmill.list_drivers()] + list(diskmill.listing("s3://b/c/"))
    needed: int = diskmill.measure(size=1 << 30, output_format="qcow2").required
    same: bool = diskmill.compare(name, Path("b.raw"), strict=True).identical
    found = [finding.text for finding in diskmill.check(name, repair="leaks").findings]
    return sum(sizes) + len(chain) + sum(where) + len(told) + needed + same + len(found)


def change(name: str, stop: threading.Event) -> None:
    def progress(done: int, total: int) -> None:
        print(done, total)

    made = diskmill.create(name, 1 << 30, format="qcow2", options={"cluster_size": 65536})
    print(made.filename)
    diskmill.convert([name, Path(name)], "out.vmdk", output_format="vmdk", progress=progress, cancel=stop)
    diskmill.amend(name, {"lazy_refcounts": True})
    diskmill.bitmap(name, "b", [("add", ""), ("disable", "")])
    diskmill.commit(name, base=None)
    copied: int = diskmill.dd(name, "part", block=4096, count=1)
    diskmill.rebase(name, "", unsafe=True)
    size: int = diskmill.resize(name, copied, relative=True, preallocation="off")
    ids = [one.id for one in diskmill.snapshot(name, "create", "now")]
    ids.append(str(diskmill.sync(name, "copy.qcow2", dry_run=True).saved))
    print(size, ids, diskmill.bench(name, count=1).seconds)
    diskmill.memory["a"] = b"x"
    with diskmill.serve(name) as server:
        print(server.uri)
    trust = diskmill.Trust.parse("/srv") if name else diskmill.ANYTHING
    job = jobs.Convert(
        (diskmill.Source(name),),
        diskmill.Target("out", "qcow2"),
        settings=diskmill.Settings(trust=("nothing",), secrets=(diskmill.Secret("s", file="/run/key"),)),
    )
    print(trust, job.run().digest)


async def later(name: str) -> bytes:
    await aio.convert(name, "copy", output_format="raw")
    async with await aio.open(name) as image:
        return await image.read(0, 512)


def tell(error: diskmill.DiskmillError) -> str:
    kinds = (
        diskmill.CancelledError,
        diskmill.CheckUnsupportedError,
        diskmill.ClosedError,
        diskmill.DriverError,
        diskmill.ImageError,
        diskmill.LimitError,
        diskmill.LockedError,
        diskmill.RefusedError,
        diskmill.SecretError,
        diskmill.UnsupportedError,
        diskmill.UsageError,
    )
    if isinstance(error, diskmill.StorageError) and error.transient:
        return "again"
    return f"{error.file} {error.place} {error.cause}" if isinstance(error, kinds) else ""
"""
WRONG = """
import diskmill, diskmill.kit.structs as structs

diskmill.check("a", repair="al")
diskmill.snapshot("a", "creat", "b")
diskmill.resize("a", "1G")
diskmill.open("a").read(0)
diskmill.convert("a", "b", output_fromat="raw")
class Header(structs.Record):
    version = structs.u32
header = structs.Structure("header", "<", Header).unpack(b"")
print(header.version + 1, header.verison)
header.version = b"1"
"""


def mypy(script: Path) -> tuple[int, str]:
    path = os.pathsep.join(str(folder) for folder in (ROOT / "core" / "src", *ROOT.glob("plugins/*/src")))
    words = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file", os.devnull, script]
    done = subprocess.run(words, env={**os.environ, "MYPYPATH": path}, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_script_that_uses_every_public_name_is_sound(tmp_path: Path) -> None:
    used = {node.attr for node in ast.walk(ast.parse(SCRIPT)) if isinstance(node, ast.Attribute)}
    assert set(diskmill._HOMES) - used == set()
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(WRONG)
    status, text = mypy(tmp_path / "script.py")
    assert status == 0, text
    status, text = mypy(tmp_path / "wrong.py")
    assert sorted(set(re.findall(r"wrong.py:(\d+): error", text))) == ["12", "13", "4", "5", "6", "7", "8"], text
