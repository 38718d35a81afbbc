"""Places: what a protocol calls a location (a path, a URL, a pool and an image), as an object of its driver.

The core and the gate know no paths. They ask a place what lies beside it, what it really is, and whether it lies in a
folder that is trusted. Nothing is opened to answer, and a place shows itself without secrets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .drivers import ProtocolDriver


class Place(ABC):
    """Where bytes are, or would be. It never changes."""

    driver: ProtocolDriver

    @abstractmethod
    def display(self) -> str:
        """As a user would type it, without secrets: for messages, and to be written into images as a reference."""

    def tidy(self) -> str:
        """As :meth:`display`, without detours on the way (``./``, ``a/../``): for what is only shown."""
        return self.display()

    def beside(self, reference: str) -> Place:
        """What the relative *reference*, which stands in an image at this place, means.

        :raises UnsupportedError: nothing lies beside such a place.
        """
        raise UnsupportedError(f"nothing lies beside a place of protocol '{self.driver.name}'", file=self.display())

    def inside(self, name: str) -> Place:
        """The file *name* in this place, which is a folder.

        :raises UnsupportedError: there are no folders.
        """
        raise UnsupportedError(
            f"there are no files below a place of protocol '{self.driver.name}'", file=self.display()
        )

    def bundled(self, names: Sequence[str]) -> Place | None:
        """The first of the files *names* that is there in this place; None: it is no folder, or holds none of them."""
        return None

    def objection(self) -> str | None:
        """What speaks against opening it, which is resolved, for an image, wherever it lies: that it is a device, say,
        which acts when it is opened. None: nothing."""
        return None

    def resolved(self) -> Place:
        """The place that is opened where this one is: links followed. It is what is judged *and* what is opened.

        :raises StorageError: it is not a possible place.
        """
        return self

    def folder(self) -> Place | None:
        """The folder that it lies in; None where there are none."""
        return None

    def within(self, folder: Place) -> bool:
        """Whether it, which is resolved, is *folder*, also resolved, or lies below it, in whatever depth."""
        return False

    def identity(self) -> object | None:
        """Equal for two places of the same bytes, as far as that can be known without opening; None: it cannot."""
        return None


class NamedPlace(Place):
    """A place that is only known by its name: nothing lies beside it, and it lies in no folder."""

    def __init__(self, driver: ProtocolDriver, name: str) -> None:
        self.driver = driver
        self.name = name

    def display(self) -> str:
        return self.name

    def identity(self) -> object | None:
        return self.driver.name, self.name
