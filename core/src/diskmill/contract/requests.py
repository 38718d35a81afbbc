"""What the core asks of drivers: the arguments of hooks, as typed objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import DriverError
from ..records import field, record

if TYPE_CHECKING:
    from ..opening.context import Context
    from ..opening.siblings import Siblings
    from .node import Node, Storage
    from .options import Value
    from .place import Place


@record
class OpenRequest:
    """Open a node.

    :param name: what the user knows it by; for a protocol driver, where the bytes are.
    :param file: for a format driver, the opened node that holds the image.
    :param options: the driver's ``open`` options, validated.
    :param writable: whether it will be written.
    :param shallow: only metadata will be asked: what the image refers to is not opened.
    :param repair: why it is opened for writing, where that is to repair it: ``"leaks"``, ``"all"``, or ``"lost"``,
        which is all, and gives up data that the image lost track of. What otherwise forbids writing does not, then.
    :param guessed: whether the user did not name the format: it was probed, or an image told it that need not be
        believed.
    :param child: opens the node that the user gave under a role such as ``header``; None where they gave none. The
        driver closes it.
    :param children: for a filter, the opened nodes below by the roles it declares; ``NAME.0`` and so on for a list;
        ``file`` is the first.
    :param place: for a protocol driver, where the bytes are, as its own :meth:`ProtocolDriver.place` told; the gate may
        have resolved it.
    :param siblings: other files in the folder of ``file``, where that is open for writing: for formats of several
        files, which may need one more.
    """

    name: str
    context: Context
    file: Node | None = None
    options: Mapping[str, Value] = field(default_factory=dict)
    writable: bool = False
    shallow: bool = False
    repair: str = ""
    guessed: bool = False
    child: Callable[[str], Node | None] = lambda role: None
    siblings: Siblings | None = None
    place: Place | None = None
    children: Mapping[str, Node] = field(default_factory=dict)

    def below(self) -> Node:
        """``file``, for drivers that stand on a node: the core always gives it to them."""
        if self.file is None:
            raise DriverError(f"'{self.name}' was opened without a node below")
        return self.file

    def excuses(self, what: str) -> bool:
        """Whether the image may lack *what*, because the file ends before it: where nothing but what the header says
        will be asked, as of the first part of a download. That is told in a warning.
        """
        if not self.shallow or self.writable:
            return False
        self.context.warn(f"'{self.name}' is cut short: its {what} lies behind the end of the file")
        return True


def _nowhere(name: str) -> NoReturn:
    raise DriverError(f"nobody makes files for this image: '{name}' cannot be made")


@record
class Backing:
    """The backing image that a new image gets.

    :param name: as it is written into the image.
    :param format: the format's name, where known.
    :param size: its guest disk's size in bytes; None where it was not opened.
    :param details: what its driver tells of it (:meth:`Image.details`); None where it was not opened.
    """

    name: str
    format: str | None
    size: int | None = None
    details: Mapping[str, Any] | None = None


@record
class CreateRequest:
    """Make a new, empty image.

    :param name: the output's name, as the user typed it. The file does not bear it before it is complete.
    :param size: the guest disk's size in bytes. It only tells a protocol driver how long the file may become; 0: that
        is not known.
    :param options: the driver's ``create`` options, validated.
    :param file: for a format driver, the empty storage to make it in.
    :param sibling: makes another output file, in the same folder, for formats of several files; it takes the
        name that the finished file will have. Asked for before anything is written.
    :param header: as *sibling*, for the file that will have the header in place of ``file``.
    :param compressed: whether all data will be stored compressed (``convert -c``).
    :param layout: gives the guest ranges (offset, length) that will be written, in order, for a format that has to lay
        them out before the first of them is: where ``file`` goes forward. None: nobody knows them.
    :param place: for a protocol driver, where the new bytes are to be.
    :param unfinished: for a protocol driver with the capability ``unfinished``: the new file has a name of its own, the
        output's with ``.part``, until it is settled, and keeps it when it is abandoned; what has it is gone on with
        (:meth:`Storage.go_on`). Of a device: nothing of what it holds is touched before that.
    :param like: for a protocol driver, open storage that the new one shall take after (owner, mode). Nothing but that
        may bear the name now, or when the new one gets it.
    """

    name: str
    context: Context
    size: int
    options: Mapping[str, Value] = field(default_factory=dict)
    file: Storage | None = None
    backing: Backing | None = None
    sibling: Callable[[str], Storage] = lambda name: _nowhere(name)
    header: Callable[[str], Storage] = lambda name: _nowhere(name)
    compressed: bool = False
    layout: Callable[[], Iterator[tuple[int, int]]] | None = None
    like: Storage | None = None
    place: Place | None = None
    unfinished: bool = False

    def output(self) -> Storage:
        """``file``, for format drivers: the core always gives it to them."""
        if self.file is None:
            raise DriverError(f"'{self.name}' was to be made without a file below")
        return self.file


@record
class MeasureRequest:
    """How large would an image be?

    :param size: the guest disk's size in bytes.
    :param options: the driver's ``create`` options, validated.
    :param data_bytes: called with a unit in bytes, gives how many bytes in whole units of the source hold data.
    :param bitmaps: name and granularity in bytes of each persistent bitmap of the source; None: it cannot have any.
    :param context: for a format that asks other drivers; None: there is nobody to ask.
    """

    size: int
    options: Mapping[str, Value]
    data_bytes: Callable[[int], int]
    bitmaps: Sequence[tuple[str, int]] | None = None
    context: Context | None = None

    def asked(self) -> Context:
        """``context``, for drivers that cannot tell without other drivers."""
        if self.context is None:
            raise DriverError("its size depends on another driver's, and there is nobody to ask for that")
        return self.context
