"""Images on real web and FTP servers: read as the same ones are from files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import diskmill
import pytest
from commands import images
from diskmill.opening.registry import default_registry
from diskmill.sizes import MiB
from http_servers import Web, certificates, ftp_server, nginx, running_proxy
from served import IMAGES, like_the_file
from tools import diskmill as command
from tools import qemu_img

KILLS = int(os.environ.get("DISKMILL_KILLS", "4"))
SECRET = ("--object", "secret,id=p,data=s3cret")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers are on this machine, whatever its own way to the network is."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    images.build(path)
    return path


@pytest.fixture(scope="module")
def web(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with nginx(folder, tmp_path_factory.mktemp("nginx") / "state") as server:
        yield server


@pytest.fixture(scope="module")
def ftp(folder: Path) -> Iterator[str]:
    with ftp_server(folder) as url:
        yield url


def options(url: str, **more: str) -> str:
    """An option string for the raw bytes at *url*."""
    words = {"driver": url.partition(":")[0], "url": url, **more}
    return ",".join(["driver=raw", *(f"file.{key}={value.replace(',', ',,')}" for key, value in words.items())])


def refused(*words: str | Path, **more: str) -> str:
    """The one line with which the command *words* fails."""
    done = command(*words, check=False, env=more or None, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "s3cret" not in done.stderr
    return done.stderr


def test_no_format_is_left_out() -> None:
    formats = {driver.name for driver in default_registry().all("diskmill.format")}
    assert formats == {Path(name).suffix[1:] for name in IMAGES}


@pytest.mark.parametrize("name", IMAGES)
def test_every_format_reads_as_from_a_file(name: str, folder: Path, web: Web, tmp_path: Path) -> None:
    """A backing image, an extent and a data file that lie beside it come from the same server."""
    like_the_file(name, folder, web.url, tmp_path)


def test_files_beside_an_image_are_told_by_their_urls(folder: Path, web: Web) -> None:
    diskmill.create(str(folder / "flat.vmdk"), MiB, format="vmdk", options={"subformat": "monolithicFlat"})
    told = [child.filename for child in diskmill.info(f"{web.url}/flat.vmdk").children]
    assert told == [f"{web.url}/flat.vmdk", f"{web.url}/flat-flat.vmdk"]


@pytest.mark.parametrize("name", ["img.qcow2", "top.qcow2", "pieces.vmdk", "odd.raw"])
def test_ftp(name: str, folder: Path, ftp: str, tmp_path: Path) -> None:
    like_the_file(name, folder, ftp, tmp_path)


def test_ftps(folder: Path, tmp_path: Path) -> None:
    certificates(tmp_path)
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "server.key").read_text() + (tmp_path / "server.pem").read_text())
    with ftp_server(folder, both) as url:
        assert "certificate is not accepted" in refused("info", f"{url}/long.raw")
        text = options(f"{url}/long.raw", cafile=str(tmp_path / "authority.pem"), username="ann")
        text += ",file.password-secret=p"
        command("convert", *SECRET, "--image-opts", "-O", "raw", text, tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes() == (folder / "long.raw").read_bytes()


def test_a_file_that_changes_on_an_ftp_server(ftp: str, folder: Path) -> None:
    changing = folder / "changing.raw"
    changing.write_bytes(bytes(64 << 20))
    with diskmill.open(f"{ftp}/changing.raw", "raw") as image:
        assert image.read(0, 1 << 20) == bytes(1 << 20)
        changing.write_bytes(b"x" * (64 << 20))
        os.utime(changing, (1_000_000_000, 1_000_000_000))
        with pytest.raises(diskmill.DiskmillError, match="it changed on the server"):
            image.read(60 << 20, 1 << 20)  # past what was read ahead


def test_ftp_logs_in(folder: Path, ftp: str, tmp_path: Path) -> None:
    wrong = refused("info", "--object", "secret,id=p,data=wrong", "--image-opts",
                    options(f"{ftp}/long.raw", username="ann") + ",file.password-secret=p")  # fmt: skip
    assert "530" in wrong
    assert "550" in refused("info", f"{ftp}/gone.raw")


def test_secrets(web: Web, folder: Path) -> None:
    """Each way to be let in; and none of what lets one in is shown, by any command."""
    url = f"{web.url}/auth/img.qcow2"
    assert "401" in refused("info", url)
    inside = url.replace("://", "://ann:s3cret@") + "?token=s3cret"
    ways = (
        ("info", inside),
        ("info", "--output=json", inside),
        ("map", inside),
        ("check", inside),
        ("compare", inside, folder / "img.raw"),
        ("measure", "-O", "raw", inside),
        ("-T", "*", "info", inside),
        ("info", *SECRET, "--image-opts", options(url, username="ann") + ",file.password-secret=p"),
        ("info", *SECRET, "--image-opts", options(f"{web.url}/cookie/img.qcow2", cookie="pass=s3cret")),
        ("info", "--image-opts", options(f"{web.url}/token/img.qcow2", header="X-Token: s3cret")),
        ("info", "--object", "secret,id=h,data=X-Token: s3cret", "--image-opts",
         options(f"{web.url}/token/img.qcow2") + ",file.header-secret=h"),
        ("info", "--object", "secret,id=c,data=pass=s3cret", "--image-opts",
         options(f"{web.url}/cookie/img.qcow2") + ",file.cookie-secret=c"),
    )  # fmt: skip
    for words in ways:
        done = command(*words)
        assert "s3cret" not in done.stdout + done.stderr, words
    for words in (
        ("info", "-f", "vmdk", inside),
        ("info", inside.replace("img", "gone")),
        ("resize", inside, "10M"),
        ("convert", "-O", "raw", inside, "/nowhere/x"),
        ("info", inside.replace("ann:", "eve:")),
        ("convert", "-O", "raw", str(folder / "img.raw"), inside),
        ("resize", "-U", inside, "10M"),
        (
            "info",
            "-f",
            "qcow2",
            f'json:{{"driver":"raw","file":{{"driver":"http","url":"{inside}","cookie":"s3cret"}}}}',
        ),
    ):
        refused(*words)


def test_netrc_is_asked_only_if_the_user_asks(web: Web, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    url, home = f"{web.url}/auth/img.qcow2", {"HOME": str(tmp_path)}
    assert "401" in refused("info", url, **home)
    command("info", "--image-opts", options(url, netrc="on"), env=home)


def test_a_written_backing_name_has_no_credentials(web: Web, tmp_path: Path) -> None:
    for query in ("", "?token=s3cret"):
        url = f"{web.url}/img.qcow2".replace("://", "://ann:s3cret@") + query
        for words in (
            ("create", "-f", "qcow2", "-b", url, "-F", "qcow2", "over.qcow2"),
            ("create", "-u", "-f", "qcow2", "-b", url, "-F", "qcow2", "over.qcow2", "4M"),
            ("create", "-f", "qcow2", "-o", f"backing_file={url},backing_fmt=qcow2", "over.qcow2"),
            ("convert", "-O", "qcow2", "-B", url, "-F", "qcow2", url, "over.qcow2"),
        ):
            (tmp_path / "over.qcow2").unlink(missing_ok=True)
            done = command(*words, cwd=tmp_path, check=False)
            assert "s3cret" not in done.stdout + done.stderr
            assert done.returncode == (1 if query else 0), done.stderr
            if query:
                assert "would be written into the image" in done.stderr
                assert not (tmp_path / "over.qcow2").exists()
            else:
                assert b"s3cret" not in (tmp_path / "over.qcow2").read_bytes()
                assert f"{web.url}/img.qcow2".encode() in (tmp_path / "over.qcow2").read_bytes()
    inside = f"{web.url}/img.qcow2".replace("://", "://ann:s3cret@")
    for more in (("-u",), ()):
        qemu_img("create", "-q", "-f", "qcow2", tmp_path / "over.qcow2", "4M")
        command("rebase", *more, "-b", inside, "-F", "qcow2", tmp_path / "over.qcow2")
        assert b"s3cret" not in (tmp_path / "over.qcow2").read_bytes()


def test_tls(web: Web, folder: Path) -> None:
    url = f"{web.tls}/top.qcow2"
    assert "certificate is not accepted" in refused("info", url)
    for more in ({"cafile": str(web.authority)}, {"sslverify": "off"}):
        words = options(url, **more).replace("driver=raw", "driver=qcow2", 1)
        command("compare", "--image-opts", words, f"driver=qcow2,file.filename={folder / 'top.qcow2'}")
    assert "authority" in refused("info", "--image-opts", options(url, cafile="/no/authority"))
    command("info", url, env={"SSL_CERT_FILE": str(web.authority)})


def test_redirections(web: Web, folder: Path, tmp_path: Path) -> None:
    command("compare", "-f", "raw", f"{web.url}/moved/long.raw", folder / "long.raw")
    env = {"SSL_CERT_FILE": str(web.authority)}
    command("compare", "-f", "raw", f"{web.url}/up/long.raw", folder / "long.raw", env=env)
    assert "without TLS" in refused("info", f"{web.tls}/down/long.raw", SSL_CERT_FILE=str(web.authority))
    assert "more than 10 times" in refused("info", f"{web.url}/loop/long.raw")
    assert "redirects to" in refused("info", f"{web.url}/file/long.raw")


def test_credentials_stay_with_their_host(web: Web, folder: Path) -> None:
    before = len(web.requests())
    words = options(f"{web.url}/away/long.raw", cookie="a=s3cret", header="X-Token: s3cret", username="ann")
    words += ",file.password-secret=p"
    command("info", *SECRET, "--image-opts", words)
    lines = web.requests()[before:].splitlines()
    assert all("s3cret" in line and "Basic" in line for line in lines if "/away/" in line)
    others = [line for line in lines if "/away/" not in line]
    assert others
    assert not any("s3cret" in line or "Basic" in line for line in others)


@pytest.mark.parametrize("way", ["moved", "away", "up"])
def test_a_reference_is_not_led_out_of_what_was_judged(way: str, web: Web, folder: Path, tmp_path: Path) -> None:
    """A user's own URL may redirect; what an image on a server names may not lead out of its folder there."""
    served = folder / "served"
    served.mkdir(exist_ok=True)
    image = served / "over.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", f"{web.url}/{way}/img.qcow2", "-F", "qcow2", image, "4M")
    trusted = f"--trust={web.url}/{way}"
    words = ("convert", "-O", "raw", f"{web.url}/served/over.qcow2", tmp_path / "out.raw")
    assert "outside the trusted folders" in refused(*words)
    assert "outside of the folder that an image may name" in refused(words[0], trusted, *words[1:])
    command(words[0], "--trust=anything", *words[1:], env={"SSL_CERT_FILE": str(web.authority)})
    for odd in ("..%2fimg.qcow2", "x/%2e%2e%2f..%2fimg.qcow2", "..%252fimg.qcow2", "..;/img.qcow2"):
        qemu_img("rebase", "-u", "-b", odd, "-F", "qcow2", image)
        assert "in several ways" in refused(*words)
    qemu_img("rebase", "-u", "-b", "../img.qcow2", "-F", "qcow2", image)
    assert "outside the trusted folders" in refused(*words)


