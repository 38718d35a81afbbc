"""``diskmill serve``: the declaration. What it does is in :mod:`diskmill_nbd.run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace
from diskmill_cli import common
from diskmill_cli.arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from diskmill_cli.session import Session

_WHERE = "Where it listens"
_EXPORT = "What it exports"
_CLIENTS = "Clients"
_PROCESS = "The process"
_AIO = ("threads", "native", "io_uring")


def run(arguments: Arguments, session: Session) -> int:
    from .run import run

    return run(arguments, session)


COMMAND = Command(
    "serve",
    "Export images to NBD clients.",
    "NAME... [-- COMMAND...]",
    (
        Option("port", ("-p", "--port"), "The TCP port; default 10809. 0: any that is free.", "PORT", panel=_WHERE),
        Option("bind", ("-b", "--bind"), "The address; default 127.0.0.1, this machine alone.", "ADDR", panel=_WHERE),
        Option("socket", ("-k", "--socket"), "A Unix socket at this path, instead.", "PATH", panel=_WHERE),
        common.FORMAT,
        common.IMAGE_OPTS,
        Option("export", ("-x", "--export-name"), "The export's name; once for each image.", "NAME", panel=_EXPORT),
        Option("description", ("-D", "--description"), "What clients are told of it.", "TEXT", panel=_EXPORT),
        Option("read_only", ("-r", "--read-only"), "Clients may only read: the default.", panel=_EXPORT),
        Option("writable", ("-w", "--writable"), "Clients may write.", panel=_EXPORT),
        Option("temporary", ("-s", "--temporary"), "Clients may write, and all of it is forgotten.", panel=_EXPORT),
        replace(common.SNAPSHOT, flags=("-l", "--load-snapshot")),
        Option("offset", ("-o", "--offset"), "Where in the disk the export begins.", "BYTES", panel=_EXPORT),
        Option("partition", ("-P", "--partition"), "Export this partition, counted from 1.", "NUM", panel=_EXPORT),
        Option(
            "discard",
            ("--discard",),
            "Whether space that clients trim is given back: unmap (on, the default) or ignore (off).",
            "MODE",
            ("ignore", "off", "unmap", "on"),
            panel=_EXPORT,
        ),
        Option(
            "detect_zeroes",
            ("--detect-zeroes",),
            "Store zeros that clients write as zeros: off, on, or unmap (and give their space back).",
            "MODE",
            ("off", "on", "unmap"),
            panel=_EXPORT,
        ),
        Option("depth", ("-A", "--allocation-depth"), "Offer the context qemu:allocation-depth.", panel=_EXPORT),
        Option("bitmap", ("-B", "--bitmap"), "Offer a dirty bitmap; repeatable.", "NAME", panel=_EXPORT),
        Option("shared", ("-e", "--shared"), "Clients at once; default 16. 1: one at a time.", "NUM", panel=_CLIENTS),
        Option("persistent", ("-t", "--persistent"), "Go on when the last client has left.", panel=_CLIENTS),
        Option(
            "limit", ("--handshake-limit",), "Seconds for a handshake; default 10. 0: no limit.", "SECS", panel=_CLIENTS
        ),
        Option("tls_creds", ("--tls-creds",), "Insist on TLS, with this object.", "ID", panel=_CLIENTS),
        Option("tls_authz", ("--tls-authz",), "Which certificates may come in: this object.", "ID", panel=_CLIENTS),
        Option("tls_hostname", ("--tls-hostname",), "With -L: whom the certificate must name.", "NAME", panel=_CLIENTS),
        Option("list", ("-L", "--list"), "List what another server exports (-k, -b, -p say which).", panel="Options"),
        Option(
            "pid_file", ("--pid-file",), "Write the process's number there, once it listens.", "PATH", panel=_PROCESS
        ),
        Option("fork", ("--fork",), "Go on in the background, once it listens.", panel=_PROCESS),
        Option(
            "exit_with",
            ("--exit-with",),
            "Run this command, as after --; its words are parted as a shell does.",
            "COMMAND",
            panel=_PROCESS,
        ),
        Option("cache", ("--cache",), common.CACHE.help, "MODE", panel="Access"),
        Option("nocache", ("-n", "--nocache"), "The same as --cache none.", panel="Access"),
        Option("aio", ("--aio",), "Without effect: clients have threads.", "MODE", _AIO, panel="Access"),
        common.QUIET,
        *common.ACCESS,
    ),
    run,
    about="A command after -- runs while it serves, with {uri} and {socket} in its words replaced; then the server "
    "ends, with the command's exit status. Without, it ends when the last client has left, unless -t is given.",
    examples=(
        Example("diskmill serve -t disk.qcow2", "export a disk for reading, on this machine"),
        Example("diskmill serve --writable -k /run/disk.sock disk.qcow2", "let clients write it, through a socket"),
        Example("diskmill serve disk.qcow2 -- nbdcopy '{uri}' out.raw", "run a program on what it exports"),
    ),
)
