"""Places of the four protocols: URLs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.place import Place
from diskmill.errors import StorageError, UsageError

from . import url as urls
from .url import Url

if TYPE_CHECKING:
    from . import UrlDriver


class UrlPlace(Place):
    """The URL *url*.

    :param kept: options, as typed, that hold for files beside it too.
    :param judged: whether it was resolved to be judged: the server then may not lead elsewhere than into its folder.
    """

    driver: UrlDriver

    def __init__(self, driver: UrlDriver, url: Url, kept: Mapping[str, Any], *, judged: bool = False) -> None:
        self.driver = driver
        self.url = url
        self.kept = kept
        self.judged = judged

    @classmethod
    def parse(cls, driver: UrlDriver, text: str, kept: Mapping[str, Any]) -> UrlPlace:
        """The place that *text* names.

        :raises UsageError: it is no URL of the driver's scheme.
        """
        try:
            url = urls.parse(text)
        except ValueError as error:  # the text may hold credentials, so it is not shown
            raise UsageError(f"the name of protocol '{driver.name}' is no URL: {error}") from None
        if url.origin.scheme != driver.name:
            raise UsageError(f"protocol '{driver.name}' takes {driver.name}:// URLs", file=url.display())
        return cls(driver, url, kept)

    def display(self) -> str:
        return self.url.display()

    def beside(self, reference: str) -> UrlPlace:
        """The reference names a file: a question mark is a part of its name, and it has no credentials."""
        here = self.url.path.rpartition("/")[0]
        return self._at(f"{here}/{urls.path_of_name(reference)}")

    def inside(self, name: str) -> UrlPlace:
        return self._at(f"{self.url.path.rstrip('/')}/{urls.path_of_name(name)}")

    def _at(self, path: str) -> UrlPlace:
        return UrlPlace(self.driver, Url(self.url.origin, urls.normal_path(path)), self.kept)

    def resolved(self) -> UrlPlace:
        """The same. Where it leads only the server knows: a redirection is judged when it comes."""
        if self.url.ambiguous:
            raise StorageError("servers may read this URL in several ways", file=self.display())
        return UrlPlace(self.driver, self.url, self.kept, judged=True)

    def folder(self) -> UrlPlace | None:
        folder = self.url.folder
        return None if folder is None else UrlPlace(self.driver, folder, self.kept)

    def within(self, folder: Place) -> bool:
        return isinstance(folder, UrlPlace) and self.url.within(folder.url)

    def identity(self) -> object | None:
        return self.url._replace(user=None, password=None)