@pytest.mark.parametrize("option", ['"netrc":"on"', '"cafile":"/dev/zero"', '"password-secret":"p"', '"retries":1000'])
def test_an_image_sets_no_options(option: str, web: Web, folder: Path, tmp_path: Path) -> None:
    """Not even for what it may name: they would send what is the user's, or open files."""
    driver = "https" if "cafile" in option else "http"
    base = web.tls if driver == "https" else web.url
    name = f'json:{{"driver":"qcow2","file":{{"driver":"{driver}","url":"{base}/img.qcow2",{option}}}}}'
    image = folder / "told.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", image, "4M")
    with pytest.raises(diskmill.DiskmillError, match="an image may not set the option"):
        diskmill.open(str(image), trust=diskmill.Trust([base])).close()


def test_a_server_without_ranges(web: Web, folder: Path, tmp_path: Path) -> None:
    """It is read in one pass, by formats that can be; the others say what to do."""
    command("convert", "-O", "raw", f"{web.url}/none/stream.vmdk", tmp_path / "out.raw")
    command("compare", "-f", "raw", tmp_path / "out.raw", folder / "img.raw")
    text = refused("info", f"{web.url}/none/img.vdi")
    assert "cannot be read from a server without ranges: let a temporary copy be made (--spool)" in text
    command("convert", "--spool", "-O", "raw", f"{web.url}/none/img.vdi", tmp_path / "spooled.raw")
    command("compare", "-f", "raw", tmp_path / "spooled.raw", folder / "img.raw")
    command("convert", "-f", "raw", "-O", "qcow2", f"{web.url}/none/img.raw", tmp_path / "out.qcow2")
    command("compare", tmp_path / "out.qcow2", folder / "img.raw")
    assert "encoded (gzip)" in refused("info", f"{web.url}/gzip/img.qcow2")


