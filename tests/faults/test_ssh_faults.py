"""SSH: servers that lie, stall and die, programs that are killed, and references that nobody allowed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from diskmill import open as open_image
from diskmill.errors import DiskmillError
from diskmill.opening.places import storage_of
from relay import FORMATS, KILLED, KILLS, killed_at, moments
from samples import MiB, scattered_file
from ssh_server import SshServer
from tools import diskmill, qemu_img, run, tool

FAKE = Path(__file__).parents[1] / "fake_ssh.py"
PROGRAM = Path(sys.executable).with_name("diskmill")


def fake(fault: str) -> dict[str, str]:
    return {"DISKMILL_SSH": shlex.join([sys.executable, "-S", str(FAKE), fault])}


TIMEOUT = "driver=raw,file.driver=ssh,file.host=h,file.path=/disk.raw,file.timeout=2"

FAULTS = {
    "garbage": "this is not SFTP",
    "text": "this is not SFTP",
    "silent": "closed the connection",
    "never": "has not answered for 2 s",
    "says-why": "Permission denied (publickey)",
    "version-2": "speaks SFTP 2",
    "names": "several names",
    "long-path": "a path that is not absolute",
    "relative-path": "a path that is not absolute",
    "cut-attributes": "ends before its fields do",
    "negative-size": "a file size that no file has",
    "folder": "it is a folder",
    "fifo": "not a regular file",
    "long-handle": "a file handle of 100000 bytes",
    "too-much": "bytes where 32768 were asked for",
    "nothing": "0 bytes where",
    "wrong-length": "bytes where 32768 were asked for",
    "other-number": "nobody asked for",
    "twice": "nobody asked for",
    "end": "the end of the file was reached",
    "ok-without-data": "no answer but 'OK'",
    "wrong-type": "an answer of type 102",
    "huge-packet": "a message of 4294967280 bytes",
    "tiny-packet": "a message of 1 bytes",
    "escapes": "root#",
    "stall": "has not answered for 2 s",
    "trickle": "has not answered for 2 s",
    "dies": "Connection to host closed by remote host",
}
"""What the server does, and what the one line says of it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_lies_or_stalls_costs_one_line(tmp_path: Path, fault: str) -> None:
    output = tmp_path / "out.raw"
    done = run(
        PROGRAM, "convert", "--image-opts", "-O", "raw", TIMEOUT, output,
        check=False, timeout=30, env=fake(fault), address_space=1024 * MiB,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert FAULTS[fault] in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr) < 1000
    assert os.listdir(tmp_path) == []


def test_a_server_that_gives_less_than_was_asked_for_is_asked_again(tmp_path: Path) -> None:
    output = tmp_path / "out.raw"
    run(PROGRAM, "convert", "--image-opts", "-O", "raw", TIMEOUT, output, env=fake("short"))
    assert output.read_bytes() == bytes(8 * MiB)


def test_a_server_that_takes_nothing_costs_one_line(tmp_path: Path) -> None:
    source = scattered_file(tmp_path / "source.raw", 8 * MiB, seed=1)
    options = ["convert", "-n", "--target-image-opts", "-f", "raw", source, TIMEOUT]
    done = run(PROGRAM, *options, check=False, timeout=30, env=fake("never-reads"))
    errors = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert done.returncode == 1
    assert len(errors) == 1, done.stderr
    assert "offset" in errors[0] or "size" in errors[0]


def test_a_program_that_is_missing_costs_one_line() -> None:
    done = diskmill("info", "ssh://h/disk", check=False, env={"DISKMILL_SSH": "/nonexistent/ssh"})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "DISKMILL_SSH" in done.stderr


def test_who_waits_for_a_server_that_stalls_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISKMILL_SSH", fake("stall")["DISKMILL_SSH"])
    failures: list[DiskmillError] = []
    with open_image("ssh://h/disk.raw", "raw") as image:
        storage = storage_of(image)

        def read() -> None:
            try:
                storage.read(5 * MiB, MiB)
            except DiskmillError as error:
                failures.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        storage.interrupt()
        thread.join(1)
        assert not thread.is_alive()
        assert "given up" in str(failures[0])


# -- an output has its name when it is whole ------------------------------------------------------------------------


def start(source: Path, name: str, server: SshServer, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PROGRAM, "convert", *options, "-O", "qcow2", source, name],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **server.env},
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", KILLED)
def test_kill_at_any_byte(format: str, tmp_path: Path, ssh_server: SshServer) -> None:
    """Old or whole is what bears the name; what may be left is one file, called as the documents say."""
    source = scattered_file(tmp_path / "source.raw", 16 * MiB, seed=9, pieces=100, longest=MiB)
    folder = tmp_path / "there"

    def begin(port: int) -> subprocess.Popen[bytes]:
        relay = f"{ssh_server.command} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        name = f"ssh://{ssh_server.user}@127.0.0.1:{port}{folder}/out"
        return subprocess.Popen(
            [PROGRAM, "convert", "-f", "raw", "-O", format, *FORMATS[format], source, name],
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "DISKMILL_SSH": relay},
        )

    folder.mkdir()
    status, total = killed_at(ssh_server.port, sys.maxsize, begin)
    assert status == 0
    unnamed = 0
    for number, sent in enumerate(moments(total, KILLS)):
        shutil.rmtree(folder)
        folder.mkdir()
        output = folder / "out"
        if number % 2:
            output.write_bytes(b"old")
        assert killed_at(ssh_server.port, sent, begin)[0] in (-signal.SIGKILL, 0)  # 0: it sent less than the first
        left = [name for name in os.listdir(folder) if name != "out"]
        assert all(re.fullmatch(r"\.diskmill-[0-9a-f]{16}\.part", name) for name in left)
        assert len(left) <= 1
        if (output.read_bytes() == b"old") if number % 2 else (not output.exists()):
            unnamed += 1
        else:
            qemu_img("compare", "-f", "raw", "-F", format, source, output)
    assert unnamed >= KILLS - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_leaves_nothing_behind(tmp_path: Path, ssh_server: SshServer, number: signal.Signals) -> None:
    source = scattered_file(tmp_path / "source.raw", 64 * MiB, seed=9, pieces=300, longest=MiB)
    folder = tmp_path / "there"
    folder.mkdir()
    process = start(source, ssh_server.url(folder / "out.qcow2"), ssh_server, "-r", "4M")
    wait_for_part(folder)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert errors.decode().count("\n") == 1, errors
    assert os.listdir(folder) == []


