"""The ``diskmill`` program: finds the command, runs it, turns what goes wrong into one line and an exit status.

Only the asked command's module is imported, and what that needs: start-up is a feature.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from .catalogue import ASKING, brought, known, load, standard_options
from .session import Session

if TYPE_CHECKING:
    from .arguments import Arguments, Command

USAGE_ERROR = 1
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143
"""128 and the number of the signal, as a shell reports a program that the signal ended."""


_FILES = 1 << 16
"""Open files, up to which the limit is raised where the system lets us."""


class Terminated(BaseException):
    """SIGTERM came: what is half done is undone on the way out."""


def main(session: Session | None = None) -> None:
    """The console script ``diskmill``, or the one that *session* makes of it."""
    import gc
    import signal

    _open_standard_files()
    gc.set_threshold(100_000)  # what is imported makes no garbage to look for
    signal.signal(signal.SIGTERM, _terminate)
    _allow_many_files()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may be any bytes; they go out as they came in
        codecs.register_error("diskmill", _as_it_came)
        sys.stdout.reconfigure(errors="diskmill")
        if isinstance(sys.stderr, io.TextIOWrapper):
            sys.stderr.reconfigure(errors="diskmill")
    status = run(sys.argv[1:], session or Session())
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(status)
    os._exit(status)  # nothing is left to do, and taking the interpreter apart takes as long as copying 30 MiB


def _open_standard_files() -> None:
    """Let no image get the descriptor of a standard file that is closed, and have its contents mixed with messages."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            setattr(sys, name, open(fd, "w" if fd else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


_PLAIN = {
    "…": b"...",
    "–": b"-",
    "→": b"->",
    "’": b"'",
    "×": b"x",
    "≤": b"<=",
    "█": b"#",
    "▓": b"+",
    "░": b"-",
    "·": b".",
    **dict.fromkeys("─━╸╺╶╴", b"-"),
    **dict.fromkeys("│┃", b"|"),
    **dict.fromkeys("╭╮╰╯├┤└┘┌┐┬┴┼", b"+"),
}
"""What stands for characters that we print, where the terminal's character set does not have them."""


def _as_it_came(error: UnicodeError) -> tuple[bytes, int]:
    """A byte of a name that is no text as that byte, and plain characters, or else ``?``, for what the terminal's
    character set does not have.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    pieces = (bytes((ord(one) - 0xDC00,)) if "\udc80" <= one <= "\udcff" else _PLAIN.get(one, b"?") for one in text)
    return b"".join(pieces), error.end


def _allow_many_files() -> None:
    """Raise the soft limit of open files: a disk may lie in hundreds. It is low for the sake of programs that use
    ``select``, which this one does not.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a system may have less than its hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def run(words: Sequence[str], session: Session) -> int:
    """Run the command line *words* and give the exit status."""
    if words and words[0] in ("--version", "-V"):  # before anything else is imported
        print(f"{session.program} {session.version}")
        return 0
    try:
        if session.completing():
            from .completion import complete

            return complete(words, session)
        status = _guarded(words, session)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output is gone; the interpreter must not try to flush it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        session.error("interrupted")
        return INTERRUPTED
    except Terminated:
        session.error("terminated")
        return TERMINATED
    return status


def _guarded(words: Sequence[str], session: Session) -> int:
    from diskmill.errors import DiskmillError, as_options
    from diskmill.sizes import letters_only

    letters, options = letters_only.set(session.plain), as_options.set(True)
    try:
        return _run(words, session)
    except DiskmillError as error:
        session.fail(error)
        return error.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except MemoryError:
        session.error("out of memory: Cannot allocate memory")
        return 1
    except OSError as error:
        session.error(f"{error.filename or 'input/output'}: {error.strerror or error}")
        return 1
    except Exception as error:
        if os.environ.get("DISKMILL_TRACEBACK"):
            raise
        from diskmill.contract.calls import driver_of

        text, driver = " ".join(str(error).split()), driver_of(error)
        where = "" if driver is None else f" in {driver.kind} driver '{driver.name}'"
        session.error(f"internal error{where}, please report it: {type(error).__name__}: {text}")
        return 1
    finally:  # who runs a command in a process of theirs goes on in Python's words
        letters_only.reset(letters)
        as_options.reset(options)


