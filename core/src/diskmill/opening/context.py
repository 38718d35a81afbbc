"""What holds for a whole command: the policy, the secrets, the cache modes, the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..contract.limits import Budget
from ..contract.options import Option
from ..errors import SecretError, UsageError, said_raw
from ..records import field, record
from .gate import FOLDER, Trust
from .registry import Registry, default_registry

if TYPE_CHECKING:
    from ..contract.node import Image

CACHE_MODES = ("none", "writeback", "writethrough", "directsync", "unsafe")
"""What ``-t`` and ``-T`` take, with qemu-img's meanings."""

OVERWRITES = ("replace", "in-place", "refuse")
"""See :class:`Context`."""


class Habits:
    """What callers take for granted of every image. A program that stands in for another one has its habits."""

    archives_are_bytes: bool = False
    """An archive, or a compressed file, is a raw disk, whatever is inside."""
    anything_is_a_disk: bool = False
    """What looks like no disk is copied and written as one all the same."""
    all_extents_are_there: bool = False
    """An image whose extents are missing is an error also where only metadata is asked."""
    devices_are_there: bool = False
    """``host_device`` names a block device that is there, and no file."""
    dash_is_a_file: bool = False
    """``-`` is the name of a file, and not standard input or output."""
    digests_are_a_file: bool = False
    """``digests:…`` is a name like any other, and no disk that is known by its digests."""
    incompressible_is_plain: bool = False
    """Where a subformat has nothing compressed, data is stored as it is, with a warning."""

    @property
    def idle_options(self) -> Sequence[Option]:
        """Options to create images that are taken without effect by formats that do not have them."""
        return ()

    def tell_guess(self, name: str, warn: Callable[[str], None]) -> None:
        """Tell that the image *name*, which is opened for writing, was guessed to be raw."""
        warn(
            f"'{name}': that it is raw was guessed: its first bytes can only be written as long as it looks raw "
            f"({said_raw()} says that it is)"
        )


@record
class SharedObject:
    """What the user defined for nodes to name, other than a secret (``--object throttle-group,id=…``).

    :param kind: its type, as typed.
    :param properties: as typed: texts, or in JSON whatever stood there.
    :param state: what the driver that knows the kind keeps of it, common to all nodes that name it.
    """

    kind: str
    properties: Mapping[str, Any]
    state: Any = None


@record
class Context:
    """Settings that go along with every open.

    :param trust: which references inside images may be opened.
    :param secrets: secret id → bytes (``--object secret,id=…``).
    :param objects: id → other objects that nodes name (``--object throttle-group,id=…``).
    :param cache: a cache mode, one of :data:`CACHE_MODES`.
    :param overwrite: what becomes of a file that bears the name of a new output, one of :data:`OVERWRITES`: it is
        replaced when the output is whole, written into, or left alone and the output refused.
    :param share: open images that another process writes (``-U``); what is read may be inconsistent.
    :param warn: takes a warning, one line.
    :param opened: takes each image that a command was named, when it is open: who wants to know what was read. None:
        nobody does.
    :param habits: what callers take for granted.
    :param budget: what all that is opened with it may cost: ``Budget(Limits(memory=…))`` for other limits than the
        default ones. A copy of a context shares it.
    :param spool: the folder for temporary copies of what only comes or goes once, in order (a pipe, a server without
        ranges), where a format needs more; empty: the system's; None: no such copies are made.
    :param ask: asks a person for a passphrase, with the prompt that it is given; None: there is nobody to ask.
    """

    trust: Trust = FOLDER
    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)
    objects: dict[str, SharedObject] = field(default_factory=dict)
    cache: str = "writeback"
    share: bool = False
    overwrite: str = "replace"
    registry: Registry = field(default_factory=default_registry)
    warn: Callable[[str], None] = lambda text: None
    opened: Callable[[Image], None] | None = None
    habits: Habits = field(default_factory=Habits)
    ask: Callable[[str], bytes] | None = None
    spool: str | None = None
    budget: Budget = field(default_factory=Budget, repr=False)

    def __post_init__(self) -> None:
        """Take what people write, and refuse what cannot be meant, before anything is opened."""
        self.trust = Trust.of(self.trust)
        for key, value in self.secrets.items():
            if not isinstance(value, bytes):
                raise UsageError(f"secret '{key}' is bytes, not {type(value).__name__}: encode it")
        for what, word, known in (("cache", self.cache, CACHE_MODES), ("overwrite", self.overwrite, OVERWRITES)):
            if word not in known:
                raise UsageError(f"{what} is one of {', '.join(known)}, not {word!r}")

    def warn_of_guess(self, name: str) -> None:
        """Tell that *name*, which is opened for writing, was guessed to be raw."""
        self.habits.tell_guess(name, self.warn)

    def properties(self, key: str) -> dict[str, Any] | None:
        """The properties of the object with id *key*, its type as ``qom-type``; None: there is none."""
        found = self.objects.get(key)
        return None if found is None else {"qom-type": found.kind, **found.properties}

    def secret(self, key: str) -> bytes:
        """The secret with id *key*.

        :raises SecretError: there is none.
        """
        try:
            return self.secrets[key]
        except KeyError:
            raise SecretError(f"no secret with id '{key}': define it with --object secret,id={key},…") from None
