"""What holds for a whole command: the policy, the secrets, the cache modes, the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .errors import SecretError
from .gate import FOLDER, Trust
from .options import Option
from .registry import Registry, default_registry

CACHE_MODES = ("none", "writeback", "writethrough", "directsync", "unsafe")
"""What ``-t`` and ``-T`` take, with qemu-img's meanings."""


@dataclass
class Context:
    """Settings that go along with every open.

    :param trust: which references inside images may be opened.
    :param secrets: secret id → bytes (``--object secret,id=…``).
    :param objects: properties of other objects that drivers are given by id (``--object tls-creds-x509,id=…``), with
        the type as ``qom-type``.
    :param cache: a cache mode, one of :data:`CACHE_MODES`.
    :param share: open images that another process writes (``-U``); what is read may be inconsistent.
    :param warn: takes a warning, one line.
    :param idle_options: options to create images that are taken without effect by formats that do not have them.
    :param ask: asks a person for a passphrase, with the prompt that it is given; None: there is nobody to ask.
    """

    trust: Trust = FOLDER
    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)
    objects: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    cache: str = "writeback"
    share: bool = False
    registry: Registry = field(default_factory=default_registry)
    warn: Callable[[str], None] = lambda text: None
    idle_options: Sequence[Option] = ()
    ask: Callable[[str], bytes] | None = None

    def secret(self, key: str) -> bytes:
        """The secret with id *key*.

        :raises SecretError: there is none.
        """
        try:
            return self.secrets[key]
        except KeyError:
            raise SecretError(f"no secret with id '{key}': define it with --object secret,id={key},…") from None
