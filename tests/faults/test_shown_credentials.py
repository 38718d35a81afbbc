"""Credentials in names, the user's and those in images, are in nothing that leaves: no line, no object, no file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from diskmill.errors import shown
from diskmill_cli.main import run
from diskmill_cli.session import Session
from tools import diskmill as command
from tools import qemu_img

SECRET = "SEKRIT"
WHERE = "127.0.0.1:1"
NAMES = {
    "password": f"http://bob:{SECRET}@{WHERE}/d/x.raw",
    "user": f"https://{SECRET}@{WHERE}/d/x.raw",
    "signature": f"https://{WHERE}/x.raw?sig={SECRET}&a=1",
    "token": f"http://{WHERE}/x.raw?token={SECRET}",
    "presigned": f"https://{WHERE}/b/x.raw?X-Amz-Credential=A&X-Amz-Signature={SECRET}",
    "ftp": f"ftp://bob:{SECRET}@{WHERE}/x",
    "ftps": f"ftps://bob:{SECRET}@{WHERE}/x",
    "iscsi": f"iscsi://bob%{SECRET}@{WHERE}/iqn.x/0",
    "ssh": f"ssh://bob:{SECRET}@{WHERE}/x",
    "nbd": f"nbd://bob:{SECRET}@{WHERE}/x",
    "s3": f"s3://bob:{SECRET}@bucket/x",
    "s3 presigned": f"s3://bucket/x?X-Amz-Signature={SECRET}",
    "oci": f"oci://bob:{SECRET}@{WHERE}/r/x:t",
    "nfs": f"nfs://bob:{SECRET}@{WHERE}/x/y",
    "rbd": f"rbd:p/i:id=a:key={SECRET}",
    "fsspec": f"fsspec+http://bob:{SECRET}@{WHERE}/x",
    "unknown": f"foo://bob:{SECRET}@h/v/x",
    "slash": f"http://bob:{SECRET}/a@{WHERE}/x",
    "two signs": f"http://bob:a@{SECRET}@{WHERE}/x",
    "bad port": f"http://bob:{SECRET}@127.0.0.1:99999/x",
    "no host": f"http://bob:{SECRET}@/x",
    "capitals": f"HTTP://bob:{SECRET}@{WHERE}/x",
    "url": f'json:{{"driver":"raw","file":{{"driver":"http","url":"http://b:{SECRET}@{WHERE}/x"}}}}',
    "cookie": f'json:{{"driver":"raw","file":{{"driver":"http","url":"http://{WHERE}/x","cookie":"sid={SECRET}"}}}}',
    "header": f'json:{{"driver":"raw","file.driver":"http","file.url":"http://{WHERE}/x","file.header":"A: {SECRET}"}}',
}
OF_IMAGES = (
    ("info", "own"), ("info", "--output=json", "own"), ("info", "--backing-chain", "own"),
    ("map", "--output=json", "own"),
    ("-T", "*", "convert", "own", "out"), ("compare", "own", "plain"), ("rebase", "-b", "", "own"),
    ("info", "--output=json", "--backing-chain", "--trust=anything", "own"),
)  # fmt: skip
TYPED = (
    ("-T", "*", "info", "NAME"), ("convert", "--output=json", "NAME", "out"), ("convert", "--resume", "NAME", "out"),
    ("convert", "plain", "NAME"), ("create", "-f", "raw", "NAME", "1M"), ("info", "--trust", "NAME", "own"),
    ("create", "-f", "qcow2", "-u", "-b", "NAME", "-F", "raw", "top", "1M"), ("NAME",), ("resize", "NAME", "2M"),
    ("rebase", "-u", "-b", "NAME", "-F", "raw", "over"), ("create", "-f", "qcow2", "-o", "data_file=NAME", "top", "1M"),
    ("convert", "-B", "NAME", "-F", "raw", "-O", "qcow2", "plain", "out"),
    ("info", "--image-opts", "driver=raw,file.filename=NAME"),
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("images")
    for name, format in (("over", "qcow2"), ("plain", "raw")):
        qemu_img("create", "-q", "-f", format, folder / name, "1M")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", NAMES)
def test_nothing_shows_what_a_name_holds(
    kind: str,
    images: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for path, data in images.items():
        Path(path).write_bytes(data)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", NAMES[kind], "-F", "raw", "own", "1M", cwd=tmp_path)
    for words in (*OF_IMAGES, *TYPED):
        run([word.replace("NAME", NAMES[kind]) for word in words], Session())
        out, err = capfd.readouterr()
        assert SECRET not in out + err, words
        assert "Traceback" not in err, words
        if words[0] == "info" and words[-1] == "own" and len(words) == 2:
            assert "…" in out, "that there is something is told"
        for path in tmp_path.iterdir():
            assert path.name == "own" or SECRET.encode() not in path.read_bytes(), words


PLAIN = (
    "ssh://user@host:22/path?host_key_check=md5:aa",
    "ssh://host:10022/a@b",
    "nbd+unix:///x?socket=/tmp/s@b",
    "nbd://[::1]:10/x@y",
    "nfs://h/x?uid=1",
    "s3://bucket/a:b@c",
    "iscsi://h:3260/iqn.2026:x@y/0",
    "http://h/x@y:z",
    "key-secret=k,file.password-secret=p,encrypt.key-secret=k",
    "json:{'driver':'qcow2','encrypt.key-secret':'x','file':{'driver':'file','filename':'a@b'}}",
    "/tmp/a:b@c=d",
)


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_no_credential_is_shown_to_the_letter(name: str) -> None:
    assert shown(name) == name


def test_a_batch_writes_none_into_its_records(tmp_path: Path) -> None:
    source, to = NAMES["unknown"], tmp_path / "out.raw"
    (tmp_path / "jobs").write_text(json.dumps({"id": "one", "job": "convert", "source": source, "to": str(to)}) + "\n")
    done = command("batch", "run", tmp_path / "jobs", check=False)
    assert done.returncode == 1
    assert "unknown protocol" in (tmp_path / "jobs.journal").read_text()
    for words in (("status", tmp_path / "jobs.journal"), ("report", tmp_path / "jobs.journal")):
        done = command("batch", *words, check=False)
        assert SECRET not in done.stdout + done.stderr
    assert SECRET not in (tmp_path / "jobs.journal").read_text()


@pytest.mark.parametrize(
    "piece",
    ["a+", "a.", "http:", "http:/", "x:/@", "x:/a:", "&key=", "'key':", '"header":[', "/", "\\", "a://b%", ";a.a"],
)
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    """In proportion to its length: a name of a stranger's making is looked at for secrets as well."""
    text = f"{piece * (40_000 // len(piece))} json:://@="
    start = time.process_time()
    shown(text)
    assert time.process_time() - start < 2
