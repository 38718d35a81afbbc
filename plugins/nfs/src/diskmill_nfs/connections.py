"""Connections to one export: contexts of libnfs, each with the file open, one for every thread that asks at once.

A context must not be used by two threads, so there are several; that a file opened by name in each is one and the same
is seen by its number on the server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
from ctypes import byref, c_void_p
from typing import Any

from diskmill.errors import StorageError
from diskmill.kit.pool import Pool

from .c_libnfs import Stat, library
from .place import Server

AT_ONCE = 4
"""Connections at most."""
_MAX_READAHEAD = 1 << 20
_MAX_PAGES = 2048
_MAX_DEBUG = 2


class Connection:
    """One context of libnfs with *folder* mounted."""

    def __init__(self, server: Server, folder: str, *, timeout: int, caching: bool) -> None:
        self._library = library()
        self._context: int | None = self._library.nfs_init_context()
        if self._context is None:
            raise StorageError("libnfs made no context", errno=errno.ENOMEM)
        self.handle: int | None = None
        self.busy = threading.Lock()
        """Held during each call: nobody closes what is used."""
        try:
            self._set("dircache", 0)  # another client may change the folder
            self._set("timeout", timeout * 1000)
            self._set("autoreconnect", 0)  # a write that may have been lost is an error
            for name, value in (("uid", server.user), ("gid", server.group), ("tcp_syncnt", server.syn_count)):
                if value is not None:
                    self._set(name, value)
            if server.debug:
                self._set("debug", min(server.debug, _MAX_DEBUG))
            if caching and server.readahead:
                self._set("readahead", min(server.readahead, _MAX_READAHEAD))
            if caching and server.pages:
                self._set("pagecache", min(server.pages, _MAX_PAGES))
            self.call("mount", os.fsencode(server.host), os.fsencode(folder))
        except BaseException:
            self.close()
            raise

    def _set(self, name: str, value: int) -> None:
        getattr(self._library, f"nfs_set_{name}")(self._context, value)

    def call(self, name: str, *arguments: Any) -> int:
        """What ``nfs_NAME`` gives.

        :raises StorageError: an error, in the words of libnfs where the number has none.
        """
        with self.busy:
            if self._context is None:
                raise StorageError("the connection was closed", errno=errno.ECANCELED)
            answer = int(getattr(self._library, f"nfs_{name}")(self._context, *arguments))
            if answer >= 0:
                return answer
            told = self._library.nfs_get_error(self._context) or b""
        number = -answer
        text = " ".join(told.decode("utf-8", "replace").split()).removeprefix("mount_cb: ")
        # An error of a file is told by its number; of a connection or a mount, only the library's words tell more.
        plain = number in (
            errno.ENOENT,
            errno.EEXIST,
            errno.EACCES,
            errno.ENOSPC,
            errno.EROFS,
            errno.EISDIR,
            errno.EFBIG,
        )
        if name != "mount" and (plain or not text or "failed with NFS" in text):
            text = os.strerror(number)
        raise StorageError(text or os.strerror(number), errno=number)

    def open(self, name: str, flags: int, mode: int = 0) -> None:
        """Open the file *name* of the folder; ``handle`` is it."""
        handle = c_void_p()
        self.call("open2", os.fsencode(f"/{name}"), flags, mode, byref(handle))
        self.handle = handle.value

    def look(self, name: str) -> Stat | None:
        """What *name* in the folder is, itself and not what it may link to; None: there is nothing."""
        found = Stat()
        try:
            self.call("lstat64", os.fsencode(f"/{name}"), byref(found))
        except StorageError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return found

    def attributes(self) -> Stat:
        """What the open file is."""
        found = Stat()
        self.call("fstat64", self.handle, byref(found))
        return found

    def interrupt(self) -> None:
        """Let a call that waits end with an error."""
        if (context := self._context) is not None:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._library.nfs_get_fd(context))) as end:
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        with self.busy:
            context, self._context = self._context, None
            if context is None:
                return
            if self.handle is not None:
                self._library.nfs_close(context, self.handle)
            self._library.nfs_destroy_context(context)


class Connections(Pool[Connection]):
    """The file *name* of *folder*, open once a connection, from *first* on, which has it open."""

    def __init__(self, server: Server, folder: str, name: str, first: Connection, *, flags: int, timeout: int) -> None:
        super().__init__(first, AT_ONCE)
        self.name = name
        self._server = server
        self._folder = folder
        self._flags = flags
        self._timeout = timeout
        found = first.attributes()
        self._file = found.dev, found.ino

    def another(self) -> Connection:
        name = self.name
        caching = self._flags == os.O_RDONLY
        connection = Connection(self._server, self._folder, timeout=self._timeout, caching=caching)
        try:
            connection.open(name, self._flags)
            found = connection.attributes()
            if (found.dev, found.ino) != self._file:
                raise StorageError("another file took its name meanwhile", errno=errno.ESTALE)
        except BaseException:
            connection.close()
            raise
        return connection


def expect_file(attributes: Stat) -> None:
    """:raises StorageError: they are not those of a regular file."""
    if not stat.S_ISREG(attributes.mode):
        folder = stat.S_ISDIR(attributes.mode)
        raise StorageError("it is a folder" if folder else "it is not a regular file")