def test_a_proxy(web: Web, folder: Path, tmp_path: Path) -> None:
    with running_proxy() as (proxy, asked):
        port, secure = web.url.rpartition(":")[2], web.tls.rpartition(":")[2]
        for scheme, number in (("http", port), ("https", secure)):
            words = options(f"{scheme}://127.0.0.1:{number}/long.raw", **{"proxy-username": "bob"})
            words += ",file.proxy-password-secret=p"
            command(
                "compare", *SECRET, "--image-opts", words, f"driver=raw,file.filename={folder}/long.raw",
                env={f"{scheme}_proxy": proxy, "SSL_CERT_FILE": str(web.authority), "no_proxy": ""},
            )  # fmt: skip
        assert any(line.startswith(f"CONNECT 127.0.0.1:{secure}") for line in asked)
        assert any(line.startswith(f"GET http://127.0.0.1:{port}/long.raw") for line in asked)
        assert all("Proxy-Authorization: Basic Ym9iOnMzY3JldA==" in line for line in asked)
        asked.clear()
        command("info", f"{web.url}/long.raw", env={"http_proxy": proxy, "no_proxy": "127.0.0.1"})
        assert not asked
    assert "http:// proxies" in refused("info", f"{web.url}/long.raw", all_proxy="socks5://127.0.0.1:1", no_proxy="")


