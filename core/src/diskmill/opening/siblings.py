"""Files beside an image that is open: what a format of several files adds to it, and finds there of its own.

Their names must come from the image's own file name, and never out of an image: they do not pass the gate.
"""

from __future__ import annotations

import errno
import os
from typing import cast

from ..contract import calls
from ..contract.context import Context
from ..contract.drivers import ProtocolDriver
from ..contract.node import Storage
from ..contract.options import validate
from ..contract.requests import OpenRequest
from ..errors import StorageError


class Siblings:
    """The files in the folder of *file*.

    :param rehearse: what is made or changed is kept aside and forgotten.
    """

    def __init__(self, file: Storage, context: Context, *, rehearse: bool = False) -> None:
        # The folder that the file was opened in, whatever its name leads to by now.
        self._folder = file.folder or os.path.dirname(file.name)
        self._protocol = cast(ProtocolDriver, file.driver)
        self._context = context
        self._rehearse = rehearse

    def make(self, name: str, *, like: Storage) -> Storage:
        """A new, empty file, which gets its name when it is settled. It takes after *like*, and takes the place of
        *like* where that bears the name.

        :raises StorageError: another file bears the name (``errno`` is ``EEXIST``), or it cannot be made.
        :raises UnsupportedError: there can be no new files.
        """
        from .creation import new_storage

        made = new_storage(self._protocol, os.path.join(self._folder, name), {}, self._context, like=like)
        return self._aside(made)

    def open(self, name: str) -> Storage | None:
        """The file *name*, open for writing; None where there is none.

        :raises StorageError: it cannot be opened; a symbolic link cannot. LockedError: somebody uses it.
        """
        options = {"follow": False} if any(option.name == "follow" for option in self._protocol.options) else {}
        request = OpenRequest(
            name=os.path.join(self._folder, name),
            context=self._context,
            options=validate(self._protocol.options, options, when="open", driver=self._protocol.name),
            writable=not self._rehearse,
        )
        try:
            return self._aside(calls.open_storage(self._context.registry, self._protocol, request))
        except StorageError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _aside(self, storage: Storage) -> Storage:
        if not self._rehearse:
            return storage
        from ..storages.rehearsal import Rehearsal

        return Rehearsal(storage)
