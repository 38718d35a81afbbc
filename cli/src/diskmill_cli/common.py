"""The options that commands share, once, and what becomes of them: a context, options, an output form."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from diskmill.errors import UsageError, did_you_mean
from diskmill.opening.context import CACHE_MODES
from diskmill.records import replace

from .arguments import Arguments, Option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diskmill.contract.options import Option as DriverOption
    from diskmill.opening.context import Context

    from .session import Session

_IMAGE = "The image"
_TARGET = "The output"
_ACCESS = "Access"
_SHOW = "What is shown"
_DIGEST = "The digest"

FORMAT = Option(
    "format", ("-f", "--format"), "The image's format; without it, the image is probed.", "FMT", panel=_IMAGE
)
IMAGE_OPTS = Option(
    "image_opts", ("--image-opts",), "Names are option strings: driver=qcow2,file.filename=…", panel=_IMAGE
)
TARGET_FORMAT = Option(
    "output_format", ("-O", "--target-format"), "The output's format.", "FMT", panel=_TARGET, default="raw"
)
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
    "object",
    ("--object",),
    "A secret (secret,id=ID,file=PATH or data=TEXT), TLS credentials (tls-creds-x509,id=ID,dir=PATH), or limits "
    "(throttle-group,id=ID,x-bps-total=N).",
    "OBJ",
    panel=_ACCESS,
)
CACHE = Option(
    "cache",
    ("-t", "--cache"),
    f"The cache mode for what is written: {', '.join(CACHE_MODES)}.",
    "MODE",
    panel=_ACCESS,
    default="writeback",
)
SOURCE_CACHE = Option(
    "source_cache",
    ("-T", "--cache", "--source-cache"),
    "The cache mode for what is read.",
    "MODE",
    panel=_ACCESS,
    default="writeback",
)
ALGORITHM = Option("algorithm", ("-a", "--algorithm"), "The digest's algorithm; sha256.", "NAME", panel=_DIGEST)
BLOCK_SIZE = Option("block_size", ("--block-size",), "Bytes that are hashed by themselves; 64k.", "SIZE", panel=_DIGEST)
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
    default="folder",
)
LIMITS = Option(
    "limits",
    ("--limits",),
    "What opening images may cost, for instance memory=1G,work=10M,chain=2000,files=10000.",
    "LIMITS",
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
    "output",
    ("--output",),
    "The form of the output, and with json that of errors too.",
    "FORM",
    choices=("human", "json"),
    panel=_SHOW,
    default="human",
)
SNAPSHOT = Option(
    "snapshot",
    ("-l", "--snapshot"),
    "An internal snapshot of it: its id or name, or snapshot.id=…,snapshot.name=…",
    "SNAP",
    panel=_IMAGE,
)

OVERWRITE = (
    Option(
        "in_place",
        ("--in-place",),
        "Write into the file that is there, which keeps its inode; what makes it an image comes last.",
        panel=_TARGET,
    ),
    Option("no_clobber", ("--no-clobber",), "Refuse a file that is there.", panel=_TARGET),
)
"""What becomes of a file that bears the output's name; else it is replaced."""

ACCESS = (OBJECT, SHARE, TRUST, LIMITS)
"""What every command that opens images takes."""


def context_of(arguments: Arguments, session: Session, cache: str = "writeback", key: str = "cache") -> Context:
    """The context that the options ask for.

    :param cache: the cache mode where the option *key* does not name one.
    :raises UsageError: a bad cache mode, trust or object.
    """
    from diskmill.contract.limits import Budget, Limits
    from diskmill.opening.context import Context, SharedObject

    secrets: dict[str, bytes] = {}
    objects: dict[str, SharedObject] = {}
    if arguments.has("object"):
        from .secrets import read_objects

        secrets, objects = read_objects(arguments.all("object"))
    return Context(
        trust=trust_of(arguments, session),
        secrets=secrets,
        objects=objects,
        cache=_cache_mode(arguments, cache, key),
        share=arguments.has("share"),
        overwrite=_overwrite(arguments, session),
        warn=session.warn,
        habits=session.habits(),
        ask=_asker(session),
        budget=Budget(Limits.parse(_last(arguments.all("limits")) or os.environ.get("DISKMILL_LIMITS", ""))),
    )


