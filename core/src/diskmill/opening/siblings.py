"""Files beside an image that is open: what a format of several files adds to it, and finds there of its own.

Their names must come from the image's own file name, and never out of an image: they do not pass the gate.
"""

from __future__ import annotations

import errno

from ..contract import calls
from ..contract.node import Storage
from ..contract.options import validate
from ..contract.place import Place
from ..contract.requests import OpenRequest
from ..errors import StorageError, UnsupportedError
from .context import Context


class Siblings:
    """The files in the folder of *file*.

    :param rehearse: what is made or changed is kept aside and forgotten.
    """

    def __init__(self, file: Storage, context: Context, *, rehearse: bool = False) -> None:
        # The folder that the file was opened in, whatever its name leads to by now.
        self._folder = None if file.place is None else file.place.folder()
        self._file = file
        self._context = context
        self._rehearse = rehearse

    def _place(self, name: str) -> Place:
        if self._folder is None or not self._folder.driver.siblings:
            raise UnsupportedError("there can be no other files beside it", file=self._file.name)
        return self._folder.inside(name)

    def make(self, name: str, *, like: Storage) -> Storage:
        """A new, empty file, which gets its name when it is settled. It takes after *like*, and takes the place of
        *like* where that bears the name.

        :raises StorageError: another file bears the name (``errno`` is ``EEXIST``), or it cannot be made.
        :raises UnsupportedError: there can be no new files.
        """
        from .creation import new_storage

        return self._aside(new_storage(self._place(name), {}, self._context, like=like))

    def open(self, name: str) -> Storage | None:
        """The file *name*, open for writing; None where there is none.

        :raises StorageError: it cannot be opened; a symbolic link cannot. LockedError: somebody uses it.
        """
        place = self._place(name)
        request = OpenRequest(
            name=place.display(),
            context=self._context,
            options=validate(place.driver.options, {}, when="open", driver=place.driver.name),
            writable=not self._rehearse,
            place=place,
        )
        try:
            return self._aside(calls.open_storage(self._context.registry, place.driver, request))
        except StorageError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _aside(self, storage: Storage) -> Storage:
        if not self._rehearse:
            return storage
        from ..storages.rehearsal import Rehearsal

        return Rehearsal(storage)