def wait_for_part(folder: Path) -> None:
    until = time.monotonic() + 20
    while not any(one.stat().st_size for one in folder.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_connection_that_breaks_leaves_nothing_behind(tmp_path: Path, ssh_server: SshServer) -> None:
    source = scattered_file(tmp_path / "source.raw", 64 * MiB, seed=9, pieces=300, longest=MiB)
    folder = tmp_path / "there"
    folder.mkdir()
    process = start(source, ssh_server.url(folder / "out.qcow2"), ssh_server, "-r", "4M")
    wait_for_part(folder)
    assert ssh_server.process is not None
    for child in Path(f"/proc/{ssh_server.process.pid}/task/{ssh_server.process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)  # the server of this connection; others can still be made
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.decode().count("\n") == 1, errors
    assert os.listdir(folder) == []


# -- references inside images ---------------------------------------------------------------------------------------

REFERENCES = [
    "ssh://-oProxyCommand=touch%20OPENED/x",
    "ssh://h/x",
    "sftp://127.0.0.1:{port}{folder}/base.raw?host_key_check=no",
    'json:{{"driver":"raw","file":{{"driver":"ssh","host":"127.0.0.1","port":"{port}","path":"{folder}/base.raw"}}}}',
]
COMMANDS = [
    ["info", "{image}"],
    ["info", "--backing-chain", "{image}"],
    ["check", "{image}"],
    ["map", "{image}"],
    ["measure", "-O", "raw", "{image}"],
    ["compare", "{image}", "{image}"],
    ["convert", "-O", "raw", "{image}", "{output}"],
    ["resize", "{image}", "+1M"],
    ["commit", "{image}"],
]


@pytest.mark.parametrize("number", range(len(REFERENCES)))
def test_an_image_of_this_machine_reaches_no_other(tmp_path: Path, ssh_server: SshServer, number: int) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(MiB))
    image, log = tmp_path / "image.qcow2", tmp_path / "trace"
    reference = REFERENCES[number].format(port=ssh_server.port, folder=tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", reference, "-F", "raw", image, "1M")
    words = []
    for command in COMMANDS:
        words.append(shlex.join([str(PROGRAM), *(one.format(image=image, output=tmp_path / "out") for one in command)]))
    run(
        tool("strace"), "-f", "-qq", "-e", "trace=execve,execveat,connect", "-o", log,
        "/bin/sh", "-c", "; ".join(words), check=False, env=ssh_server.env,
    )  # fmt: skip
    calls = [line for line in log.read_text().splitlines() if "exec" in line or "connect" in line]
    assert len([line for line in calls if f'"{PROGRAM}"' in line]) == len(COMMANDS), "the trace shows what is run"
    mine = [line for line in calls if not ('"/bin/sh"' in line or f'"{PROGRAM}"' in line or "resumed" in line)]
    assert mine == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "reference",
    ["pwned", "/etc/passwd", "../base.raw", "ssh://other{path}", "ssh://{server}{path}?host_key_check=no", "link"],
)
def test_an_image_over_there_names_its_own_folder_only(tmp_path: Path, ssh_server: SshServer, reference: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "base.raw").write_bytes(b"secret" * 1000)
    (folder / "link").symlink_to(tmp_path / "base.raw")
    server = f"{ssh_server.user}@127.0.0.1:{ssh_server.port}"
    name = reference.format(server=server, path=folder / "own.raw")
    (folder / "own.raw").write_bytes(bytes(MiB))
    image, output = folder / "image.qcow2", tmp_path / "out.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", image, "1M")
    done = diskmill("convert", "-O", "raw", ssh_server.url(image), output, check=False, env=ssh_server.env)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not output.exists()
    assert any(text in done.stderr for text in ("--trust", "symbolic link", "No such file"))


@pytest.mark.parametrize(
    "name",
    [
        "ssh://-oProxyCommand=touch%20x/y",
        "ssh://-l@h/y",
        "ssh://h%20x/y",
        "ssh://$(id)/y",
        "ssh://u%60id%60@h/y",
        "ssh://h:99999/y",
        "ssh://h:-1/y",
        "ssh://u:hunter2@h/y",
        "ssh://[-x]/y",
        "ssh:///y",
        "ssh://h",
        "ssh:h/y",
        "ssh://h/y%00z",
        "ssh://h/y?ssh=/bin/true",
        "ssh://h/y?host_key_check=md5:12",
    ],
)
def test_odd_names_are_refused_before_anything_is_run(tmp_path: Path, name: str) -> None:
    witness = tmp_path / "run"
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\ntouch {witness}\n")
    program.chmod(0o755)
    done = diskmill("info", name, check=False, env={"DISKMILL_SSH": str(program)})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr, "a password is not shown"
    assert not witness.exists()
