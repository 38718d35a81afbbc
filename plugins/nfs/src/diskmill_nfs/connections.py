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
from collections.abc import Iterator
from ctypes import byref, c_void_p
from typing import Any

from diskmill.errors import StorageError

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


class Connections:
    """The file *name* of *folder*, open once a connection, from *first* on, which has it open."""

    def __init__(self, server: Server, folder: str, name: str, first: Connection, *, flags: int, timeout: int) -> None:
        self.name = name
        self._server = server
        self._folder = folder
        self._flags = flags
        self._timeout = timeout
        self._all = [first]
        self._free = [first]
        self._state = threading.Condition()
        self._making = 0
        self._given_up = False
        found = first.attributes()
        self._file = found.dev, found.ino

    @contextlib.contextmanager
    def one(self) -> Iterator[Connection]:
        """A connection to oneself."""
        connection = self._take()
        try:
            yield connection
        finally:
            with self._state:
                self._free.append(connection)
                self._state.notify()

    def _take(self) -> Connection:
        with self._state:
            while not self._free and len(self._all) + self._making >= AT_ONCE:
                self._state.wait()
            if self._given_up:
                raise StorageError("the connection was given up", errno=errno.ECANCELED)
            if self._free:
                return self._free.pop()
            self._making += 1
            name = self.name
        connection = None
        try:
            connection = self._another(name)
            return connection
        finally:
            with self._state:
                self._making -= 1
                if connection is not None:
                    self._all.append(connection)
                self._state.notify()

    def _another(self, name: str) -> Connection:
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

    def interrupt(self) -> None:
        """Let everyone who waits leave with an error."""
        with self._state:
            self._given_up = True
            connections = list(self._all)
            self._state.notify_all()
        for connection in connections:
            connection.interrupt()

    def close(self) -> None:
        """End all of them. Nobody asks anything any more."""
        for connection in self._all:
            connection.close()


def expect_file(attributes: Stat) -> None:
    """:raises StorageError: they are not those of a regular file."""
    if not stat.S_ISREG(attributes.mode):
        folder = stat.S_ISDIR(attributes.mode)
        raise StorageError("it is a folder" if folder else "it is not a regular file")
