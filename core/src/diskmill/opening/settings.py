"""What holds for a whole job, as a value: what a :class:`~diskmill.opening.context.Context` is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..contract.limits import Budget, Limits
from ..errors import UsageError
from ..records import field, record
from .context import OVERWRITES, Context, SharedObject
from .gate import Trust
from .secrets import Secret


@record(frozen=True)
class Settings:
    """Policy and secrets, by name and not opened: it can be pickled, and means the same in another process.

    :param trust: which references inside images may be opened: ``"nothing"``, ``"folder"``, ``"anything"``, or folders.
    :param secrets: passphrases and keys, in an order in which a key comes before what is encrypted under it. They are
        read where the job runs.
    :param objects: id → properties of other objects that nodes name, with their type as ``qom-type``.
    :param share: open images that another process writes; what is read may be inconsistent.
    :param overwrite: what becomes of a file that bears the name of a new output: see
        :class:`~diskmill.opening.context.Context`.
    :param limits: what opening images may cost.
    """

    trust: tuple[str, ...] = ("folder",)
    secrets: tuple[Secret, ...] = ()
    objects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    share: bool = False
    overwrite: str = "replace"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        trust = (self.trust,) if isinstance(self.trust, str) or not isinstance(self.trust, Iterable) else self.trust
        if not all(isinstance(one, str) for one in trust):
            raise UsageError(f"trust is words and names of folders, not {self.trust!r}")
        object.__setattr__(self, "trust", tuple(trust))
        object.__setattr__(self, "secrets", tuple(self.secrets))
        if self.overwrite not in OVERWRITES:
            raise UsageError(f"overwrite is one of {', '.join(OVERWRITES)}, not {self.overwrite!r}")
        if len({one.id for one in self.secrets}) < len(self.secrets):
            raise UsageError("two secrets have the same id")

    def context(self, *, cache: str = "writeback", warn: Callable[[str], None] | None = None) -> Context:
        """What opens go by, with the drivers that are installed here.

        :param warn: takes a warning, one line.
        :raises StorageError: a secret cannot be read.
        :raises SecretError: one cannot be decoded or decrypted.
        """
        secrets: dict[str, bytes] = {}
        for one in self.secrets:
            secrets[one.id] = one.read(secrets)
        objects = {
            key: SharedObject(
                str(given.get("qom-type")), {name: one for name, one in given.items() if name != "qom-type"}
            )
            for key, given in self.objects.items()
        }
        context = Context(
            trust=Trust.of(self.trust),
            secrets=secrets,
            objects=objects,
            cache=cache,
            share=self.share,
            overwrite=self.overwrite,
            budget=Budget(self.limits),
        )
        if warn is not None:
            context.warn = warn
        return context
