"""SSH, over a real sshd: what is there reads as it does here, and what is written there is what qemu-img reads here."""

from __future__ import annotations

import json
import os
import pty
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diskmill
import pytest
from commands.images import ENCODERS, OURS
from diskmill.opening.context import Context
from encoders import in_memory
from samples import KiB, MiB, scattered_file
from ssh_server import SshServer
from tools import diskmill as command
from tools import qemu_img, qemu_io

SIZE = 6 * MiB
SECRET = ("--object", "secret,id=s,data=letmein")
IMAGES = {
    "raw": ("raw",),
    "qcow2": ("qcow2",),
    "zstd": ("qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow": ("qcow",),
    "qed": ("qed",),
    "vmdk": ("vmdk",),
    "flat": ("vmdk", "-o", "subformat=monolithicFlat"),
    "pieces": ("vmdk", "-o", "subformat=twoGbMaxExtentSparse"),
    "stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vpc": ("vpc",),
    "fixed": ("vpc", "-o", "subformat=fixed"),
    "vdi": ("vdi",),
    "vhdx": ("vhdx",),
    "parallels": ("parallels",),
    "luks": ("luks", *SECRET, "-o", "key-secret=s,iter-time=10"),
    **dict.fromkeys((*ENCODERS, *OURS), ()),
}  # fmt: skip
"""What is read over SSH: a name, and how qemu-img makes it (or our encoders, or diskmill, do)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ssh_server: SshServer) -> Path:
    folder = tmp_path_factory.mktemp("there")
    source = scattered_file(folder / "source", SIZE, seed=4, pieces=30)
    data = source.read_bytes()
    for name, (*words,) in IMAGES.items():
        if words:
            qemu_img("convert", "-f", "raw", "-O", *words, source, folder / name)
    for name, encoder in ENCODERS.items():
        (folder / name).write_bytes(in_memory(encoder.encode)(data))
    for name in OURS:
        diskmill.convert([source], folder / name, format="raw", output_format=name)
    for path in folder.iterdir():  # no holes, which nobody can see over SSH
        path.write_bytes(path.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def _server(ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISKMILL_SSH", ssh_server.command)


@pytest.fixture(scope="module", autouse=True)
def _one_connection(ssh_server: SshServer, folder: Path) -> Iterator[None]:
    """A file is kept open, so that the connection is: a new one for each operation takes longer than all else."""
    os.environ["DISKMILL_SSH"] = ssh_server.command
    try:
        with diskmill.open(ssh_server.url(folder / "source"), "raw"):
            yield
    finally:
        del os.environ["DISKMILL_SSH"]


def spec(name: str, file: dict[str, Any]) -> str:
    """The image *name* in *file*."""
    format = (*IMAGES[name], name)[0] if IMAGES[name] else name
    keys = {"key-secret": "s"} if name == "luks" else {}
    return "json:" + json.dumps({"driver": format, "file": file, **keys})


def mapped(name: str, context: Context) -> list[dict[str, Any]]:
    entries = [asdict(entry) for entry in diskmill.map(name, context=context)]
    for entry in entries:
        entry["filename"] = entry["filename"] and os.path.basename(entry["filename"])
    return entries


@pytest.mark.parametrize("name", IMAGES)
def test_every_format_reads_as_it_does_here(folder: Path, tmp_path: Path, ssh_server: SshServer, name: str) -> None:
    context = Context(secrets={"s": b"letmein"})
    here = spec(name, {"driver": "file", "filename": str(folder / name)})
    there = spec(name, {"driver": "ssh", "filename": ssh_server.url(folder / name)})
    infos = [asdict(diskmill.info(one, context=context)) for one in (here, there)]
    for told in infos:
        told.pop("actual_size")  # SFTP does not tell it
        told.pop("children")  # they tell the protocol, and that size once more
    shown = [str(told).replace(ssh_server.url(folder), str(folder)).replace('"ssh"', '"file"') for told in infos]
    assert shown[0] == shown[1]
    assert mapped(here, context) == mapped(there, context)
    assert diskmill.compare(here, there, context=context).identical
    output = tmp_path / "out.raw"
    diskmill.convert([there], str(output), output_format="raw", context=context, threads=4)
    assert output.read_bytes()[:SIZE] == (folder / "source").read_bytes()


@pytest.mark.parametrize("name", [name for name, words in IMAGES.items() if words])
def test_every_format_is_written_there(folder: Path, tmp_path: Path, ssh_server: SshServer, name: str) -> None:
    format, *words = IMAGES[name]
    output = tmp_path / "out"
    command(
        "convert", "-m", "4", "-f", "raw", "-O", format, *words, folder / "source", ssh_server.url(output),
        env=ssh_server.env,
    )  # fmt: skip
    named = ["--image-opts", f"driver={format},file.filename={output}"]
    if format == "luks":
        named = [*SECRET, "--image-opts", f"{named[1]},key-secret=s"]
    qemu_img("convert", *named, "-O", "raw", tmp_path / "back.raw")
    assert (tmp_path / "back.raw").read_bytes()[:SIZE] == (folder / "source").read_bytes()
    assert not list(tmp_path.glob(".diskmill-*"))


def test_a_backing_chain_and_a_data_file_over_there(tmp_path: Path, ssh_server: SshServer) -> None:
    (tmp_path / "sub").mkdir()
    base, top = tmp_path / "base.raw", tmp_path / "sub" / "top.qcow2"
    scattered_file(base, 4 * MiB, seed=2)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "../base.raw", "-F", "raw", top)
    qemu_io(top, "write -q -P 7 1M 300k", format="qcow2")
    outside = command("compare", ssh_server.url(top), top, check=False)
    assert "outside the trusted folders" in outside.stderr
    command("compare", f"--trust={ssh_server.url(tmp_path)}", f"--trust={tmp_path}", ssh_server.url(top), top)
    own = tmp_path / "own.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", ssh_server.url(base), "-F", "raw", own, "4M")
    command("compare", ssh_server.url(own), base)  # the same folder, named in full
    assert "--trust" in command("compare", own, base, check=False).stderr
    middle = tmp_path / "middle.qcow2"
    command("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", ssh_server.url(middle))
    assert "backing file: base.raw" in qemu_img("info", middle).stdout
    diskmill.convert([ssh_server.url(base)], ssh_server.url(tmp_path / "d.qcow2"), output_format="qcow2",
                     options={"data_file": "d.data"})  # fmt: skip
    assert (tmp_path / "d.data").exists()
    qemu_img("compare", base, tmp_path / "d.qcow2", cwd=tmp_path)


def test_an_image_there_is_changed_in_place(tmp_path: Path, ssh_server: SshServer) -> None:
    image = tmp_path / "disk.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", image, "1G")
    warnings: list[str] = []
    with diskmill.open(ssh_server.url(image), "vmdk", writable=True, context=Context(warn=warnings.append)) as disk:
        disk.write(5 * KiB, b"changed" * 100)
        disk.zero(512 * MiB, MiB)
    assert [text for text in warnings if "locked" in text]
    assert len(warnings) == 1
    command("resize", ssh_server.url(image), "3G")
    assert (tmp_path / "disk-s002.vmdk").exists()
    assert "3 GiB" in qemu_img("info", image).stdout
    back = tmp_path / "back.raw"
    qemu_img("convert", "-O", "raw", image, back)
    with back.open("rb") as file:
        assert file.read(5 * KiB + 700) == bytes(5 * KiB) + b"changed" * 100


def test_an_output_takes_the_place_and_mode_of_the_old_one(tmp_path: Path, ssh_server: SshServer) -> None:
    source, output, link = tmp_path / "source.raw", tmp_path / "out.raw", tmp_path / "link"
    source.write_bytes(b"new" * 1000)
    output.write_bytes(b"old")
    output.chmod(0o640)
    link.symlink_to(output)
    command("convert", "-f", "raw", "-O", "raw", source, ssh_server.url(link))
    assert link.is_symlink()
    assert output.read_bytes()[:3000] == source.read_bytes()
    assert output.stat().st_mode & 0o777 == 0o640


def test_the_servers_key_is_checked(folder: Path, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(query: str) -> str:
        done = command("info", "-f", "raw", ssh_server.url(folder / "source", query), check=False)
        assert done.stderr.count("\n") <= 1
        return done.stderr

    digits = ssh_server.hash("md5")
    # Without a list of known hosts: only who brings the key's hash is sure of it.
    monkeypatch.setenv("DISKMILL_SSH", f"{ssh_server.command} -o UserKnownHostsFile=/dev/null")
    assert refusal("?host_key_check=no") == ""
    assert refusal(f"?host_key_check=md5:{digits}") == ""
    for kind in ("sha1", "sha256"):
        assert refusal(f"?host_key_check={kind}:{ssh_server.hash(kind)}") == ""
    assert "Host key verification failed" in refusal(
        "?host_key_check=md5:" + digits.translate({ord("0") + d: "a" for d in range(10)})
    )
    assert "Host key verification failed" in refusal("?host_key_check=yes")
    assert "Host key verification failed" in refusal("")


def test_qemus_options_name_it(folder: Path, ssh_server: SshServer) -> None:
    where = f"file.server.host=127.0.0.1,file.server.port={ssh_server.port},file.user={ssh_server.user}"
    words = f"driver=qcow2,file.driver=ssh,{where},file.path={folder}/qcow2,file.host-key-check.mode=known_hosts"
    command("compare", "--image-opts", words, f"driver=raw,file.filename={folder}/source")
    old = f"driver=ssh,host=127.0.0.1,port={ssh_server.port},path={folder}/source"
    assert "file format: raw" in command("info", "--image-opts", old).stdout
    both = command("info", "--image-opts", f"{old},server.host=h", check=False)
    assert both.returncode == 1
    assert "say the same" in both.stderr


def at_terminal(words: list[str], env: dict[str, str], *, until: bytes, press: bytes) -> tuple[int, str]:
    """Run diskmill at a terminal, and *press* keys once it shows *until*: its exit status, and what was shown."""
    program = Path(sys.executable).with_name("diskmill")
    child, terminal = pty.fork()
    if child == 0:
        os.execve(program, [str(program), *words], {**os.environ, **env})
    text, end = b"", time.monotonic() + 30
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            text += os.read(terminal, 4096)
        except OSError:  # it has ended
            break
        if until in text and press:
            os.write(terminal, press)
            press = b""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text.decode()


def test_a_person_may_trust_a_machine_at_the_terminal(folder: Path, tmp_path: Path, ssh_server: SshServer) -> None:
    known = tmp_path / "known"
    env = {"DISKMILL_SSH": f"{ssh_server.command} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=ask"}
    words = ["info", ssh_server.url(folder / "qcow2")]
    status, text = at_terminal(words, env, until=b"continue connecting", press=b"yes\n")
    assert status == 0, text
    assert "virtual size" in text
    assert "127.0.0.1" in known.read_text()


def test_interrupting_at_the_terminal_tidies_up_over_there(tmp_path: Path, ssh_server: SshServer) -> None:
    source = scattered_file(tmp_path / "source.raw", 64 * MiB, seed=9, pieces=300, longest=MiB)
    there = tmp_path / "there"
    there.mkdir()
    # The key press reaches ssh, too, which must live on to remove what is not finished.
    words = ["convert", "-p", "-r", "8M", "-f", "raw", "-O", "raw", str(source), ssh_server.url(there / "out.raw")]
    status, text = at_terminal(words, ssh_server.env, until=b" MiB of 64 MiB", press=b"\x03")
    assert status == 130, text
    assert os.listdir(there) == []
