"""Disks in a real registry (docker's), and in one of ours that wants tokens."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from http_servers import free_port, running
from samples import MiB
from tools import diskmill as command
from tools import qemu_img, tool

BCRYPT = "$2b$05$aaaaaaaaaaaaaaaaaaaaaOwN3kL1r/5tCX49L9FU8BMpbjRXGyPKS"
"""The password ``s3cret``, as docker's registry wants it."""
PLAIN = "driver=raw,file.driver=oci,file.plain-http=on,file.filename="


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of docker's registry, for user ``ann`` with password ``s3cret``."""
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    (folder / "users").write_text(f"ann:{BCRYPT}\n")
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: x}}\nauth: {{htpasswd: {{realm: x, path: {folder}/users}}}}\n"
    )
    with running(port, tool("docker-registry"), "serve", folder / "config.yml", leave=1):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def logged_in(registry: str, tmp_path: Path) -> str:
    word = base64.b64encode(b"ann:s3cret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry: {"auth": word}}}))
    return registry


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    path.write_bytes(random.Random(3).randbytes(20 * MiB) + bytes(MiB) + b"end".ljust(512, b"\0"))
    return path


def push(registry: str, repository: str, layer: bytes, kind: str) -> None:
    """Put an image with one *layer* there, as its tag 1."""

    def ask(method: str, url: str, body: bytes = b"", type: str = "application/octet-stream") -> Any:
        word = base64.b64encode(b"ann:s3cret").decode()
        headers = {"Authorization": f"Basic {word}", "Content-Type": type}
        return urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method))

    base = f"http://{registry}/v2/{repository}"
    blobs = []
    for data in (b"{}", layer):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        where = ask("POST", f"{base}/blobs/uploads/").headers["Location"]
        ask("PUT", f"{where}&digest={digest}", data)
        blobs.append({"digest": digest, "size": len(data), "mediaType": kind})
    blobs[0]["mediaType"] = "application/vnd.oci.image.config.v1+json"
    type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": type, "config": blobs[0], "layers": blobs[1:]}
    ask("PUT", f"{base}/manifests/1", json.dumps(manifest).encode(), type)


def container_disk(path: Path, mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("disk")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        archive.add(path, f"disk/{path.name}")
    return stream.getvalue()


def test_what_is_written_is_read(logged_in: str, disk: Path, tmp_path: Path) -> None:
    place = f"oci://{logged_in}/disks/written:1"
    command("convert", "-m", "4", "-f", "raw", "-O", "raw", "-o", "plain-http=on", disk, place)
    command("compare", "--image-opts", f"driver=raw,file.filename={disk}", PLAIN + place)
    shown = command("info", "--output=json", "--image-opts", PLAIN + place).stdout
    assert json.loads(shown)["virtual-size"] == disk.stat().st_size


def test_a_qcow2_in_a_raw_layer(logged_in: str, disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", disk, image)
    push(logged_in, "disks/qcow2", image.read_bytes(), "application/vnd.example.disk")
    words = PLAIN.replace("driver=raw", "driver=qcow2", 1) + f"oci://{logged_in}/disks/qcow2:1"
    command("compare", "--image-opts", f"driver=raw,file.filename={disk}", words)


def test_container_disks(logged_in: str, disk: Path, tmp_path: Path) -> None:
    """As they are: by ranges. Packed: from the first byte to the last."""
    stream, output = tmp_path / "disk.vmdk", tmp_path / "out.raw"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, stream)
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, image)
    tar = "application/vnd.oci.image.layer.v1.tar"
    push(logged_in, "plain", container_disk(image, "w"), tar)
    push(logged_in, "packed", container_disk(stream, "w:gz"), f"{tar}+gzip")
    for format, name in (("qcow2", "plain"), ("vmdk", "packed")):
        words = PLAIN.replace("driver=raw", f"driver={format}", 1) + f"oci://{logged_in}/{name}:1"
        command("convert", "--image-opts", words, "-O", "raw", output)
        assert output.read_bytes() == disk.read_bytes()


def test_who_is_not_let_in(registry: str, logged_in: str, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").unlink()
    place = PLAIN + f"oci://{registry}/disks/written:1"
    done = command("info", "--image-opts", place, check=False)
    assert "wants a user and password" in done.stderr
    secret = ("--object", "secret,id=p,data=wrong-word")
    done = command("info", *secret, "--image-opts", f"{place},file.username=ann,file.password-secret=p", check=False)
    assert "401" in done.stderr
    assert "wrong-word" not in done.stderr
    assert "no possible" not in done.stderr
    done = command("info", "oci://h@st:secret/x", check=False)
    assert "secret" not in done.stderr


def test_an_output_that_fails_has_no_tag(logged_in: str, disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "damaged.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", disk, image)
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size - 5 * MiB)
    place = f"oci://{logged_in}/disks/failed:1"
    done = command("convert", "-O", "raw", "-o", "plain-http=on", image, place, check=False)
    assert done.returncode == 1
    assert "404" in command("info", "--image-opts", PLAIN + place, check=False).stderr


class TokenRegistry(BaseHTTPRequestHandler):
    """Gives tokens, each of which is good for three requests."""

    protocol_version = "HTTP/1.1"
    data = b""
    given = 0
    left = 0

    def log_message(self, format: str, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        me = type(self)
        host = f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[index]
        digest = f"sha256:{hashlib.sha256(me.data).hexdigest()}"
        status, headers, body = 200, {}, b"{}"
        if self.path.startswith("/token"):
            assert "scope=repository%3Aa%2Fb%3Apull" in self.path
            me.given, me.left = me.given + 1, 3
            body = json.dumps({"token": f"t{me.given}"}).encode()
        elif self.headers.get("Authorization") != f"Bearer t{me.given}" or not me.left:
            status, headers = 401, {"WWW-Authenticate": f'Bearer realm="{host}/token",service="s"'}
        else:
            me.left -= 1
            if "/manifests/" in self.path:
                layer = {"digest": digest, "size": len(me.data), "mediaType": "application/octet-stream"}
                body = json.dumps({"layers": [layer]}).encode()
            elif "/blobs/" in self.path:
                first, last = (int(word) for word in self.headers["Range"].removeprefix("bytes=").split("-"))
                last = min(last, len(me.data) - 1)
                status, body = 206, me.data[first : last + 1]
                headers = {"Content-Range": f"bytes {first}-{last}/{len(me.data)}", "ETag": '"x"'}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_tokens_are_got_and_renewed(disk: Path, tmp_path: Path) -> None:
    TokenRegistry.data = disk.read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), TokenRegistry) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            place = f"oci://127.0.0.1:{server.server_address[1]}/a/b:1"
            output = tmp_path / "out.raw"
            command("convert", "-m", "1", "--image-opts", PLAIN + place, "-O", "raw", output)
        finally:
            server.shutdown()
            thread.join()
    assert output.read_bytes() == disk.read_bytes()
    assert TokenRegistry.given > 3
