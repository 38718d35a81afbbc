"""NBD servers for tests: nbdkit, qemu-nbd and our own, each on a Unix socket, ended with the test; certificates."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tools import tool

Argument = str | Path


@contextmanager
def running(path: Path, *command: Argument) -> Iterator[subprocess.Popen[bytes]]:
    """A server that runs as *command*, once it listens at *path*."""
    path.unlink(missing_ok=True)
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not _listens(path):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                assert process.stderr is not None
                pytest.fail(f"{command[0]} did not start: {process.stderr.read().decode()}")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _listens(path: Path) -> bool:
    """Whether somebody accepts connections at the socket: it is there a moment earlier."""
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(row[-1] == str(path) and int(row[3], 16) & 0x10000 for row in rows if len(row) == 8 and row[0] != "Num")


def nbdkit(path: Path, *words: Argument):
    """nbdkit at the socket *path*."""
    return running(path, tool("nbdkit"), "-f", "-U", path, *words)


def qemu_nbd(path: Path, *words: Argument):
    """qemu-nbd at the socket *path*."""
    return running(path, tool("qemu-nbd"), "-t", "-e", "8", "-k", path, *words)


def serve(path: Path, *words: Argument):
    """Our own at the socket *path*."""
    return running(path, Path(sys.executable).with_name("diskmill"), "serve", "-t", "-k", path, *words)


def uri(path: Path, export: str = "", *, scheme: str = "nbd+unix") -> str:
    """The export's name."""
    return f"{scheme}:///{export}?socket={path}"


def make_certificates(folder: Path, *, host: str = "localhost") -> Path:
    """A folder in the layout of QEMU's tls-creds-x509, for both sides; the client is CN=tester."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def write(file: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        (folder / f"{file}-cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{file}-key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )

    authority = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    root = (
        builder("authority", authority)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(usage, critical=True)
        .sign(authority, hashes.SHA256())
    )
    write("ca", root, authority)
    for side in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = builder(host if side == "server" else "tester", key).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False
        )
        write(side, certificate.sign(authority, hashes.SHA256()), key)
    return folder
