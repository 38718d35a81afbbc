"""How a service is used: options, the SDKs' environment and files, and the secrets that options name, as one value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diskmill.contract.options import Value
from diskmill.errors import RefusedError, StorageError, UsageError
from diskmill.kit.ranged import LARGEST_READAHEAD, READAHEAD

from . import INHERITED, profile
from .place import ObjectPlace

if TYPE_CHECKING:
    from diskmill import Context


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    :param config: what obstore calls so, credentials included.
    :param profile: of AWS, whose credentials boto3 has to fetch; None: they are in *config*, or in the environment.
    """

    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    profile: str | None = None
    endpoint: str = ""
    certificates: str | None = field(default=None, repr=False)
    readahead: int = READAHEAD
    timeout: int = 30
    retries: int = 5
    connections: int = 8
    part: int = 0


def settings_of(options: Mapping[str, Value], place: ObjectPlace, context: Context, *, told: bool) -> Settings:
    """What *options* ask for; what they leave open comes from the image that *place* lies beside.

    :param told: whether a reference may not set them, as it is an image's.
    :raises UsageError: a value is out of range. SecretError: there is no such secret.
    :raises RefusedError: it is an image that sets an option.
    """
    name = place.display()
    given = sorted(key for key in options if key != "filename")
    if told and place.judged and given:
        raise RefusedError(f"an image may not set the option '{given[0]}' (--trust=anything lets it)", file=name)
    options = dict(options)
    declared = {option.name: option for option in place.driver.options}
    for key in INHERITED:
        if key in place.kept and key in declared:
            options.setdefault(key, declared[key].parse(place.kept[key]))

    def number(key: str, default: int, low: int, high: int) -> int:
        value = int(options.get(key, default))
        if not low <= value <= high:
            raise UsageError(f"option '{key}' takes {low} to {high}", file=name)
        return value

    config: dict[str, Any] = {}
    for key, theirs in _NAMES[place.driver.name].items():
        if key not in options:
            continue
        if key.endswith("-secret"):
            try:
                config[theirs] = context.secret(str(options[key])).decode().strip()
            except UnicodeDecodeError:
                raise UsageError(f"the secret of option '{key}' is not UTF-8", file=name) from None
        else:
            config[theirs] = options[key]
    by_boto = None
    if place.driver.name == "s3":
        if ("access_key_id" in config) != ("secret_access_key" in config):
            raise UsageError("the options 'access-key-id' and 'key-secret' go together", file=name)
        wanted = None if "profile" not in options else str(options["profile"])
        known = "access_key_id" in config or bool(config.get("skip_signature"))
        found = profile.look_up(wanted, credentials=not known, file=name)
        by_boto = found.name if found.elsewhere else None
        config = {**found.config, **config}
    endpoint = str(options.get("endpoint", config.get("endpoint", _from_environment(place.driver.name))))
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UsageError("the option 'endpoint' is a URL, http:// or https://", file=name)
    if endpoint:
        config[_ENDPOINT[place.driver.name]] = endpoint.rstrip("/")
    certificates = None
    if "cafile" in options:
        try:
            certificates = Path(str(options["cafile"])).read_text()
        except OSError as error:
            raise StorageError.from_os(error, str(options["cafile"]), "cafile") from None
        except UnicodeDecodeError:
            raise StorageError("it holds no certificates", file=str(options["cafile"]), place="cafile") from None
    return Settings(
        config=config,
        profile=by_boto,
        endpoint=endpoint,
        certificates=certificates,
        readahead=number("readahead", READAHEAD, 512, LARGEST_READAHEAD),
        timeout=number("timeout", 30, 1, 3600),
        retries=number("retries", 5, 0, 1000),
        connections=number("connections", 8, 1, 64),
        part=number("part-size", 0, 0, 5 << 30),
    )


_NAMES = {
    "s3": {
        "region": "region",
        "access-key-id": "access_key_id",
        "key-secret": "secret_access_key",
        "token-secret": "session_token",
        "virtual-hosted": "virtual_hosted_style_request",
        "requester-pays": "request_payer",
        "anonymous": "skip_signature",
    },
    "gs": {"key-secret": "service_account_key", "anonymous": "skip_signature"},
    "az": {
        "account": "account_name",
        "key-secret": "account_key",
        "sas-secret": "sas_key",
        "anonymous": "skip_signature",
    },
}
"""Our options → obstore's."""
_ENDPOINT = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}


def _from_environment(scheme: str) -> str:
    """The service that the SDKs would talk to, as the environment says; empty: the vendor's own."""
    names = {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "gs": ("STORAGE_EMULATOR_HOST",),
        "az": ("AZURE_STORAGE_ENDPOINT",),
    }[scheme]
    return next((os.environ[one] for one in names if os.environ.get(one)), "")
