"""The ``ssh`` protocol: files on other machines, over SFTP and the user's own ``ssh`` program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.place import Place
    from diskmill.contract.requests import CreateRequest, OpenRequest

    from .storage import SshStorage


class SshDriver(ProtocolDriver):
    """``ssh``, with QEMU's names and options.

    No option names a program to run, or a configuration that could: options may stand inside images. Those come from
    the environment (``DISKMILL_SSH``) and from the user's own configuration of ssh.
    """

    contract = 1
    name = "ssh"
    title = "files on other machines, over the user's ssh (SFTP)"
    prefixes = ("ssh", "sftp")
    capabilities = frozenset({"create", "write", "resize", "preallocation"})
    siblings = True
    options = (
        Option("server.host", "str", "the other machine", when=("open",)),
        Option(
            "server.port", "int", "its TCP port; default: that of the user's configuration, else 22", when=("open",)
        ),
        Option("host", "str", "QEMU's older name of server.host", when=("open",)),
        Option("port", "int", "QEMU's older name of server.port", when=("open",)),
        Option("path", "str", "the file's absolute path there", when=("open",)),
        Option("user", "str", "who logs in; default: as the user's configuration says", when=("open",)),
        Option(
            "host-key-check.mode",
            "str",
            "what the machine's key is held against; default: as the user's configuration says, and no unknown key",
            choices=("none", "hash", "known_hosts"),
            when=("open",),
        ),
        Option("host-key-check.type", "str", "the kind of hash", choices=("md5", "sha1", "sha256"), when=("open",)),
        Option(
            "host-key-check.hash", "str", "the key's hash, in hexadecimal digits or as ssh-keygen -l", when=("open",)
        ),
        Option("host_key_check", "str", "the same in one: yes, no, md5:…, sha1:… or sha256:…", when=("open",)),
        Option("timeout", "int", "seconds without an answer until it is an error", default=60, when=("open", "create")),
    )

    def place(self, options: Mapping[str, Any]) -> Place:
        from .place import place_of

        return place_of(self, options)

    @hookimpl
    def open(self, request: OpenRequest) -> SshStorage:
        """An existing file."""
        from .storage import open_file

        return open_file(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> SshStorage:
        """A new file, which gets its name when it is settled."""
        from .storage import create_file

        return create_file(self, request)


driver = SshDriver()
