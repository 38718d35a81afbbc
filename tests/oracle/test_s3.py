"""Images in a real object store: read as from files, and written so that the vendor's client has them;
nothing of an output is there before it is whole."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import diskmill
import pytest
from commands import images
from diskmill.errors import DiskmillError
from diskmill.opening.context import Context
from diskmill_object import upload
from http_servers import free_port
from relay import FORMATS, KILLED, KILLS, killed_at, moments
from s3_server import BUCKET, S3, SECRET, seaweedfs, url
from samples import MiB
from served import IMAGES, like_the_file
from tools import diskmill as command
from tools import qemu_img


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    images.build(path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweedfs(tmp_path_factory.mktemp("s3") / "state") as s3:
        for path in folder.iterdir():
            if path.is_file():
                s3.put(f"images/{path.name}", path)
        yield s3


@pytest.fixture(autouse=True)
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 MiB, of which 3 stretches are zeros: several parts of an upload."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    rng = random.Random(7)
    path.write_bytes(b"".join(bytes(2 * MiB) if at in (3, 9, 19) else rng.randbytes(2 * MiB) for at in range(20)))
    return path


@pytest.mark.parametrize("name", IMAGES)
def test_every_format_reads_as_from_a_file(name: str, folder: Path, tmp_path: Path) -> None:
    """A backing image, an extent and a data file that lie beside it come from the same bucket."""
    like_the_file(name, folder, url("images"), tmp_path)


def test_what_is_written_is_what_the_vendors_client_reads(s3: S3, disk: Path, tmp_path: Path) -> None:
    command("convert", "-m", "4", "-f", "raw", "-O", "raw", disk, url("w/out.raw"))
    assert s3.get("w/out.raw") == disk.read_bytes()
    assert "-" in s3.client.head_object(Bucket=BUCKET, Key="w/out.raw")["ETag"], "it came in parts"
    small = tmp_path / "small.raw"
    small.write_bytes(b"abc" * 1000)
    command("convert", "-f", "raw", "-O", "raw", small, url("w/out.raw"))  # in its place
    assert s3.get("w/out.raw")[:3000] == small.read_bytes()
    empty = tmp_path / "empty.raw"
    empty.touch()
    command("convert", "-f", "raw", "-O", "raw", empty, url("w/empty.raw"))
    assert s3.get("w/empty.raw") == b""


@pytest.mark.parametrize(
    ("format", "options"),
    [("qcow2", "cluster_size=64k"), ("vmdk", "subformat=streamOptimized"), ("vpc", "subformat=fixed,force_size=on")],
)
def test_every_format_that_is_written_forward(s3: S3, disk: Path, tmp_path: Path, format: str, options: str) -> None:
    command("convert", "-m", "4", "-f", "raw", "-O", format, "-o", options, disk, url(f"w/out.{format}"))
    (tmp_path / "out").write_bytes(s3.get(f"w/out.{format}"))
    qemu_img("compare", "-f", "raw", "-F", format, disk, tmp_path / "out")
    command("convert", "-O", "raw", "-f", format, url(f"w/out.{format}"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("format", ["vdi", "vhdx", "parallels", "qed"])
def test_other_formats_go_by_way_of_a_spool(s3: S3, disk: Path, tmp_path: Path, format: str) -> None:
    words = ("convert", "-f", "raw", "-O", format, disk, url(f"w/out.{format}"))
    assert "--spool" in refused(*words)
    command(*words, f"--spool={tmp_path}")
    (tmp_path / "out").write_bytes(s3.get(f"w/out.{format}"))
    qemu_img("compare", "-f", "raw", "-F", format, disk, tmp_path / "out")


def test_the_service_copies_within_a_bucket(s3: S3, disk: Path) -> None:
    """Only where the whole object becomes the same; what is asked for is all the same otherwise, too."""
    s3.client.upload_file(str(disk), BUCKET, "copy/a.raw")
    command("convert", "-C", "-f", "raw", "-O", "raw", url("copy/a.raw"), url("copy/b.raw"))
    assert s3.get("copy/b.raw") == disk.read_bytes()
    command("convert", "-C", "-f", "raw", "-O", "raw", url("copy/a.raw"), url("copy/a.raw"), url("copy/twice.raw"))
    assert s3.get("copy/twice.raw") == disk.read_bytes() * 2


def test_an_object_that_changes_is_an_error(s3: S3, disk: Path, tmp_path: Path) -> None:
    s3.put("changing.raw", disk)
    with diskmill.open(url("changing.raw"), "raw") as image:
        assert image.read(0, MiB) == disk.read_bytes()[:MiB]
        s3.client.put_object(Bucket=BUCKET, Key="changing.raw", Body=bytes(40 * MiB))
        with pytest.raises(DiskmillError, match="it changed on the server"):
            image.read(20 * MiB, MiB)


def refused(*words: str | Path, **env: str) -> str:
    """The one line with which the command *words* fails."""
    done = command(*words, check=False, env=env or None, timeout=60)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert SECRET not in done.stderr
    return done.stderr


def test_credentials(folder: Path, tmp_path: Path, s3: S3) -> None:
    """The environment's, a profile's, a secret's; none is shown."""
    place = url("images/img.qcow2")
    assert "denies access" in refused("info", place, AWS_SECRET_ACCESS_KEY="wrong")
    profile = tmp_path / "credentials"
    profile.write_text(f"[here]\naws_access_key_id = AKIDTEST\naws_secret_access_key = {SECRET}\n")
    without = {**s3.env, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    told = command("info", place, env={**without, "AWS_PROFILE": "here", "AWS_SHARED_CREDENTIALS_FILE": str(profile)})
    assert "file format: qcow2" in told.stdout
    assert "no profile 'other'" in refused("info", place, **{**without, "AWS_PROFILE": "other"})
    words = f"driver=qcow2,file.driver=s3,file.filename={place},file.access-key-id=AKIDTEST,file.key-secret=k"
    for output in ("human", "json"):
        shown = command(
            "info", f"--output={output}", "--object", f"secret,id=k,data={SECRET}", "--image-opts", words, env=without
        ).stdout
        assert SECRET not in shown
        assert place in shown


def test_what_an_image_may_name(folder: Path, tmp_path: Path, s3: S3) -> None:
    """As with any URL: nothing, unless it lies in a folder that is trusted."""
    base = tmp_path / "base.raw"
    base.write_bytes(random.Random(1).randbytes(MiB))
    s3.put("trusted/base.raw", base)
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", url("trusted/base.raw"), "-F", "raw", top, "1M")
    assert "protocol 's3' is not trusted" in refused("compare", top, base)
    assert "outside the trusted" in refused("compare", f"--trust={url('trust')}", f"--trust={tmp_path}", top, base)
    command("compare", f"--trust={url('trusted/')}", f"--trust={tmp_path}", top, base)
    sly = tmp_path / "sly.qcow2"
    reference = f'json:{{"driver":"s3","filename":"{url("trusted/base.raw")}","endpoint":"http://127.0.0.1:1"}}'
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", reference, "-F", "raw", sly, "1M")
    assert "outside the trusted" in refused("compare", f"--trust={url('trusted')}", sly, base)


def test_what_cannot_be(tmp_path: Path, disk: Path) -> None:
    assert "No such file" in refused("info", url("images/gone.raw"))
    assert "no such bucket" in refused("info", "s3://nowhere/x.raw")
    assert "no possible bucket" in refused("info", "s3://a@b:secret/x")
    assert "cannot be changed" in refused("resize", "-f", "raw", url("images/long.raw"), "+1M")
    assert "possible key" in refused("info", f"s3://{BUCKET}/")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", KILLED)
def test_an_upload_that_is_killed_at_any_byte_has_no_name(format: str, s3: S3, disk: Path, tmp_path: Path) -> None:
    """With no time to tidy up. What bears the name is old, or whole."""
    words = ["convert", "-f", "raw", "-O", format, *FORMATS[format], disk, url("killed")]

    def begin(port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("diskmill"), *words],
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"},
        )

    there = int(s3.endpoint.rpartition(":")[2])
    status, total = killed_at(there, sys.maxsize, begin)
    assert status == 0
    assert total > 30 * MiB
    unnamed = 0
    for number, sent in enumerate(moments(total, KILLS)):
        if number % 2:
            s3.client.put_object(Bucket=BUCKET, Key="killed", Body=b"old")
        else:
            s3.client.delete_object(Bucket=BUCKET, Key="killed")
        assert killed_at(there, sent, begin)[0] in (-signal.SIGKILL, 0)  # 0: it sent less than the first
        if (s3.get("killed") == b"old") if number % 2 else ("killed" not in s3.objects()):
            unnamed += 1
        else:
            (tmp_path / "killed").write_bytes(s3.get("killed"))
            qemu_img("compare", "-f", "raw", "-F", format, disk, tmp_path / "killed")
    assert unnamed >= KILLS - 1


