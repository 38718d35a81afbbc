"""Servers: what a protocol driver gives who exports an image to other programs."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Self


class Server(AbstractContextManager["Server"]):
    """It exports an image as long as the ``with`` block runs."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """The name under which clients find what it exports."""

    @abstractmethod
    def start(self) -> None:
        """Begin to serve; the ``with`` block does so."""

    @abstractmethod
    def close(self) -> None:
        """Stop serving, and close the image; calling it twice is harmless.

        :raises DiskmillError: the image could not be closed properly.
        """

    def __enter__(self) -> Self:
        self.start()
        return self
