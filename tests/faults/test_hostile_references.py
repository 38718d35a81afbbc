"""An image cannot open what its user did not name: seen from outside, in the system calls."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from pathlib import Path

import pytest
from samples import MiB
from tools import diskmill, qemu_img, run, tool

SECRET = "/etc/passwd"

COMMANDS = {
    "info": ["info", "{image}"],
    "info-json": ["info", "--output=json", "{image}"],
    "info-chain": ["info", "--backing-chain", "{image}"],
    "check": ["check", "{image}"],
    "map": ["map", "{image}"],
    "measure": ["measure", "-O", "raw", "{image}"],
    "compare": ["compare", "{image}", "{other}"],
    "convert": ["convert", "-O", "raw", "{image}", "{output}"],
    "convert-to-it": ["convert", "-n", "-O", "qcow2", "{other}", "{image}"],
}


def set_backing(image: Path, name: str) -> None:
    """Write *name* as the backing file name into a qcow2 header, whatever qemu-img would say to it."""
    data = name.encode()
    with image.open("r+b") as file:
        file.seek(0)
        header = bytearray(file.read(65536))
        offset = 0x8000  # inside the first cluster, far behind the header extensions
        struct.pack_into(">QI", header, 8, offset, len(data))
        header[offset : offset + len(data)] = data
        file.seek(0)
        file.write(header)


def set_data_file(image: Path, name: str) -> None:
    """Turn the data file name of *image* into *name*: header extension 0x44415441, incompatible feature bit 2."""
    data = name.encode()
    with image.open("r+b") as file:
        header = bytearray(file.read(65536))
        at = struct.unpack_from(">I", header, 100)[0]
        while struct.unpack_from(">I", header, at)[0] != 0x44415441:
            kind, length = struct.unpack_from(">II", header, at)
            assert kind, "the image has a data file extension"
            at += 8 + (length + 7) // 8 * 8
        old = struct.unpack_from(">I", header, at + 4)[0]
        tail = header[at + 8 + (old + 7) // 8 * 8 : 0x8000]
        padded = data + bytes(-len(data) % 8)
        new = struct.pack(">II", 0x44415441, len(data)) + padded + tail
        header[at : at + len(new)] = new
        file.seek(0)
        file.write(header[:65536])


@pytest.fixture(params=["/etc/passwd", "json", "nbd", "s3", "oci", "fsspec", "fifo", "symlink", "parent"])
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What the hostile image names; each would be opened by a tool that trusts images."""
    folder = tmp_path / "images"
    folder.mkdir()
    if request.param == "fifo":
        os.mkfifo(folder / "pipe")
    if request.param == "symlink":
        (folder / "link").symlink_to(SECRET)
    return {
        "/etc/passwd": SECRET,
        "json": f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{SECRET}"}}}}',
        "nbd": "nbd://127.0.0.1:10809/secret",
        "s3": "s3://bucket/secret",
        "oci": "oci://registry.example.org/secret:1",
        "fsspec": f"fsspec+file://{SECRET}",
        "fifo": "pipe",
        "symlink": "link",
        "parent": "../../../../../../../.." + SECRET,
    }[request.param]


def opened(trace: str) -> list[str]:
    """Names that were opened, or connected to, in an strace log (and not merely asked about)."""
    calls = re.findall(r'\b(?:open|openat|creat|openat2)\((?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]+)"', trace)
    calls = [os.path.join(folder, name) for folder, name in calls]
    return calls + re.findall(r"\b(connect\(.*)", trace)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("role", ["backing", "data-file"])
