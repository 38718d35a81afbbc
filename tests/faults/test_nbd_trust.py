"""What an image may reach over NBD: nothing, unless its user trusts the server, or a part of what it exports."""

from __future__ import annotations

import json
import random
from pathlib import Path

from nbd_servers import qemu_nbd, uri
from tools import diskmill, qemu_img

MiB = 1 << 20


def on_top(path: Path, backing: str) -> Path:
    """An image whose backing file is *backing*, whatever that is."""
    path.unlink(missing_ok=True)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", path, str(MiB))
    return path


def as_json(sock: Path, **options: str) -> str:
    return "json:" + json.dumps(
        {"driver": "raw", "file": {"driver": "nbd", "server": {"type": "unix", "path": str(sock)}, **options}}
    )


def test_a_server_is_reached_when_it_is_trusted(tmp_path: Path) -> None:
    base, top, sock, out = (tmp_path / name for name in ("base.raw", "top.qcow2", "sock", "out.raw"))
    base.write_bytes(random.Random(1).randbytes(MiB))
    with qemu_nbd(sock, "-r", "-f", "raw", "-x", "vm/base", base):
        for backing in (uri(sock, "vm/base"), f"nbd:unix:{sock}:exportname=vm/base", as_json(sock, export="vm/base")):
            on_top(top, backing)
            refused = diskmill("convert", "-O", "raw", top, out, check=False)
            assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
            assert "not trusted" in refused.stderr
            for trusted in (uri(sock), uri(sock, "vm"), uri(sock, "vm/base")):
                diskmill("convert", "--trust", trusted, "-O", "raw", top, out)
                assert out.read_bytes() == base.read_bytes()
                out.unlink()


def test_what_is_not_trusted_is_not_reached(tmp_path: Path) -> None:
    """No server is there: whatever were to be reached would end in another error."""
    top, sock, other = (tmp_path / name for name in ("top.qcow2", "sock", "other"))
    secure = uri(sock, "vm/base", scheme="nbds+unix")
    cases = (
        (uri(other, "vm/base"), uri(sock), "outside"),
        (uri(sock, "vm2/base"), uri(sock, "vm"), "outside"),
        (uri(sock, "vm/../x"), uri(sock, "vm"), "outside"),
        (uri(sock, "base"), uri(sock, "vm"), "outside"),
        ("nbd://localhost/vm/base", uri(sock, "vm"), "outside"),
        (uri(sock, "vm/base"), str(tmp_path), "not trusted"),
        (uri(sock, "vm/base"), uri(sock, "vm", scheme="nbds+unix"), "outside"),  # not without TLS
        (f"{secure}&tls-certificates=/etc/pki", uri(sock), "keys"),
        (f"{secure}&tls-psk-file=/etc/keys.psk", uri(sock), "keys"),
        (f"{secure}&tls-hostname=elsewhere", uri(sock), "certificate"),
        (as_json(sock, export="vm/base", **{"tls-creds": "t"}), uri(sock), "tls-creds"),
        (as_json(sock, export="vm/base", **{"reconnect-delay": "999999"}), uri(sock), "reconnect-delay"),
    )
    for backing, trusted, word in cases:
        refused = diskmill("map", "--trust", trusted, on_top(top, backing), check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), backing
        assert word in refused.stderr and "which was not opened" in refused.stderr, (backing, refused.stderr)
