"""A stranger's path: ``diskmill new-driver``, an edit, a wheel, the kit, the driver in use, and without it again.

One environment of its own gets the packages, and beside them the kit and what that needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import packages
import pytest
from diskmill_testkit.new_driver import KINDS
from packages import Python
from tools import run, tool

NAMES = [(kind, f"acme-{kind}") for kind in KINDS] + [("format", "acme-plain")]
"""The last one is left as it is."""
PATCH = """\
--- a/src/diskmill_acme_format/__init__.py
+++ b/src/diskmill_acme_format/__init__.py
@@ -23,4 +23,5 @@
     def extents(self, offset: int, length: int) -> Iterator[Extent]:
-        # FILL IN: where the bytes of the guest disk lie; Kind.ZERO where it reads as zeros.
-        if length:
-            yield Extent(offset, length, Kind.DATA, self.file, SECTOR + offset)
+        # The sectors lie in pairs that are exchanged.
+        for start in range(offset // SECTOR * SECTOR, offset + length, SECTOR):
+            place = SECTOR + (start ^ SECTOR if start ^ SECTOR < self.size else start)
+            yield Extent(start, SECTOR, Kind.DATA, self.file, place).clip(offset, offset + length)
"""
"""What the stranger makes of the format."""
ENCODE = """
def encode(disk):
    sectors = [disk[at : at + 512] for at in range(0, len(disk), 512)]
    for at in range(0, len(sectors) - 1, 2):
        sectors[at : at + 2] = sectors[at + 1], sectors[at]
    return HEADER.pack(HEADER.new(magic=MAGIC, size=len(disk))).ljust(512, b"\\0") + b"".join(sectors)

"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stranger works: it has a new package of each kind, the format edited."""
    folder = tmp_path_factory.mktemp("stranger")
    for kind, name in NAMES:
        run(sys.executable, "-m", "diskmill_cli", "new-driver", kind, name, cwd=folder)
    project = folder / "diskmill-acme-format"
    subprocess.run(["git", "apply", "--unidiff-zero", "-"], input=PATCH, text=True, cwd=project, check=True)
    told = project / "tests" / "conftest.py"
    before, _, rest = told.read_text().partition("\ndef encode")
    told.write_text(before + ENCODE + rest[rest.index("\ndescribe") :])
    for path in folder.glob("*/tests/test_conformance.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 5 or "diskmill_testkit" not in text, f"{path} is longer than it need be"
    return folder


@pytest.fixture(scope="module")
def installed(folder: Path, everything: Path) -> Python:
    """An environment with the kit, what it needs, and the packages, as wheels."""
    python = packages.environment(
        folder / "environment", everything, "diskmill-testkit", "diskmill-qcow2[fast]", "cryptography"
    )
    (folder / "wheels").mkdir()
    wheels = packages.built(folder / "wheels", *(folder / f"diskmill-{name}" for _, name in NAMES))
    packages.install(folder / "environment", *wheels)
    return partial(python, cwd=folder)


def test_what_it_writes_passes_the_kit_works_and_can_be_taken_away(installed: Python, folder: Path) -> None:
    words = ("-v", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", folder)
    words += ("-k", "not acme-plain or encoded")  # of what is left as it is, only that it reads
    done = installed("pytest", *words, *folder.glob("*/tests"), timeout=200)
    for test in ("test_damaged_images[acme-format]", "was_encoded[acme-plain-plain]"):
        assert test in done.stdout
    for test in (
        "at_any_offset[filtered]",
        "below_it[acme-filter]",
        "that_it_fits[acme-crypto-qcow2]",
        "test_it_forbids",
        "test_it_runs",
    ):
        assert test in done.stdout
    assert not {"SKIPPED", "XFAIL", "XPASS"} & set(done.stdout.split())

    disk = b"".join(bytes([number]) * 512 for number in range(1, 6))
    swapped = b"".join(bytes([number]) * 512 for number in (2, 1, 4, 3, 5))
    header = b"acme-format".ljust(32, b"\0") + len(disk).to_bytes(8, "little")
    (folder / "disk").write_bytes(header.ljust(512, b"\0") + swapped)
    installed("diskmill_cli", "convert", "-O", "raw", "disk", "disk.raw")
    assert (folder / "disk.raw").read_bytes() == disk
    installed("diskmill_cli", "convert", "-f", "raw", "-O", "raw", "acme-protocol:disk.raw", "copy.raw")
    assert (folder / "copy.raw").read_bytes() == disk
    filtered = "driver=raw,file.driver=acme-filter,file.file.filename=disk.raw"
    assert f"({len(disk)} bytes)" in installed("diskmill_cli", "info", "--image-opts", filtered).stdout
    assert installed("diskmill_cli", "acme-command", "disk").stdout == f"{len(disk)} bytes\n"
    assert "acme-plugin" in installed("diskmill_cli", "drivers").stdout
    words = ("--object", "secret,id=s,data=pass", "-o", "encrypt.format=acme-crypto,encrypt.key-secret=s")
    installed("diskmill_cli", "convert", "-f", "raw", "-O", "qcow2", *words, "disk.raw", "secret.qcow2")
    assert b"\1" * 512 not in (folder / "secret.qcow2").read_bytes()
    told = json.loads(installed("diskmill_cli", "info", "--output=json", "secret.qcow2").stdout)
    assert told["format-specific"]["data"]["encrypt"] == {"format": "acme-crypto"}
    spec = "driver=qcow2,encrypt.key-secret=s,file.filename=secret.qcow2"
    installed("diskmill_cli", "convert", *words[:2], "--image-opts", "-O", "raw", spec, "plain.raw")
    assert (folder / "plain.raw").read_bytes() == disk
    qemu = run(tool("qemu-img"), "info", folder / "secret.qcow2", check=False)
    assert "encryption method" in qemu.stderr, "a program that does not know the cipher refuses"

    packages.pip(folder / "environment", "uninstall", "-q", "-y", "diskmill-acme-format", "diskmill-acme-crypto")
    missing = installed("diskmill_cli", "info", "-f", "acme-format", "disk", check=False)
    assert missing.returncode == 1
    assert "acme-format" in missing.stderr
    assert missing.stderr.count("\n") == 1
    missing = installed("diskmill_cli", "info", "secret.qcow2", check=False)
    assert missing.returncode == 1
    assert f"encryption method {int.from_bytes(b'acme', 'big')} is that of no cipher" in missing.stderr


def test_a_name_that_is_none_and_a_folder_that_is_there_are_refused(tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        done = run(sys.executable, "-m", "diskmill_cli", "new-driver", *words, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        return done.stderr

    assert "no name of a driver" in refused("format", "../evil")
    assert "unknown kind 'formats'" in refused("formats", "acme").replace("did you", "")
    assert "a kind" in refused("format")
    (tmp_path / "diskmill-acme").mkdir()
    assert "File exists" in refused("format", "acme")
    assert list((tmp_path / "diskmill-acme").iterdir()) == []
