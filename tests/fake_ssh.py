"""An SFTP server with one file, in place of ssh, that does wrong what it is told: `python fake_ssh.py FAULT …`.

It speaks version 3 of the protocol from its specification (draft-ietf-secsh-filexfer-02), on its own.
"""

from __future__ import annotations

import os
import struct
import sys
import time

SIZE = 8 << 20
FAULT = sys.argv[1]
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105


def send(data: bytes) -> None:
    """Write all of *data* to the client."""
    while data:
        data = data[os.write(1, data) :]


def packet(kind: int, *parts: bytes) -> bytes:
    body = bytes([kind]) + b"".join(parts)
    return struct.pack(">I", len(body)) + body


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def receive() -> bytes:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = os.read(0, count - len(data))
            if not more:
                sys.exit(0)
            data += more
        return data

    return exactly(struct.unpack(">I", exactly(4))[0])


def attributes() -> bytes:
    size = {"huge-file": (1 << 63) - 1, "negative-size": 1 << 63}.get(FAULT, SIZE)
    mode = {"folder": 0o40755, "fifo": 0o10644}.get(FAULT, 0o100644)
    return struct.pack(">IQI", 0x1 | 0x4, size, mode)


def answer(kind: int, number: bytes, body: bytes) -> bytes:
    if kind == 16:
        length = struct.unpack_from(">I", body)[0]
        path = body[4 : 4 + length]
        if FAULT == "long-path":
            path = b"/" + b"x" * 100_000
        if FAULT == "relative-path":
            path = b"x"
        return packet(
            NAME, number, struct.pack(">I", 9 if FAULT == "names" else 1), string(path), string(path), bytes(4)
        )
    if kind in (7, 8, 17):
        return packet(ATTRS, number, attributes()[:-2] if FAULT == "cut-attributes" else attributes())
    if kind == 3:
        return packet(HANDLE, number, string(b"h" * (100_000 if FAULT == "long-handle" else 4)))
    if kind == 5:
        return data(number, *struct.unpack(">QI", body[-12:]))
    return packet(STATUS, number, struct.pack(">I", 0), string(b""), string(b""))


def data(number: bytes, offset: int, length: int) -> bytes:
    if FAULT == "too-much":
        return packet(DATA, number, string(bytes(length + 1)))
    if FAULT == "nothing":
        return packet(DATA, number, string(b""))
    if FAULT == "wrong-length":
        return packet(DATA, number, struct.pack(">I", length * 2), bytes(length))
    if FAULT == "other-number":
        return packet(DATA, b"\xff\xff\xff\xff", string(bytes(length)))
    if FAULT == "twice":
        return packet(DATA, number, string(bytes(length))) * 2
    if FAULT == "end":
        return packet(STATUS, number, struct.pack(">I", 1), string(b""), string(b""))
    if FAULT == "ok-without-data":
        return packet(STATUS, number, struct.pack(">I", 0), string(b""), string(b""))
    if FAULT == "wrong-type":
        return packet(HANDLE, number, string(b"h"))
    if FAULT == "huge-packet":
        return struct.pack(">IB", 0xFFFFFFF0, DATA) + number
    if FAULT == "tiny-packet":
        return struct.pack(">I", 1) + bytes([DATA])
    if FAULT == "escapes":
        return packet(STATUS, number, struct.pack(">I", 4), string(b"\x1b[2J\nroot# " + b"x" * 5000), string(b""))
    if FAULT == "stall" and offset > SIZE // 2:
        time.sleep(1000)
    if FAULT == "trickle":
        send(struct.pack(">IB", 9 + length, DATA) + number)
        while True:
            send(b"\0")
            time.sleep(0.2)
    if FAULT == "dies" and offset > SIZE // 2:
        sys.stderr.write("Connection to host closed by remote host.\n")
        sys.exit(255)
    if FAULT == "short":
        length = max(length // 3, 1)
    return packet(DATA, number, string(bytes(length)))


def main() -> None:
    if FAULT == "says-why":
        sys.stderr.write("banner\n" * 10_000 + "ssh: \x1b[31mPermission denied (publickey).\n")
        sys.exit(255)
    if FAULT == "silent":
        sys.exit(0)
    if FAULT == "never":
        time.sleep(1000)
    if FAULT == "garbage":
        while True:
            send(os.urandom(65536))
    if FAULT == "text":
        send(b"Welcome to this machine!\n")
    receive()
    send(packet(2, struct.pack(">I", 2 if FAULT == "version-2" else 3), string(b"x"), string(b"1")))
    while True:
        request = receive()
        if request[0] == 6 and FAULT == "never-reads":
            time.sleep(1000)
        send(answer(request[0], request[1:5], request[5:]))


main()