def settings_of(arguments: Arguments, session: Session) -> Settings:
    """The same for jobs that run elsewhere, with the secrets read there.

    :raises UsageError: a bad trust or object.
    """
    from diskmill.contract.limits import Limits
    from diskmill.opening.settings import Settings

    from .secrets import objects_of

    secrets, objects = objects_of(arguments.all("object"))
    return Settings(
        trust=tuple(_trusted(arguments, session)),
        secrets=tuple(secrets),
        objects={key: {"qom-type": one.kind, **one.properties} for key, one in objects.items()},
        share=arguments.has("share"),
        overwrite=_overwrite(arguments, session),
        limits=Limits.parse(_last(arguments.all("limits")) or os.environ.get("DISKMILL_LIMITS", "")),
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
        hint = did_you_mean(mode, CACHE_MODES)
        raise UsageError(f"invalid cache mode '{mode}': choose from {', '.join(CACHE_MODES)}", hint=hint)
    return mode


def format_of(arguments: Arguments, key: str) -> str:
    """The format that the option *key* names; raw where it is not given. A name that is empty is one all the same."""
    given = arguments.one(key)
    return "raw" if given is None else given


def tell_of_raw(arguments: Arguments, session: Session, key: str, flag: str, name: str) -> None:
    """Tell a person at a terminal that *name* will be raw for want of the option *key*, if it is called otherwise."""
    if session.plain or session.quiet or arguments.has(key) or sys.stderr is None or not sys.stderr.isatty():
        return
    from diskmill.opening.known_drivers import named_after

    called = named_after(name)
    if called is not None:
        text = f"'{name}' is written as raw, as qemu-img does: {flag} {called} if it is to be {called}"
        session.error(f"note: {text}", 36)


def _overwrite(arguments: Arguments, session: Session) -> str:
    """What becomes of a file that bears the output's name: the option's word, or the program's own way."""
    if arguments.has("in_place") and arguments.has("no_clobber"):
        raise UsageError("--in-place and --no-clobber contradict each other")
    return "in-place" if arguments.has("in_place") else "refuse" if arguments.has("no_clobber") else session.overwrite


def _last(values: list[str]) -> str:
    """The last of *values* that says something."""
    return next((value for value in reversed(values) if value), "")


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

    return Trust.parse(_trusted(arguments, session))


def _trusted(arguments: Arguments, session: Session) -> list[str]:
    """What is trusted, in words.

    :raises UsageError: one of them means nothing.
    """
    given = arguments.all("trust")
    if not given:
        named = os.environ.get("DISKMILL_TRUST")
        # Set, but empty: nothing is named, so nothing is trusted.
        given = [session.trust] if named is None else _split(named) if named else ["nothing"]
    for one in given:
        if one not in ("nothing", "folder", "anything") and not os.path.isdir(one) and not _elsewhere(one):
            hint = did_you_mean(one, ("nothing", "folder", "anything"))
            text = f"'{one}' to trust is neither 'nothing', 'folder', 'anything', a folder that exists, nor a server's"
            raise UsageError(text, hint=hint)
    return given


def _split(text: str) -> list[str]:
    """What is between colons, but for those of URLs."""
    import re

    return re.split(f"{os.pathsep}(?!//)", text)


def _elsewhere(name: str) -> bool:
    """Whether *name* is a place of another protocol than files.

    :raises DiskmillError: its protocol is not installed, or finds that it is no possible place.
    """
    from diskmill.opening.names import new_file
    from diskmill.opening.places import place_of
    from diskmill.opening.registry import default_registry

    return "://" in name and place_of(new_file(name), default_registry()).driver.name != "file"


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


def refuse_overridden(arguments: Arguments, options: Callable[[], Sequence[DriverOption]]) -> None:
    """Refuse a value that is wrong of an option that is given again later, too: it is what the user asked for.

    :param options: gives those that the driver has; called only where it matters.
    """
    from diskmill.contract.options import split

    pairs = [pair for text in arguments.all("options") for pair in split(text)]
    overridden = [pair for at, pair in enumerate(pairs) if any(pair[0] == name for name, _ in pairs[at + 1 :])]
    if overridden:
        declared = {option.name: option for option in options()}
        for name, value in overridden:
            if name in declared:
                declared[name].parse(value)


def show_options(options: list[DriverOption], title: str, session: Session) -> int:
    """Print the table that ``-o help`` asks for, with ``-q`` too."""
    session.quiet = False
    kinds = {"bool": "bool (on/off)", "int": "num"}
    session.print(f"{title}:")
    for option in options:
        declared = f"{option.name}=<{kinds.get(option.type, option.type)}>"
        more = "" if session.plain else choices_and_default(option)
        session.print(f"  {declared:<22} - {option.help}{more}")
    return 0


def choices_and_default(option: DriverOption) -> str:
    """What follows the help of an option: its choices, and what holds where it is not given."""
    default = ("on" if option.default else "off") if isinstance(option.default, bool) else option.default
    others = ("…",) if option.others else ()
    choices = f" ({', '.join((*option.choices, *others))})" if option.choices else ""
    return choices if default is None else f"{choices} [default: {default}]"


if TYPE_CHECKING:
    from diskmill.opening.gate import Trust
    from diskmill.opening.settings import Settings
