"""One typed function for each hook: how the core, and drivers that need another driver, ask.

Each asks *one* driver, and every plugin that is not a driver and wraps the hook. A word that the hook does not know is
refused, and so is an answer that is not of the hook's type: a driver's own mistake names the driver. While a hook
looks at an image as a whole, or changes it, no thread writes guest data (:meth:`Image.alone`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, get_args

from ..errors import CheckUnsupportedError, DiskmillError, DriverError, UnsupportedError, UsageError, did_you_mean
from .node import Image, Node, Storage

if TYPE_CHECKING:
    from .crypto import CryptoRequest, Volume
    from .drivers import CryptoDriver, Driver, FilterDriver, FormatDriver, ProtocolDriver
    from .extents import Extent
    from .options import Value
    from .place import Place
    from .requests import CreateRequest, MeasureRequest, OpenRequest
    from .results import Bitmap, CheckResult, Measurement, Snapshot

Repair = Literal["", "leaks", "all"]
"""What a check may repair: nothing, lost space, or whatever can be without destroying what can still be saved."""
SnapshotAction = Literal["list", "create", "apply", "delete", "load"]
"""What is done with internal snapshots; ``load`` lets an image that is open for reading read as a snapshot."""
BitmapAction = Literal["list", "add", "remove", "clear", "enable", "disable", "merge"]
"""What is done with persistent bitmaps."""
PreflightAction = Literal["read", "amend", "bitmap", "empty", "resize"]
"""What may be about to follow when a driver is asked to refuse beforehand."""
Preallocation = Literal["off", "metadata", "falloc", "full"]
"""How space for what is new is claimed."""

_Answer = TypeVar("_Answer")


class Hooks(Protocol):
    """What calls hooks: the registry of installed drivers."""

    def call(self, driver: Driver, hook: str, **arguments: Any) -> Any:
        """Ask *driver*; None: it has no such hook."""

    def format(self, name: str) -> FormatDriver:
        """The format driver *name*. :raises DriverError: there is none."""

    def crypto(self, name: str) -> CryptoDriver:
        """The crypto driver *name*. :raises DriverError: there is none."""

    def all(self, group: str) -> list[Any]:
        """Every driver of an entry-point *group* that can be imported."""


def _ask(hooks: Hooks, driver: Driver, hook: str, **arguments: Any) -> Any:
    try:
        return hooks.call(driver, hook, **arguments)
    except (DiskmillError, OSError, MemoryError, RecursionError):
        raise
    except ModuleNotFoundError as error:
        text = f"{driver.kind} driver '{driver.name}' needs the Python package {error.name} for this (hook '{hook}')"
        raise DriverError(text, hint=f"install it: pip install {error.name}") from error
    except Exception as error:
        text = f"a mistake in {driver.kind} driver '{driver.name}', or in a plugin around it: hook '{hook}' ended with "
        raise DriverError(f"{text}{type(error).__name__}: {error}") from error


def _typed(answer: Any, kind: Callable[..., _Answer], driver: Driver, hook: str) -> _Answer:
    assert isinstance(kind, type)  # an abstract class is none to mypy
    if isinstance(answer, kind):
        return cast(_Answer, answer)
    what = f"gave {type(answer).__name__}, not {kind.__name__}" if answer is not None else "is missing"
    raise DriverError(f"{driver.kind} driver '{driver.name}': its hook '{hook}' {what}")


def driver_of(error: BaseException) -> Driver | None:
    """Whose mistake *error* most likely is: the driver that was at work where it was raised, or whose node was."""
    from .drivers import Driver

    found: Driver | None = None
    step = error.__traceback__
    while step is not None:
        one = step.tb_frame.f_locals.get("self")
        if isinstance(one, Driver):
            found = one
        elif isinstance(one, Node):
            found = getattr(one, "driver", found)
        step = step.tb_next
    return found


def expect_word(word: str, words: Any, what: str) -> None:
    """:raises UsageError: *word* is none of *words*, a ``Literal`` type, for the argument *what*."""
    known = get_args(words)
    if word not in known:
        hint = did_you_mean(str(word), known)
        raise UsageError(f"invalid {what} '{word}': choose from {', '.join(repr(one) for one in known)}", hint=hint)


def probe(hooks: Hooks, driver: FormatDriver, data: bytes, name: str) -> int:
    """How sure *driver* is, from 0 to 100, that *data*, the first bytes of the file *name*, begin its format."""
    return _typed(_ask(hooks, driver, "probe", data=data, name=name) or 0, int, driver, "probe")


def open_image(hooks: Hooks, driver: FormatDriver, request: OpenRequest) -> Image:
    """The image in ``request.file``."""
    return _typed(_ask(hooks, driver, "open", request=request), Image, driver, "open")


def open_storage(hooks: Hooks, driver: ProtocolDriver | FilterDriver, request: OpenRequest) -> Storage:
    """The storage at ``request.place``, or the filter over ``request.file``."""
    return _typed(_ask(hooks, driver, "open", request=request), Storage, driver, "open")


def listing(hooks: Hooks, driver: ProtocolDriver, request: OpenRequest) -> Iterator[Place]:
    """The files below the folder ``request.place``.

    :raises UnsupportedError: its protocol cannot tell them.
    """
    found = _ask(hooks, driver, "listing", request=request) if "list" in driver.capabilities else None
    if found is None:
        raise UnsupportedError(f"protocol '{driver.name}' cannot tell what is in a folder", file=request.name)
    return _typed(found, Iterator, driver, "listing")


def create_image(hooks: Hooks, driver: FormatDriver, request: CreateRequest) -> Image:
    """A new, empty image in ``request.file``."""
    return _typed(_ask(hooks, driver, "create", request=request), Image, driver, "create")


def create_storage(hooks: Hooks, driver: ProtocolDriver, request: CreateRequest) -> Storage:
    """A new, empty file at ``request.place``, which gets its name when it is settled."""
    return _typed(_ask(hooks, driver, "create", request=request), Storage, driver, "create")


def amend(hooks: Hooks, image: Image, options: Mapping[str, Value], *, force: bool = False) -> None:
    """Change *options* of *image* in place.

    :raises UnsupportedError: its format has nothing to amend.
    """
    with image.alone():
        done = _ask(hooks, image.driver, "amend", image=image, options=options, force=force)
    if done is None:
        raise UnsupportedError(f"format '{image.driver.name}' does not support option amendment", file=image.name)


def check(hooks: Hooks, image: Image, repair: Repair = "") -> CheckResult:
    """What is inconsistent in *image*, after repairing what *repair* says.

    :raises CheckUnsupportedError: its format has no check.
    """
    expect_word(repair, Repair, "repair")
    with image.alone():
        answer = _ask(hooks, image.driver, "check", image=image, repair=repair)
    if answer is None:
        raise CheckUnsupportedError(f"format '{image.driver.name}' does not support checks", file=image.name)
    from .results import CheckResult

    return _typed(answer, CheckResult, image.driver, "check")


def map(hooks: Hooks, image: Image, offset: int, length: int) -> Iterator[Extent]:
    """Where guest bytes *offset* to *offset + length* live."""
    answer = _ask(hooks, image.driver, "map", image=image, offset=offset, length=length)
    return _typed(answer, Iterator, image.driver, "map")


def snapshots(hooks: Hooks, image: Image) -> list[Snapshot]:
    """The internal snapshots of *image*; none where its format has none."""
    answer = _ask(hooks, image.driver, "snapshot", image=image, action="list", name="")
    return [] if answer is None else _typed(answer, list, image.driver, "snapshot")


def snapshot(hooks: Hooks, image: Image, action: SnapshotAction, name: str) -> list[Snapshot]:
    """Do *action* to the snapshot *name*, its id or its name; gives those that there are afterwards.

    :raises UnsupportedError: the format has no internal snapshots.
    """
    expect_word(action, SnapshotAction, "action")
    with image.alone():
        answer = _ask(hooks, image.driver, "snapshot", image=image, action=action, name=name)
    if answer is None:
        raise UnsupportedError(f"format '{image.driver.name}' has no internal snapshots", file=image.name)
    return _typed(answer, list, image.driver, "snapshot")


def bitmaps(hooks: Hooks, image: Image) -> list[Bitmap]:
    """The persistent bitmaps of *image*; none where its format has none."""
    answer = _ask(hooks, image.driver, "bitmap", image=image, action="list", name="", options={})
    return [] if answer is None else _typed(answer, list, image.driver, "bitmap")


def bitmap(hooks: Hooks, image: Image, action: BitmapAction, name: str, **options: Any) -> None:
    """Do *action* to the bitmap *name*; the hook says which *options* an action takes.

    :raises UnsupportedError: the format has no persistent bitmaps.
    """
    expect_word(action, BitmapAction, "action")
    with image.alone():
        done = _ask(hooks, image.driver, "bitmap", image=image, action=action, name=name, options=options)
    if done is None:
        raise UnsupportedError(f"format '{image.driver.name}' has no persistent bitmaps", file=image.name)


def resize(hooks: Hooks, image: Image, size: int, preallocation: Preallocation = "off") -> None:
    """Make the guest disk of *image* *size* bytes long.

    :raises UnsupportedError: its format cannot.
    """
    expect_word(preallocation, Preallocation, "preallocation")
    with image.alone():
        done = _ask(hooks, image.driver, "resize", image=image, size=size, preallocation=preallocation)
    if done is None:
        raise UnsupportedError(f"format '{image.driver.name}' cannot resize images", file=image.name)


def measure(hooks: Hooks, driver: FormatDriver, request: MeasureRequest) -> Measurement:
    """How many bytes a new image would take.

    :raises UnsupportedError: *driver* cannot tell.
    """
    answer = _ask(hooks, driver, "measure", request=request)
    if answer is None:
        raise UnsupportedError(f"format '{driver.name}' does not support size measurement")
    from .results import Measurement

    return _typed(answer, Measurement, driver, "measure")


def preflight(
    hooks: Hooks, image: Image, action: PreflightAction, options: Mapping[str, Any] | None = None
) -> bool | None:
    """Let the driver of *image* refuse now what *action*, with *options*, would refuse. None: it cannot tell."""
    answer: bool | None = _ask(hooks, image.driver, "preflight", image=image, action=action, options=options or {})
    return answer


def empty(hooks: Hooks, image: Image) -> bool:
    """Drop all data of *image*; False: its format has no quick way."""
    with image.alone():
        return bool(_ask(hooks, image.driver, "empty", image=image))


def crypto_for(hooks: Hooks, format: str, name: str) -> CryptoDriver:
    """The crypto driver *name*, for an image of *format*.

    :raises DriverError: there is none.
    :raises UsageError: it declares no number for that format; those that do are listed.
    """
    driver = hooks.crypto(name)
    if format not in driver.fits:
        others = ", ".join(sorted(one.name for one in hooks.all(driver.group) if format in one.fits))
        raise UsageError(f"cipher '{name}' does not fit format '{format}': choose from {others}")
    return driver


def crypto_numbered(hooks: Hooks, format: str, number: int) -> CryptoDriver | None:
    """The crypto driver that images of *format* name by *number*; None: none that is installed.

    :raises DriverError: there are several.
    """
    found = [one for one in hooks.all("diskmill.crypto") if one.fits.get(format) == number]
    if len(found) > 1:
        names = " and ".join(f"'{one.name}'" for one in found)
        raise DriverError(f"the ciphers {names} both claim the number {number} of format '{format}': uninstall one")
    return found[0] if found else None


def crypto_open(hooks: Hooks, name: str, request: CryptoRequest) -> Volume:
    """Unlock what is encrypted, by the crypto driver *name*."""
    return _volume(hooks, name, "crypto_open", request)


def crypto_create(hooks: Hooks, name: str, request: CryptoRequest) -> Volume:
    """Make a new key and its header, by the crypto driver *name*."""
    return _volume(hooks, name, "crypto_create", request)


def _volume(hooks: Hooks, name: str, hook: str, request: CryptoRequest) -> Volume:
    from .crypto import Volume

    driver = hooks.crypto(name)
    return _typed(_ask(hooks, driver, hook, request=request), Volume, driver, hook)


def crypto_amend(hooks: Hooks, name: str, request: CryptoRequest, *, force: bool = False) -> None:
    """Change key slots, by the crypto driver *name*.

    :raises UnsupportedError: it has none.
    """
    driver = hooks.crypto(name)
    done = _ask(hooks, driver, "crypto_amend", request=request, force=force)
    if done is None:
        raise UnsupportedError(f"the encryption '{name}' has no key slots", file=request.name)
    _typed(done, bool, driver, "crypto_amend")
