"""Places of the protocol ``oci``: a registry, a repository, and a tag or digest in it.

Grammar of names from the OCI Distribution Specification, section "Pulling manifests",
https://github.com/opencontainers/distribution-spec/blob/main/spec.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from diskmill.contract.place import Place
from diskmill.errors import UsageError

if TYPE_CHECKING:
    from diskmill.contract.drivers import ProtocolDriver

_NAME = re.compile(
    r"oci://(?P<registry>(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)"
    r"/(?P<repository>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?"
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class OciPlace(Place):
    """An image or artifact.

    :param judged: whether it was resolved to be judged: no option of a reference is for it.
    """

    def __init__(
        self, driver: ProtocolDriver, registry: str, repository: str, tag: str, digest: str, *, judged: bool = False
    ) -> None:
        self.driver = driver
        self.registry = registry
        self.repository = repository
        self.tag = tag
        self.digest = digest
        self.judged = judged

    @classmethod
    def parse(cls, driver: ProtocolDriver, text: str) -> OciPlace:
        """The place that *text* names.

        :raises UsageError: it names none; the text is not shown, as it may hold a password.
        """
        found = _NAME.fullmatch(text) if len(text) < 1024 else None
        if found is None:
            raise UsageError("a name of protocol 'oci' is oci://REGISTRY/REPOSITORY[:TAG][@DIGEST]")
        digest = found["digest"] or ""
        tag = found["tag"] or ("" if digest else "latest")
        return cls(driver, found["registry"], found["repository"], tag, digest)

    @property
    def reference(self) -> str:
        """What a manifest is asked for by."""
        return self.digest or self.tag

    def display(self) -> str:
        tag, digest = (f":{self.tag}" if self.tag else ""), (f"@{self.digest}" if self.digest else "")
        return f"oci://{self.registry}/{self.repository}{tag}{digest}"

    def resolved(self) -> OciPlace:
        return OciPlace(self.driver, self.registry, self.repository, self.tag, self.digest, judged=True)

    def within(self, folder: Place) -> bool:
        """The same, or, of a folder without a tag of its own (``oci://registry/team``), what has it in front."""
        if not isinstance(folder, OciPlace) or folder.registry.lower() != self.registry.lower():
            return False
        if folder.tag != "latest" or folder.digest:
            return self.identity() == folder.identity()
        return self.repository == folder.repository or self.repository.startswith(f"{folder.repository}/")

    def identity(self) -> object | None:
        return "oci", self.registry.lower(), self.repository, self.reference
