"""Profiles of AWS: what the files that its SDKs share say (``~/.aws/credentials``, ``~/.aws/config``).

Facts from the AWS SDKs and Tools Reference Guide, "Using shared config and credentials files to globally configure
AWS SDKs and tools", https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from diskmill.errors import UsageError

_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_ELSEWHERE = ("role_arn", "sso_session", "sso_start_url", "credential_process", "web_identity_token_file")
"""Settings by which credentials are to be fetched, not read."""
_OF_THE_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


class Profile(NamedTuple):
    """What a profile says, in obstore's words.

    :ivar elsewhere: whether its credentials have to be fetched.
    """

    name: str
    config: Mapping[str, str]
    elsewhere: bool = False


def look_up(name: str | None, *, credentials: bool, file: str) -> Profile:
    """The profile *name*, or the one that holds where none is named.

    :param credentials: whether its credentials are wanted, too.
    :param file: the image, for messages.
    :raises UsageError: there is none of that name, or a file cannot be read.
    """
    asked = name or os.environ.get("AWS_PROFILE")
    chosen = asked or "default"
    settings = {
        **_section("AWS_CONFIG_FILE", "config", chosen if chosen == "default" else f"profile {chosen}", file),
        **_section("AWS_SHARED_CREDENTIALS_FILE", "credentials", chosen, file),
    }
    if asked and not settings:
        raise UsageError(f"there is no profile '{asked}' in ~/.aws/config or ~/.aws/credentials", file=file)
    config: dict[str, str] = {}
    in_force = name is None  # what the environment says goes before a profile that nobody named
    if "region" in settings and not (in_force and _any("AWS_REGION", "AWS_DEFAULT_REGION")):
        config["region"] = settings["region"]
    elsewhere = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
    if "endpoint_url" in settings and not (in_force and _any(*elsewhere)):
        config["endpoint"] = settings["endpoint_url"]
    if not credentials or (in_force and _any(*_OF_THE_ENVIRONMENT)):
        return Profile(chosen, config)
    config.update({theirs: settings[key] for key, theirs in _KEYS.items() if key in settings})
    fetched = any(key in settings for key in _ELSEWHERE) and "access_key_id" not in config
    if not fetched and "access_key_id" not in config and os.environ.get("AWS_EC2_METADATA_DISABLED") == "true":
        raise UsageError("there are no credentials: see the options 'access-key-id', 'profile', 'anonymous'", file=file)
    return Profile(chosen, config, fetched)


def _any(*names: str) -> bool:
    return any(os.environ.get(name) for name in names)


def _section(variable: str, default: str, section: str, file: str) -> dict[str, str]:
    """The *section* of the file that the environment's *variable* names; empty where there is none."""
    path = Path(os.environ.get(variable) or Path.home() / ".aws" / default).expanduser()
    parser = configparser.RawConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error):  # what stands there may be a secret, so it is not shown
        raise UsageError(f"the file '{path}' cannot be read as a file of profiles", file=file) from None
    return dict(parser[section]) if parser.has_section(section) else {}