def test_nothing_but_the_named_file_is_opened(tmp_path: Path, reference: str, role: str, command: str) -> None:
    folder = tmp_path / "images"
    image, other, output = folder / "image.qcow2", tmp_path / "other.qcow2", tmp_path / "output.raw"
    if role == "backing":
        qemu_img("create", "-q", "-f", "qcow2", image, "1M")
        set_backing(image, reference)
    else:
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={folder / 'data.raw'}", image, "1M")
        set_data_file(image, reference)
        (folder / "data.raw").unlink()
    qemu_img("create", "-q", "-f", "qcow2", other, str(MiB))
    words = [word.format(image=image, other=other, output=output) for word in COMMANDS[command]]
    log = tmp_path / "trace"
    program = Path(sys.executable).with_name("diskmill")
    done = run(
        tool("strace"), "-f", "-y", "-qq", "-s", "4096", "-e", "trace=open,openat,openat2,creat,connect", "-o", log,
        program, *words, check=False, timeout=60,
    )  # fmt: skip
    names = opened(log.read_text(errors="replace"))
    assert str(image) in names, "the trace shows opens"
    forbidden = {SECRET, str(folder / "pipe"), str(folder / "link"), os.path.realpath(SECRET)}
    mine = [name for name in names if name in forbidden or name.startswith("connect") or "secret" in name]
    assert mine == []
    assert "Traceback" not in done.stderr
    if command in ("info", "info-json"):
        assert done.returncode == 0, done.stderr
        assert reference in done.stdout or command == "info-json"
    elif command in ("compare", "convert", "map", "info-chain"):
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert "--trust" in done.stderr
        assert reference[:20] in done.stderr
    assert not output.exists()


URLS = (
    *(("http://127.0.0.1:{port}/secret", command) for command in COMMANDS),
    *((f"{scheme}://127.0.0.1:{{port}}/secret", "convert") for scheme in ("https", "ftp", "ftps", "oci")),
    ("fsspec+http://127.0.0.1:{port}/secret", "convert"),
    *((f"{scheme}://bucket/secret", "convert") for scheme in ("s3", "gs", "az")),
    ("nfs://127.0.0.1/secret/disk", "convert"),
    ("iscsi://127.0.0.1:{port}/iqn.2026-11.secret/0", "convert"),
    ("rbd:secret/disk:mon_host=127.0.0.1", "convert"),
    ("ssh://-oProxyCommand=touch%20secret/x", "convert"),
    ('json:{{"driver":"raw","file":{{"driver":"http","url":"http://127.0.0.1:{port}/secret"}}}}', "convert"),
)


@pytest.mark.parametrize(("url", "command"), URLS)
def test_no_server_is_connected_to(url: str, command: str, tmp_path: Path) -> None:
    """A server that listens is not reached by what a local image names."""
    image, other, output = tmp_path / "image.qcow2", tmp_path / "other.qcow2", tmp_path / "output.raw"
    for one in (image, other):
        qemu_img("create", "-q", "-f", "qcow2", one, "1M")
    words = [word.format(image=image, other=other, output=output) for word in COMMANDS[command]]
    log = tmp_path / "trace"
    program = Path(sys.executable).with_name("diskmill")
    with socket.create_server(("127.0.0.1", 0)) as server:
        set_backing(image, url.format(port=server.getsockname()[1]))
        trace = ("-f", "-qq", "-e", "trace=%network,execve,fork,vfork", "-o", log)
        done = run(tool("strace"), *trace, program, *words, check=False, timeout=60)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "socket(" not in log.read_text()
    assert log.read_text().count("execve(") == 1, "the program itself"
    assert "Traceback" not in done.stderr
    if command in ("compare", "convert", "map", "info-chain"):
        assert done.returncode != 0
        assert "--trust" in done.stderr


def test_the_user_may_name_what_the_image_may_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").mkdir()
    base, image = tmp_path / "elsewhere" / "base.raw", tmp_path / "images" / "image.qcow2"
    base.write_bytes(b"base" * 1024)
    diskmill("create", "-f", "qcow2", "-b", base, "-F", "raw", image)
    refused = diskmill("convert", "-O", "raw", image, tmp_path / "out.raw", check=False)
    assert refused.returncode == 1
    assert str(base) in refused.stderr
    assert "--trust" in refused.stderr
    for policy in (f"--trust={tmp_path / 'elsewhere'}", "--trust=anything"):
        diskmill("convert", policy, "-O", "raw", image, tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes() == base.read_bytes()


def test_the_images_own_folder_is_trusted_by_default(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.raw").write_bytes(b"base" * 1024)
    diskmill("create", "-f", "qcow2", "-b", "sub/base.raw", "-F", "raw", tmp_path / "image.qcow2")
    diskmill("convert", "-O", "raw", tmp_path / "image.qcow2", tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == b"base" * 1024
    refused = diskmill(
        "convert", "--trust=nothing", "-O", "raw", tmp_path / "image.qcow2", tmp_path / "out2.raw", check=False
    )
    assert refused.returncode == 1
    assert not (tmp_path / "out2.raw").exists()