def test_a_failed_output_is_forgotten(s3: S3, disk: Path, tmp_path: Path) -> None:
    """So is what was sent of it: it costs nothing, unseen. What bore the name before stays."""
    image = tmp_path / "damaged.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", disk, image)
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size - 10 * MiB)
    s3.client.put_object(Bucket=BUCKET, Key="failed-old.raw", Body=b"old")
    for key in ("failed.raw", "failed-old.raw"):
        assert "damaged.qcow2" in refused("convert", "-O", "raw", image, url(key))
        assert key not in s3.uploads()
    assert "failed.raw" not in s3.objects()
    assert s3.get("failed-old.raw") == b"old"


def test_an_object_that_is_to_stay(s3: S3, disk: Path) -> None:
    """Whether it was there, or came meanwhile."""
    words = ("-f", "raw", "-O", "raw", disk, url("stays.raw"))
    s3.client.put_object(Bucket=BUCKET, Key="stays.raw", Body=b"mine")
    assert "File exists" in refused("convert", "--no-clobber", *words)
    assert "cannot be changed" in refused("convert", "-n", *words)
    assert s3.get("stays.raw") == b"mine"
    s3.client.delete_object(Bucket=BUCKET, Key="stays.raw")

    def somebody_else(done: int, total: int) -> None:
        s3.client.put_object(Bucket=BUCKET, Key="stays.raw", Body=b"theirs")

    with pytest.raises(DiskmillError, match="File exists"):
        diskmill.convert(
            [str(disk)], url("stays.raw"), format="raw", progress=somebody_else, context=Context(overwrite="refuse")
        )
    assert s3.get("stays.raw") == b"theirs"
    assert "stays.raw" not in s3.uploads()


