"""The wheels of all packages, installed as users combine them: each does its job, and what is missing is named."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encoders import ewf, vma
from packages import MEMBERS, ROOT, Python
from samples import KiB
from tools import assert_identical, qemu_img, run

Environment = Callable[..., Python]
OURS = [member for member in MEMBERS if member.parent.name != "examples" and member.name != "example-driver"]


def fails(python: Python, folder: Path, *words: Any, naming: str) -> None:
    """Fail unless the command ends with one line of error that has *naming*."""
    done = python("diskmill_cli", *words, check=False, cwd=folder)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stdout + done.stderr
    assert naming in done.stderr


def the_library_alone(python: Python, folder: Path) -> None:
    code = "import diskmill; diskmill.create('a.{0}', 1 << 20, format='{0}'); print(diskmill.info('a.{0}').format)"
    assert python("-c", code.format("vdi"), cwd=folder).stdout == "vdi\n"
    assert "pip install diskmill-qed" in python("-c", code.format("qed"), cwd=folder, check=False).stderr
    for module in ("typer", "rich", "diskmill_cli", "diskmill_qcow2"):
        assert "No module named" in python(module, check=False).stderr


def the_command_alone(python: Python, folder: Path) -> None:
    (folder / "disk").write_bytes(b"disk" * KiB)
    python("diskmill_cli", "convert", "-f", "raw", "-O", "raw", "disk", "copy", cwd=folder)
    assert (folder / "copy").read_bytes() == b"disk" * KiB
    for format in ("qcow2", "vmdk", "sparse", "vma"):
        fails(python, folder, "info", "-f", format, "disk", naming=f"pip install diskmill-{format}")
    for name, package in (("nbd://127.0.0.1:9", "nbd"), ("https://127.0.0.1/x", "http"), ("s3://b/x", "object")):
        fails(python, folder, "info", name, naming=f"pip install diskmill-{package}")


def the_command_with_qcow2(python: Python, folder: Path) -> None:
    qemu_img("convert", "-f", "raw", "-O", "qcow2", __file__, "a.qcow2", cwd=folder)
    python("diskmill_cli", "convert", "-O", "qcow2", "a.qcow2", "b.qcow2", cwd=folder)
    assert_identical(folder / "a.qcow2", folder / "b.qcow2", formats=("qcow2", "qcow2"))
    # Small and sound: there is no need of numpy.
    assert "No errors" in python("diskmill_cli", "check", "b.qcow2", cwd=folder).stdout
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", __file__, "c.qcow2", cwd=folder)
    fails(python, folder, "check", "c.qcow2", naming="pip install numpy")
    fails(python, folder, "create", "-f", "vmdk", "a.vmdk", "1M", naming="pip install diskmill-vmdk")
    encrypted = ("-o", "encrypt.format=luks,encrypt.key-secret=s", "--object", "secret,id=s,data=x")
    fails(python, folder, "create", "-f", "qcow2", *encrypted, "e", "1M", naming="pip install diskmill-luks")
    assert not (folder / "e").exists()


def qcow2_with_numpy(python: Python, folder: Path) -> None:
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", __file__, "c.qcow2", cwd=folder)
    assert "No errors" in python("diskmill_cli", "check", "c.qcow2", cwd=folder).stdout


def encrypted_qcow2(python: Python, folder: Path) -> None:
    words = ("--object", "secret,id=s,data=pass", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    (folder / "disk").write_bytes(b"disk" * 16 * KiB)
    python("diskmill_cli", "convert", "-f", "raw", "-O", "qcow2", *words, "disk", "e.qcow2", cwd=folder)
    assert b"diskdisk" not in (folder / "e.qcow2").read_bytes()
    opened = ("--object", "secret,id=s,data=pass", "--image-opts")
    spec = "driver=qcow2,encrypt.key-secret=s,file.filename=e.qcow2"
    python("diskmill_cli", "convert", *opened, "-O", "raw", spec, "back", cwd=folder)
    assert (folder / "back").read_bytes() == b"disk" * 16 * KiB
    fails(python, folder, "create", "-f", "vdi", "a.vdi", "1M", naming="pip install diskmill-vdi")


def two_formats_of_other_makers(python: Python, folder: Path) -> None:
    (folder / "disk").write_bytes(b"disk" * 16 * KiB)
    python("diskmill_cli", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", "disk", "a.vhd", cwd=folder)
    python("diskmill_cli", "convert", "-O", "vhdx", "a.vhd", "a.vhdx", cwd=folder)
    assert_identical(folder / "disk", folder / "a.vhdx", formats=("raw", "vhdx"))
    qemu_img("create", "-q", "-f", "qcow2", "a.qcow2", "1M", cwd=folder)
    fails(python, folder, "resize", "a.qcow2", "2M", naming="pip install diskmill-qcow2")


def a_server_and_its_client(python: Python, folder: Path) -> None:
    told = python("diskmill_cli", "serve", "--help").stdout
    assert "Export" in told or "export" in told, told
    # A driver is there: what is missing is the server.
    fails(python, folder, "info", "nbd+unix:///?socket=nobody", naming="No such file")
    fails(python, folder, "info", "-f", "parallels", __file__, naming="pip install diskmill-parallels")


def filters_over_raw(python: Python, folder: Path) -> None:
    (folder / "disk").write_bytes(b"disk" * KiB)
    spec = "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=disk"
    assert "4096 bytes" in python("diskmill_cli", "info", "--image-opts", spec, cwd=folder).stdout
    fails(python, folder, "info", "-f", "dmg", "disk", naming="pip install diskmill-dmg")


def evidence_and_backups(python: Python, folder: Path) -> None:
    (folder / "disk").write_bytes(b"disk" * KiB + bytes(4096))
    python("diskmill_cli", "convert", "-f", "raw", "-O", "sparse", "disk", "a.sparse", cwd=folder)
    python("diskmill_cli", "convert", "-O", "raw", "a.sparse", "back", cwd=folder)
    assert (folder / "back").read_bytes() == (folder / "disk").read_bytes()
    disk = b"disk" * 16 * KiB
    for format, encoder in (("ewf", ewf), ("vma", vma)):
        (folder / f"disk.{format}").write_bytes(next(iter(encoder.VARIANTS.values()))(disk))
        python("diskmill_cli", "convert", "-O", "raw", f"disk.{format}", "back", cwd=folder)
        assert (folder / "back").read_bytes().startswith(disk)
    fails(python, folder, "info", "-f", "sparseimage", "disk", naming="pip install diskmill-sparseimage")


def the_kit_and_a_strangers_driver(python: Python, folder: Path) -> None:
    (folder / "test_conformance.py").write_text("from diskmill_testkit.formats import *\nDRIVERS = ['blk']\n")
    words = ("-q", "-p", "no:cacheprovider", "--rootdir", folder, "-k", "damaged or taken_for", folder)
    assert " passed" in python("pytest", *words, cwd=folder).stdout
    fails(python, folder, "create", "-f", "qcow2", "a", "1M", naming="pip install diskmill-qcow2")


COMBINATIONS = {
    the_library_alone: ["diskmill", "diskmill-vdi"],
    the_command_alone: ["diskmill[cli]"],
    the_command_with_qcow2: ["diskmill[cli,qcow2]"],
    qcow2_with_numpy: ["diskmill-cli", "diskmill-qcow2[fast]"],
    encrypted_qcow2: ["diskmill[cli,qcow2,luks]"],
    two_formats_of_other_makers: ["diskmill[cli,vpc,vhdx]"],
    a_server_and_its_client: ["diskmill[cli,nbd]"],
    filters_over_raw: ["diskmill[cli,filters]"],
    evidence_and_backups: ["diskmill[cli,sparse,ewf,vma]"],
    the_kit_and_a_strangers_driver: ["diskmill-testkit", "diskmill-blk"],
}
"""What an environment is for → the packages that one asks pip for."""


@pytest.mark.parametrize("job", COMBINATIONS, ids=lambda job: job.__name__)
def test_some_of_the_packages(job: Callable[[Python, Path], None], environment: Environment, tmp_path: Path) -> None:
    job(environment(*COMBINATIONS[job]), tmp_path)


def test_all_of_them(everything: Path, environment: Environment) -> None:
    python = environment("diskmill[all]", "diskmill-qemu-img", "diskmill-testkit")
    found = json.loads(python("diskmill_cli", "drivers", "--output=json").stdout)
    assert [one for one in found if one["broken"]] == []
    assert {one["name"] for one in found if one["kind"] == "format"} == declared("diskmill.format")
    assert {one["package"] for one in found} == names() - {"diskmill-cli", "diskmill-qemu-img"}

    # What pip puts beside the modules.
    for script, said in (("diskmill", "diskmill "), ("qemu-img", "qemu-img version")):
        assert python(str(everything / "bin" / script), "--version").stdout.startswith(said)
    share = everything / "share"
    pages = {path.name for path in (share / "man" / "man1").iterdir()}
    assert {"diskmill.1", "diskmill-convert.1", "qemu-img.1"} <= pages
    for file in (
        "bash-completion/completions/diskmill",
        "zsh/site-functions/_diskmill",
        "fish/vendor_completions.d/diskmill.fish",
    ):
        assert "_DISKMILL_COMPLETE" in (share / file).read_text()


def projects() -> list[dict[str, Any]]:
    return [tomllib.loads((member / "pyproject.toml").read_text())["project"] for member in OURS]


def names() -> set[str]:
    return {str(project["name"]) for project in projects()}


def declared(group: str) -> set[str]:
    return {name for project in projects() for name in project.get("entry-points", {}).get(group, {})}


def test_a_clone_installs_what_it_is_asked_for() -> None:
    words = ("--dry-run", "--no-deps", "--no-build-isolation", "--ignore-installed", "-q", "--report=-")
    done = run(sys.executable, ROOT / "dev.py", "install", "vdi", *words, timeout=200)
    chosen = {one["metadata"]["name"] for one in json.loads(done.stdout)["install"]}
    assert chosen == {"diskmill", "diskmill-cli", "diskmill-vdi"}
    wrong = run(sys.executable, ROOT / "dev.py", "install", "nothing", check=False)
    assert (wrong.returncode, "there is no driver 'nothing'" in wrong.stderr) == (2, True)