def test_wrong_names(web: Web) -> None:
    for name in (
        "http:",
        "http://",
        "http://a b/",
        f"http://{'a' * 64}/x",
        "http://h:99999/x",
        "https:/x",
        "ftp://:21/x",
        "http://h\n/x",
    ):
        assert "no URL" in refused("info", name)
    assert "takes https:// URLs" in refused("info", "--image-opts", "driver=https,url=http://127.0.0.1/x")
    assert "host is not known" in refused("info", "http://no.such.host.invalid/x")
    assert "no header" in refused("info", "--image-opts", options(f"{web.url}/x", header="s3cret"))
    assert "no secret" in refused(
        "info", "--image-opts", options(f"{web.url}/x", username="x") + ",file.password-secret=q"
    )


# -- writing ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with data, holes, and an end in a hole."""
    file = tmp_path_factory.mktemp("disk") / "disk.raw"
    with file.open("wb") as out:
        out.write(os.urandom(5 * MiB))
        out.seek(20 * MiB)
        out.write(os.urandom(MiB + 512))
        out.truncate(24 * MiB)
    return file


def put(web: Web, name: str) -> str:
    return web.url.replace("//", "//ann:s3cret@") + f"/put/{name}"


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("raw", ()),
        ("qcow2", ("-o", "cluster_size=64k")),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vpc", ("-o", "subformat=fixed,force_size=on")),
        ("vdi", ("--spool",)),
    ],
)
def test_a_server_takes_files(format: str, options: tuple[str, ...], web: Web, folder: Path, disk: Path) -> None:
    out = folder / "put" / "deep" / f"out.{format}"
    command("convert", "-f", "raw", "-O", format, *options, disk, put(web, f"deep/out.{format}"))
    qemu_img("compare", "-f", "raw", "-F", format, disk, out)
    small = folder / "small.raw"
    small.write_bytes(b"abc" * 1000)
    command("convert", "-f", "raw", "-O", format, *options, small, put(web, f"deep/out.{format}"))  # in its place
    qemu_img("compare", "-f", "raw", "-F", format, small, out)


def test_a_disk_of_unknown_size_is_sent_in_chunks(web: Web, folder: Path, disk: Path) -> None:
    with disk.open("rb") as source:
        program = Path(sys.executable).with_name("diskmill")
        words = [program, "convert", "-f", "raw", "-O", "raw", "-", put(web, "piped.raw")]
        subprocess.run(words, stdin=source, check=True)
    assert (folder / "put" / "piped.raw").read_bytes() == disk.read_bytes()


def test_what_a_server_does_not_take(web: Web, folder: Path, disk: Path, tmp_path: Path) -> None:
    words = ("convert", "-f", "raw", "-O", "raw", disk)
    plain = put(web, "x.raw").replace("ann:s3cret@", "")
    assert "the server does not take it: 401" in refused(*words, plain)
    assert "the server does not take it: 413" in refused(*words, f"{web.url}/small/x.raw")
    small = tmp_path / "small.raw"
    small.write_bytes(b"abc" * 1000)
    assert "the server does not take it: 405" in refused(*words[:-1], small, f"{web.url}/x.raw")
    assert "redirects an upload (302)" in refused(*words[:-1], small, f"{web.url}/moved/put/x.raw")
    assert "cannot be changed" in refused("resize", "-f", "raw", f"{web.url}/img.raw", "+1M")
    command(*words, put(web, "there.raw"))
    assert "File exists" in refused("convert", "--no-clobber", *words[1:], put(web, "there.raw"))
    damaged = tmp_path / "damaged.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", disk, damaged)
    with damaged.open("r+b") as file:
        file.truncate(damaged.stat().st_size - 2 * MiB)
    assert "damaged.qcow2" in refused("convert", "-O", "raw", damaged, put(web, "failed.raw"))
    assert "damaged.qcow2" in refused("convert", "-O", "raw", damaged, put(web, "there.raw"))
    assert {file.name for file in (folder / "put").glob("*.raw")} >= {"there.raw"}
    assert not (folder / "put" / "failed.raw").exists()
    assert (folder / "put" / "there.raw").read_bytes() == disk.read_bytes()


def test_a_killed_upload_has_no_name(web: Web, folder: Path, disk: Path) -> None:
    words = [Path(sys.executable).with_name("diskmill"), "convert", "-r", "8M", "-f", "raw", "-O", "raw", disk]
    for number in range(KILLS):
        process = subprocess.Popen([*words, put(web, f"killed{number}.raw")], stderr=subprocess.DEVNULL)
        time.sleep(0.15 + 0.3 * number / KILLS)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not list((folder / "put").glob("killed*"))
