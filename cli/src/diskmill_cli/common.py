"""The options that commands share, once, and what becomes of them: a context, options, an output form."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from diskmill.contract.context import CACHE_MODES
from diskmill.errors import UsageError

from .arguments import Arguments, Option

if TYPE_CHECKING:
    from collections.abc import Callable

    from diskmill.contract.context import Context
    from diskmill.contract.options import Option as DriverOption

    from .session import Session

_IMAGE = "The image"
_TARGET = "The output"
_ACCESS = "Access"
_SHOW = "What is shown"

FORMAT = Option(
    "format", ("-f", "--format"), "The image's format; without it, the image is probed.", "FMT", panel=_IMAGE
)
IMAGE_OPTS = Option(
    "image_opts", ("--image-opts",), "Names are option strings: driver=qcow2,file.filename=…", panel=_IMAGE
)
TARGET_FORMAT = Option("output_format", ("-O", "--target-format"), "The output's format.", "FMT", panel=_TARGET)
BACKING_FORMAT = Option(
    "backing_format", ("-F", "--backing-format"), "The backing image's format.", "FMT", panel=_TARGET
)
OPTIONS = Option(
    "options",
    ("-o", "--options", "--target-format-options"),
    "Options of the format, name=value,…; 'help' lists them.",
    "OPTS",
    panel=_TARGET,
)
OBJECT = Option(
    "object", ("--object",), "A secret: secret,id=ID,file=PATH or secret,id=ID,data=TEXT.", "OBJ", panel=_ACCESS
)
CACHE = Option(
    "cache",
    ("-t", "--cache"),
    f"The cache mode for what is written: {', '.join(CACHE_MODES)}.",
    "MODE",
    panel=_ACCESS,
)
SOURCE_CACHE = Option(
    "source_cache", ("-T", "--cache", "--source-cache"), "The cache mode for what is read.", "MODE", panel=_ACCESS
)
SHARE = Option(
    "share",
    ("-U", "--force-share"),
    "Open an image that another process writes; it may be inconsistent.",
    panel=_ACCESS,
)
TRUST = Option(
    "trust",
    ("--trust",),
    "What references inside images may open: nothing, folder (the image's own), anything, or a folder; repeatable.",
    "WHAT",
    panel=_ACCESS,
)
PROGRESS = Option(
    "progress",
    ("-p", "--progress"),
    "Show progress; =json: one JSON object a line on stderr.",
    "json",
    choices=("json",),
    loose=True,
    panel=_SHOW,
)
QUIET = Option("quiet", ("-q", "--quiet"), "Print nothing but errors.", panel=_SHOW)
OUTPUT = Option(
    "output", ("--output",), "The form of the output: human or json.", "FORM", choices=("human", "json"), panel=_SHOW
)
SNAPSHOT = Option(
    "snapshot",
    ("-l", "--snapshot"),
    "An internal snapshot of it: its id or name, or snapshot.id=…,snapshot.name=…",
    "SNAP",
    panel=_IMAGE,
)

ACCESS = (OBJECT, SHARE, TRUST)
"""What every command that opens images takes."""


def context_of(arguments: Arguments, session: Session, cache: str = "writeback", key: str = "cache") -> Context:
    """The context that the options ask for.

    :param cache: the cache mode where the option *key* does not name one.
    :raises UsageError: a bad cache mode, trust or object.
    """
    from diskmill.contract.context import Context

    secrets: dict[str, bytes] = {}
    if arguments.has("object"):
        from .secrets import read_secrets

        secrets = read_secrets(arguments.all("object"))
    return Context(
        trust=trust_of(arguments, session),
        secrets=secrets,
        cache=_cache_mode(arguments, cache, key),
        share=arguments.has("share"),
        warn=session.warn,
        guessed=session.guessed,
        idle_options=session.idle_options(),
        as_qemu_img=session.plain,
        ask=_asker(session),
    )


def other_side(context: Context, arguments: Arguments, cache: str = "writeback", key: str = "cache") -> Context:
    """*context* for the other one of source and target, with the cache mode of its own. A secret that comes through a
    pipe can be read once only: so both go by the same secrets.

    :raises UsageError: a bad cache mode.
    """
    return replace(context, cache=_cache_mode(arguments, cache, key))


def _cache_mode(arguments: Arguments, cache: str, key: str) -> str:
    mode = arguments.one(key) or cache
    if mode not in CACHE_MODES:
        raise UsageError(f"invalid cache mode '{mode}': choose from {', '.join(CACHE_MODES)}")
    return mode


def _asker(session: Session) -> Callable[[str], bytes] | None:
    """Who is asked for passphrases: a person at a terminal, once for each; nobody where the program is qemu-img."""
    if session.plain or sys.stdin is None or not sys.stdin.isatty():
        return None
    from functools import cache

    from .secrets import ask

    return cache(ask)


def trust_of(arguments: Arguments, session: Session) -> Trust:
    """The trust policy: of the option, of the environment, or the program's own default."""
    from diskmill.opening.gate import Trust

    given = arguments.all("trust")
    if not given:
        named = os.environ.get("DISKMILL_TRUST")
        # Set, but empty: nothing is named, so nothing is trusted.
        given = [session.trust] if named is None else named.split(os.pathsep) if named else ["nothing"]
    for one in given:
        if one not in ("nothing", "folder", "anything") and not os.path.isdir(one) and "://" not in one:
            raise UsageError(f"'{one}' to trust is neither 'nothing', 'folder', 'anything' nor a folder that exists")
    return Trust.parse(given)


def driver_options(arguments: Arguments) -> dict[str, str]:
    """The ``-o`` options, of all times it was given.

    :raises HelpAsked: one of them is ``help`` or ``?``.
    :raises UsageError: a list is empty, or begins or ends with a comma.
    """
    from diskmill.contract.options import split

    for text in arguments.all("options"):
        if not text or text.startswith(",") or text.replace(",,", "").endswith(","):
            raise UsageError(f"invalid option list '{text}'")
    return dict(pair for text in arguments.all("options") for pair in split(text))


def show_options(options: list[DriverOption], title: str, session: Session) -> int:
    """Print the table that ``-o help`` asks for."""
    kinds = {"bool": "bool (on/off)", "int": "num"}
    session.print(f"{title}:")
    for option in options:
        declared = f"{option.name}=<{kinds.get(option.type, option.type)}>"
        session.print(f"  {declared:<22} - {option.help}")
    return 0


if TYPE_CHECKING:
    from diskmill.opening.gate import Trust