def test_a_copy_of_the_services_never_costs_an_older_object(
    s3: S3, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source changes at the worst moment: while the service copies it."""
    s3.put("moving/a.raw", disk)
    copied = upload.obstore.copy_async

    def changing(*words: Any) -> Any:
        s3.client.put_object(Bucket=BUCKET, Key="moving/a.raw", Body=bytes(MiB))
        return copied(*words)

    monkeypatch.setattr(upload.obstore, "copy_async", changing)
    settings: dict[str, Any] = {"format": "raw", "offload": True}
    with pytest.raises(DiskmillError, match="it changed on the server"):
        diskmill.convert([url("moving/a.raw")], url("moving/new.raw"), **settings)
    assert "moving/new.raw" not in s3.objects()
    s3.put("moving/a.raw", disk)
    s3.client.put_object(Bucket=BUCKET, Key="moving/old.raw", Body=b"old")
    diskmill.convert([url("moving/a.raw")], url("moving/old.raw"), **settings)
    assert s3.get("moving/old.raw") == disk.read_bytes()


@pytest.mark.parametrize("looks", ["loses bytes", "denies a look", "is replaced"])
def test_what_a_service_has_in_the_end(looks: str, tmp_path: Path) -> None:
    """What is too short has no name; who may write need not be allowed to look; what others put there is theirs."""
    asked: list[str] = []

    class Service(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200)

        def do_HEAD(self) -> None:
            self.answer(403 if looks == "denies a look" else 200)

        def do_POST(self) -> None:
            asked.append(self.path)
            self.do_PUT()

        def answer(self, status: int) -> None:
            asked.append(self.command)
            self.send_response(status)
            self.send_header("ETag", '"theirs"' if looks == "is replaced" and self.command == "HEAD" else '"ours"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("Content-Length", "100" if self.command == "HEAD" else "0")
            self.end_headers()

        def log_message(self, format: str, *words: object) -> None:
            pass

    source = tmp_path / "source.raw"
    source.write_bytes(b"x" * 4096)
    with ThreadingHTTPServer(("127.0.0.1", free_port()), Service) as service:
        threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True).start()
        options = {"endpoint": f"http://127.0.0.1:{service.server_address[1]}"}
        call = partial(diskmill.convert, [str(source)], url("lost.raw"), format="raw", options=options)
        if looks == "loses bytes":
            with pytest.raises(DiskmillError, match="4096 bytes were sent, but the service has 100"):
                call()
        else:
            call()
        service.shutdown()
    assert asked == ["PUT", "HEAD", *[f"/{BUCKET}?delete", "POST"] * (looks == "loses bytes")]


def test_parts_suffice(s3: S3, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload has at most 10,000 parts (here: 4), whatever the disk's size, and whether or not it is known."""

    def parts(key: str) -> int:
        return int(s3.client.head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"').rpartition("-")[2])

    for size in (1, 80 << 30, 1 << 40, 5 << 40, 40 << 40):
        assert upload.part_size(size) * upload.MOST_PARTS > size * 1.02
        assert 5 * MiB <= upload.part_size(size) <= 5 << 30, "what S3 takes"
    packed = tmp_path / "disk.raw.gz"
    packed.write_bytes(gzip.compress(disk.read_bytes(), 1))
    monkeypatch.setattr(upload, "UNTOLD", 32 * MiB)
    for source, most, expected in ((disk, 10_000, 5), (disk, 4, 2), (packed, 10_000, 2)):
        monkeypatch.setattr(upload, "MOST_PARTS", most)
        diskmill.convert([str(source)], url("parts.raw"), format="raw" if source == disk else None)
        assert s3.get("parts.raw") == disk.read_bytes()
        assert parts("parts.raw") == expected
    monkeypatch.setattr(upload, "MOST_PARTS", 1)
    with pytest.raises(DiskmillError, match="part-size"):
        diskmill.convert([str(packed)], url("endless.raw"))
    monkeypatch.setattr(upload, "_Upload", None)  # what is known to be too long is refused before one begins
    with pytest.raises(DiskmillError, match="part-size"):
        diskmill.convert([str(disk)], url("endless.raw"), format="raw", options={"part-size": "8M"})
    assert "endless.raw" not in s3.objects()
    assert "endless.raw" not in s3.uploads()


def test_a_fleet_out_of_a_bucket(folder: Path, tmp_path: Path) -> None:
    """Of a folder what is an image, of a pattern what is so called; extents and data files are parts of others."""
    files = {url(f"images/{path.name}") for path in folder.iterdir() if path.is_file()}
    assert set(diskmill.listing(url("images/"))) == files
    assert set(diskmill.listing(url("images"))) == files
    assert not list(diskmill.listing(url("image")))
    jobs, journal = tmp_path / "jobs", tmp_path / "journal"
    command("batch", "plan", url("images/*.qcow2"), "--to", f"{tmp_path}/{{relative}}", "-O", "raw", "-m", jobs)
    assert command("batch", "run", jobs, "--journal", journal, check=False).returncode == 1, "some are damaged"
    for name in IMAGES:
        if name.endswith(".qcow2"):
            qemu_img("compare", "-F", "raw", name, tmp_path / name.removesuffix(".qcow2"), cwd=folder)
    with pytest.raises(DiskmillError, match="cannot tell what is in a folder"):
        list(diskmill.listing("ssh://localhost/tmp/"))