def _run(words: Sequence[str], session: Session) -> int:
    standard, rest = _standard(words, session)
    session.color = standard.one("color") or session.color
    if standard.has("version"):
        session.print(f"{session.program} {session.version}")
        return 0
    if standard.has("show_completion"):
        from .completion import show_script

        return show_script(str(standard.one("show_completion")), session)
    if not standard.has("trace"):
        return _command(standard, rest, session)
    from contextlib import ExitStack

    from .tracing import start

    with ExitStack() as until:
        return 0 if start(standard.all("trace"), session, until) else _command(standard, rest, session)


def _command(standard: Arguments, rest: list[str], session: Session) -> int:
    """Run the command that *rest* begins with."""
    from diskmill.errors import UsageError

    from .arguments import COLOR, HelpWanted, parse

    if standard.has("help") or not rest:
        from .manual import show_overview

        if not rest and not standard.has("help"):
            raise UsageError(f"not enough arguments: name a command, or try '{session.program} --help'")
        return show_overview(session)
    name, *given = rest
    if name in ASKING and not session.plain:
        return _tell(name, given, session)
    session.as_json = not session.plain and _wants_json(given)
    command = _command_called(name, session)
    if command.whole is not None:
        return command.whole(given, session)
    try:
        options = [one for one in command.options if not one.ours] if session.plain else [*command.options, COLOR]
        arguments = parse(options, given)
    except HelpWanted:
        from .manual import show_command

        return show_command(command, session)
    except UsageError as error:
        error.hint = error.hint or f"see '{session.program} {name} --help'"
        raise
    session.quiet = arguments.has("quiet")
    session.color = arguments.one("color") or session.color
    for names, format in (("image_opts", "format"), ("target_image_opts", "output_format")):
        if arguments.has(names) and arguments.has(format):
            raise UsageError(
                f"a name that is an option string says its format itself: leave the format of '{name}' out"
            )
    return command.run(arguments, session)


def _wants_json(words: Sequence[str]) -> bool:
    """Whether the last ``--output`` says json: also where the words turn out to be wrong."""
    last = ""
    for before, word in zip(("", *words), words, strict=False):
        if word.startswith("--output="):
            last = word.partition("=")[2]
        elif before == "--output":
            last = word
    return last == "json"


def _tell(name: str, given: list[str], session: Session) -> int:
    """``help [COMMAND]`` and ``version``."""
    from diskmill.errors import UsageError

    from .manual import show_command, show_overview

    if name == "version" and not given:
        session.print(f"{session.program} {session.version}")
        return 0
    if len(given) > 1 or name == "version":
        raise UsageError(f"unexpected argument: '{given[-1]}'")
    if not given or given[0] in ASKING:
        return show_overview(session)
    return show_command(_command_called(given[0], session), session)


def _command_called(name: str, session: Session) -> Command:
    """The command *name*.

    :raises UsageError: there is none.
    """
    if known(name, session):
        return load(name)
    from diskmill.errors import UsageError, did_you_mean

    from .commands import NAMES

    names = NAMES if session.plain else (*NAMES, *ASKING, *brought())
    hint = did_you_mean(name, names) or f"'{session.program} --help' lists the commands"
    raise UsageError(f"command not found: '{name}'", hint=hint)


def _standard(words: Sequence[str], session: Session) -> tuple[Arguments, list[str]]:
    """The standard options, which end at the first word that is none, and the words from there on."""
    from .arguments import COLOR, Arguments, HelpWanted, parse

    declared = standard_options(plain=True) if session.plain else (*standard_options(), COLOR)
    valued = {flag for option in declared if option.metavar for flag in option.flags}
    end = 0
    while end < len(words) and words[end].startswith("-") and words[end] not in ("-", "--"):
        end += 2 if words[end] in valued else 1
    try:
        standard = parse(declared, words[:end])
    except HelpWanted:
        standard = Arguments([("help", "")], [])
    return standard, list(words[end:])
