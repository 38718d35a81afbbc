"""Passphrases: the forms of ``--object secret``, against qemu-img; typed at a terminal; and nowhere to be seen."""

from __future__ import annotations

import base64
import codecs
import contextlib
import json
import os
import pty
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diskmill as api
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from luks_samples import SECRETS, context, passes
from tools import diskmill, qemu_img, run

PASSPHRASE = SECRETS["key"].decode()
PROGRAM = Path(sys.executable).with_name("diskmill")
MASTER = secrets.token_bytes(32)
IV = secrets.token_bytes(16)


def text(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


def sealed(data: bytes, *, padding: int | None = None) -> bytes:
    """*data* encrypted with AES-256-CBC under MASTER, and PKCS#7 padding (or what is given instead)."""
    rest = 16 - len(data) % 16
    encryptor = Cipher(algorithms.AES(MASTER), modes.CBC(IV)).encryptor()
    return encryptor.update(data + bytes([rest if padding is None else padding]) * rest) + encryptor.finalize()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an encrypted image, and files that secrets are read from."""
    made = tmp_path_factory.mktemp("secrets")
    options = {"key-secret": "key", "iter-time": 1}
    api.create(str(made / "disk.luks"), 65536, format="luks", options=options, context=context())
    key = SECRETS["key"]
    for name, data in {
        "raw": key,
        "newline": key + b"\n",
        "base64": text(key).encode(),
        "base64-lines": text(key)[:4].encode() + b"\n" + text(key)[4:].encode() + b"\n",
        "sealed": sealed(key),
        "sealed-base64": text(sealed(key)).encode(),
        "master": MASTER,
        "master-base64": text(MASTER).encode() + b"\n",
        "empty": b"",
    }.items():
        (made / name).write_bytes(data)
    return made


IN_MASTER = f"secret,id=m,format=base64,data={text(MASTER)}"
FORMS = [
    [f"secret,id=s,data={PASSPHRASE}"],
    [f"secret,id=s,format=raw,data={PASSPHRASE}"],
    [f"secret,format=base64,data={text(SECRETS['key'])},id=s"],
    ["secret,id=s,file={}/raw"],
    ["secret,id=s,file={}/base64,format=base64"],
    ["secret,id=s,file={}/base64-lines,format=base64"],
    [IN_MASTER, f"secret,id=s,keyid=m,iv={text(IV)},format=base64,data={text(sealed(SECRETS['key']))}"],
    [IN_MASTER, f"secret,id=s,keyid=m,iv={text(IV)},file={{}}/sealed"],
    ["secret,id=m,file={}/master", f"secret,id=s,keyid=m,iv={text(IV)},format=base64,file={{}}/sealed-base64"],
    ["secret,id=m,file={}/master-base64,format=base64", f"secret,id=s,keyid=m,iv={text(IV)},file={{}}/sealed"],
    [json.dumps({"qom-type": "secret", "id": "s", "data": PASSPHRASE})],
    [json.dumps({"qom-type": "secret", "id": "s", "format": "base64", "data": text(SECRETS["key"])})],
    [f"qom-type=secret,id=s,data={PASSPHRASE}"],
    ["secret,id=other,data=a,,b=c,,,,d", f"secret,id=s,data={PASSPHRASE}"],
]
WRONG = [
    ["secret,id=s,file={}/newline"],  # the line end is part of a passphrase
    ["secret,id=s"],
    ["secret,id=s,data="],
    ["secret,id=s,file={}/empty"],
    ["secret,id=s,data=a,file={}/raw"],
    ["secret,id=s,file={}/nothere"],
    ["secret,id=s,file={}"],
    ["secret,id=s,format=base64,data=a*b"],
    ["secret,id=s,format=hex,data=00"],
    ["secret,id=s,data=x,nope=1"],
    ["secret,data=x"],
    ["secret,id=t,data=x"],
    ["secret,id=s,data=x", "secret,id=s,data=x"],
    ["nothing,id=s,data=x"],
    ["id=s,data=x"],
    ["{nothing"],
    [f"secret,id=s,keyid=m,iv={text(IV)},file={{}}/sealed"],
    [f"secret,id=s,keyid=m,iv={text(IV)},file={{}}/sealed", IN_MASTER],
    [IN_MASTER, "secret,id=s,keyid=m,file={}/sealed"],
    [IN_MASTER, f"secret,id=s,keyid=m,iv={text(IV[:8])},file={{}}/sealed"],
    [IN_MASTER, "secret,id=s,keyid=m,iv=***,file={}/sealed"],
    [IN_MASTER, f"secret,id=s,keyid=m,iv={text(IV)},file={{}}/raw"],
    [IN_MASTER, f"secret,id=s,keyid=m,iv={text(IV)},format=base64,data={text(sealed(SECRETS['key'], padding=17))}"],
    ["secret,id=m,data=short", f"secret,id=s,keyid=m,iv={text(IV)},file={{}}/sealed"],
]


def words(folder: Path, objects: list[str]) -> list[str]:
    """A command that opens the image with the secret `s`."""
    given = [word for one in objects for word in ("--object", one.replace("{}", str(folder)))]
    name = f"driver=luks,key-secret=s,file.filename={folder / 'disk.luks'}"
    return ["map", "--output=json", *given, "--image-opts", name]


@pytest.mark.parametrize("objects", FORMS)
def test_every_form_as_qemu_img_takes_it(folder: Path, objects: list[str]) -> None:
    command = words(folder, objects)
    qemu_img(*command)
    done = diskmill(*command)
    assert done.stderr == ""


@pytest.mark.parametrize("objects", WRONG)
def test_what_qemu_img_refuses(folder: Path, objects: list[str]) -> None:
    command = words(folder, objects)
    assert qemu_img(*command, check=False).returncode == 1
    done = diskmill(*command, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and json.loads(done.stderr)["error"]["cause"], done.stderr
    assert PASSPHRASE not in done.stderr and text(MASTER) not in done.stderr


# -- at a terminal --------------------------------------------------------------------------------------------


def typed(command: list[str | Path], lines: list[str], cwd: Path) -> tuple[int, str]:
    """Run diskmill at a terminal, and type a line at each prompt; its status, and all that the terminal showed."""
    child, terminal = pty.fork()
    if not child:
        os.chdir(cwd)
        os.execv(PROGRAM, [str(PROGRAM), *map(str, command)])
    shown = ""
    text = codecs.getincrementaldecoder("utf-8")()  # a piece may end inside a character
    waiting = list(lines)
    asked = 0
    try:
        while piece := os.read(terminal, 65536):
            shown += text.decode(piece)
            if waiting and "assphrase" in shown[asked:] and shown.endswith(": "):
                asked = len(shown)
                time.sleep(0.05)  # the prompt comes before the echo is off
                os.write(terminal, waiting.pop(0).encode() + b"\n")
    except OSError:  # how a terminal ends
        pass
    finally:
        os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert not waiting, shown
    assert not any(line and line in shown for line in lines)
    return os.waitstatus_to_exitcode(status), shown


def test_a_passphrase_is_typed(folder: Path, tmp_path: Path) -> None:
    image = folder / "disk.luks"
    status, shown = typed(["convert", "-p", image, tmp_path / "disk.raw"], [PASSPHRASE], tmp_path)
    assert status == 0, shown
    assert f"Passphrase for '{image}': " in shown
    assert (tmp_path / "disk.raw").stat().st_size == 65536


def test_a_wrong_one_is_told(folder: Path, tmp_path: Path) -> None:
    status, shown = typed(["map", "--output=json", folder / "disk.luks"], ["let me in"], tmp_path)
    assert status == 1
    assert "passphrase is wrong" in shown and "Traceback" not in shown


def test_nothing_is_no_passphrase(folder: Path, tmp_path: Path) -> None:
    status, shown = typed(["map", "--output=json", folder / "disk.luks"], [""], tmp_path)
    assert status == 1
    assert "no passphrase was given" in shown


def test_info_does_not_ask(folder: Path, tmp_path: Path) -> None:
    status, shown = typed(["info", folder / "disk.luks"], [], tmp_path)
    assert status == 0
    assert "assphrase" not in shown


def test_a_new_passphrase_is_typed_twice(tmp_path: Path) -> None:
    create: list[str | Path] = ["create", "-f", "luks", "-o", "iter-time=1", "new.luks", "1M"]
    status, shown = typed(create, [PASSPHRASE, "open sesam"], tmp_path)
    assert status == 1
    assert "differ" in shown and not list(tmp_path.iterdir())
    status, shown = typed(create, [PASSPHRASE, PASSPHRASE], tmp_path)
    assert status == 0, shown
    assert passes(tmp_path / "new.luks")
    amend: list[str | Path] = ["amend", "-f", "luks", "-o", "state=active,iter-time=1", "new.luks"]
    status, shown = typed(amend, [PASSPHRASE, "swordfish", "swordfish"], tmp_path)
    assert status == 0, shown
    assert passes(tmp_path / "new.luks") and passes(tmp_path / "new.luks", "other")


def test_an_encrypted_qcow2_asks_too(tmp_path: Path) -> None:
    create = ["create", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.iter-time=1", "new.qcow2", "1M"]
    assert typed([*create], [PASSPHRASE, PASSPHRASE], tmp_path)[0] == 0
    status, shown = typed(["convert", "-O", "raw", "new.qcow2", "plain"], [PASSPHRASE], tmp_path)
    assert status == 0, shown
    assert (tmp_path / "plain").read_bytes() == bytes(1 << 20)


def test_nobody_is_asked_without_a_terminal(folder: Path) -> None:
    done = diskmill("map", "--output=json", folder / "disk.luks", check=False)
    assert done.returncode == 1
    assert "--object secret" in done.stderr and "key-secret" in done.stderr


# -- where keys must not show ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["luks", "qcow2"])
def test_keys_do_not_show(tmp_path: Path, format: str) -> None:
    """Neither in traces, nor in what info prints, nor in the tracebacks of a fault in diskmill itself."""
    prefix = "encrypt." if format == "qcow2" else ""
    chosen = f"{prefix}key-secret=s,{prefix}iter-time=1" + (",encrypt.format=luks" if prefix else "")
    (tmp_path / "key").write_text(PASSPHRASE)
    given = ["--object", f"secret,id=s,file={tmp_path / 'key'}"]
    done = diskmill("-T", "*", "create", *given, "-f", format, "-o", chosen, tmp_path / "disk", "1M")
    heard = done.stdout + done.stderr
    name = f"driver={format},{prefix}key-secret=s,file.filename={tmp_path / 'disk'}"
    for command in (["info"], ["info", "--output=json"], ["map", "--output=json"], ["convert"]):
        out = [tmp_path / "out"] if command == ["convert"] else []
        done = diskmill("-T", "*", *command, *given, "--image-opts", name, *out)
        heard += done.stdout + done.stderr
    assert "create request=" in heard and "open request=" in heard
    key = volume_key(tmp_path / "disk", format)
    for hidden in (PASSPHRASE, repr(SECRETS["key"])[2:-1], key.hex(), key.hex(" "), text(key), repr(key)[2:-1]):
        assert hidden not in heard


def volume_key(path: Path, format: str) -> bytes:
    """The key that encrypts the disk, as long as diskmill holds it."""
    from diskmill.opening.graph import open_image

    spec: dict[str, Any] = {"driver": format, "file": {"driver": "file", "filename": str(path)}}
    spec["key-secret" if format == "luks" else "encrypt.key-secret"] = "key"
    with open_image(spec, context=context()) as image:
        return bytes(image.volume.sectors._key)  # type: ignore[attr-defined]


def test_tracebacks_and_representations_hide_keys(folder: Path) -> None:
    """Also where every local variable is printed, as some programs' handlers of errors do."""
    import traceback

    from diskmill.opening.graph import open_image

    image = folder / "disk.luks"
    key = volume_key(image, "luks")
    here = context()
    spec: dict[str, Any] = {"driver": "luks", "key-secret": "wrong", "file": {"driver": "file", "filename": str(image)}}
    try:
        open_image(spec, context=here)
    except api.DiskmillError as error:
        heard = "".join(traceback.format_exception(error))
    assert "let me in" not in heard
    spec["key-secret"] = "key"
    with open_image(spec, context=here) as opened:
        for thing in (here, opened, opened.volume, opened.volume.sectors, opened.details()):  # type: ignore[attr-defined]
            assert PASSPHRASE not in repr(thing)
            assert key.hex() not in repr(thing) and repr(key)[2:-1] not in repr(thing)


def test_other_processes_do_not_see_keys(folder: Path, tmp_path: Path) -> None:
    """What `ps` shows of a process while it works on an image whose key came from a file."""
    (tmp_path / "key").write_text(PASSPHRASE)
    given = ["--object", f"secret,id=s,file={tmp_path / 'key'}"]
    name = f"driver=luks,key-secret=s,file.filename={folder / 'disk.luks'}"
    command = [str(PROGRAM), "convert", "-r", "16k", *given, "--image-opts", name, str(tmp_path / "out")]
    process = subprocess.Popen(command)
    seen = 0
    while process.poll() is None:
        for what in ("cmdline", "environ"):
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                shown = Path(f"/proc/{process.pid}/{what}").read_bytes()
                assert SECRETS["key"] not in shown
                seen += bool(shown)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert not children.exists() or not children.read_text()  # nobody is handed a key
        time.sleep(0.02)
    assert process.returncode == 0 and seen


@pytest.mark.parametrize("command", ["convert", "rebase"])
def test_a_secret_that_comes_through_a_pipe_is_read_once(tmp_path: Path, command: str) -> None:
    """It is the passphrase on both sides, and nothing is made with an empty one."""
    source = tmp_path / "disk.raw"
    source.write_bytes(b"data" * 1024)
    image = tmp_path / "disk.luks"
    key = "secret,id=s,file=<(printf hunter2)"
    script = f'"$1" convert -f raw -O luks -o key-secret=s,iter-time=10 --object {key} "$2" "$3"'
    if command == "rebase":
        script = (
            '"$1" create -q -f qcow2 "$3".base 1M; "$1" create -q -f qcow2 "$3".new 1M; '
            'O="--object secret,id=s,data=hunter2"; '
            '"$1" create -q $O -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 '
            '-b "$3".base -F qcow2 "$3"; '
            '"$1" rebase --object secret,id=s,file=<(printf hunter2) --image-opts -b "$3".new -F qcow2 '
            'driver=qcow2,encrypt.key-secret=s,file.filename="$3"'
        )
    run("bash", "-c", script, "bash", PROGRAM, str(source), str(image))
    if command == "convert":
        (tmp_path / "key").write_bytes(b"hunter2")
        opened = tmp_path / "opened"
        words = ["--object", f"secret,id=s,file={tmp_path / 'key'}", "--image-opts"]
        qemu_img("convert", *words, "-O", "raw", f"driver=luks,key-secret=s,file.filename={image}", opened)
        assert opened.read_bytes() == source.read_bytes()


def test_an_empty_new_passphrase_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.luks"
    words = ["--object", "secret,id=s,data=", "-f", "luks", "-o", "key-secret=s,iter-time=10"]
    result = subprocess.run([PROGRAM, "create", *words, image, "1M"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "the new passphrase (key-secret) is empty" in result.stderr
    assert not image.exists()


@pytest.mark.parametrize("key", ["data", "file", "iv"])
@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800"])
def test_a_secret_in_json_may_hold_any_characters(key: str, text: str) -> None:
    from diskmill.errors import DiskmillError
    from diskmill_cli.secrets import read_objects

    rest = '"data":"YWJj","keyid":"k",' if key == "iv" else ""
    master = '{"qom-type":"secret","id":"k","data":"' + "x" * 32 + '"}'
    definition = f'{{"qom-type":"secret","id":"s",{rest}"{key}":"{text}"}}'
    if (key, text) == ("data", "a\\u0000b"):
        assert read_objects([master, definition])[0]["s"] == b"a\0b"
    else:
        with pytest.raises(DiskmillError):
            read_objects([master, definition])
