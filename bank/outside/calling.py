"""Strategies that are not ours: found as ``module:Class`` or by entry point, and checked before anything runs them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from bank.errors import BankError, DoesNotFit, StrategyFault
from bank.orders import Order
from bank.outside.leaks import Borrowed, Spot, Stack, stack_from
from bank.postgres.database import ISOLATION_LEVELS, Database
from bank.settings import Settings
from bank.strategies.base import ChunkStrategy, Claim, Guard, Strategy

GROUP = "bankrun.strategies"
"""The entry point group under which an installed package offers strategies."""
EVERYTHING = "*"
"""Announces every class that is in the folders of BANKRUN_STRATEGIES_PATH."""
CALL_SECONDS_MAX = 10.0
OURS = ("bank", "bankrun", "workers")

METHODS: dict[str, tuple[str, ...]] = {
    "close": (),
    "guard": ("order",),
    "prepare": ("database", "order"),
    "move": ("transaction", "order", "entry_ids"),
    "read": ("transaction", "order"),
    "post": ("transaction", "postings", "order"),
    "write": ("transaction", "posting"),
}
"""What the teller and the base class call, and with what."""
FLAGS = ("survives_pause", "refuses_after_write", "guards_commit", "has_lease", "routed_to_one")
STATEMENTS = ("READ", "WRITE")

T = TypeVar("T")

_loaded: dict[str, type[Strategy]] = {}
_fingerprints: dict[str, str] = {}
_again: dict[tuple[str, int], type[Strategy]] = {}


def is_reference(name: str) -> bool:
    """Whether a name has the form ``package.module:Class``."""
    module, colon, path = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *path.split(".")))


def reference_to(strategy: type) -> str:
    """Return the name under which a class can be loaded. Raises DoesNotFit if only its own function can reach it."""
    reference = f"{strategy.__module__}:{strategy.__qualname__}"
    if not is_reference(reference):
        raise DoesNotFit(
            f"{reference} cannot be imported by that name: define the class at the top of a module, since every "
            "instance imports it for itself"
        )
    return reference


def make_importable(folders: Iterable[Path]) -> None:
    """Add folders to the end of the import path: what is ours, or installed, is found before what is in them."""
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
            importlib.invalidate_caches()


def folders_in(path: str | None) -> list[Path]:
    """Return the folders of a value like PATH."""
    return [Path(folder) for folder in (path or "").split(os.pathsep) if folder]


def installed() -> dict[str, EntryPoint]:
    """Return the strategies that installed packages offer, by name."""
    return {point.name: point for point in entry_points(group=GROUP) if "/" not in point.name and ":" not in point.name}


def load(name: str, reference: str | None = None) -> type[Strategy]:
    """Return the class behind ``module:Class``, checked. Its name, in messages and results, is ``name``.

    Raises DoesNotFit, in one sentence, if there is no such class, if it cannot be imported, or if it is no strategy.
    """
    if name not in _loaded:
        strategy = _named(_found(name, reference or name), name)
        _fingerprints[name] = _fingerprint(strategy)
        _loaded[name] = strategy
    return _loaded[name]


def fingerprint(name: str) -> str | None:
    """Return what tells the file of a loaded class from an older, or another, file of the same name."""
    return _fingerprints.get(name)


def _fingerprint(strategy: type[Strategy]) -> str:
    file = getattr(sys.modules.get(strategy.__module__), "__file__", None)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except OSError:
        return ""


def loaded(name: str) -> type[Strategy] | None:
    """Return a class that was loaded before under this name."""
    return _loaded.get(name)


def announcement() -> dict[str, str]:
    """Return the settings with which workers accept what this process has loaded, and nothing else."""
    names = [name for name in _loaded if is_reference(name)]
    folders = dict.fromkeys(str(_folder(_top(name))) for name in names)
    return {"BANKRUN_STRATEGIES": ",".join(names), "BANKRUN_STRATEGIES_PATH": os.pathsep.join(folders)} if names else {}


def is_announced(name: str, settings: Settings) -> bool:
    """Whether whoever started this process wants ``module:Class`` to be loaded. Imports nothing.

    A message says which strategy to use, and whoever can write to the broker can write a message: it must not be able
    to import what it likes.
    """
    announced = [one.strip() for one in (settings.strategies or "").split(",")]
    if name in announced:
        return True
    if EVERYTHING not in announced or not is_reference(name):
        return False
    spec = importlib.util.find_spec(_top(name))
    if spec is None:
        return False
    # What is frozen, or built in, has an origin that is no file.
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    folders = folders_in(settings.strategies_path)
    return bool(places) and all(
        any(Path(place).resolve().is_relative_to(folder.resolve()) for folder in folders) for place in places
    )


def as_imported_by(strategy: type[Strategy], instance: int) -> type[Strategy]:
    """Return the class as the given instance has it, counted from 0: each has an import of its own.

    Instances are processes. Where two of them are played in one, a lock that lives in a module or in a class would be
    shared by both, and seem to hold where it does not. Our own strategies keep theirs in the object.
    """
    name = strategy.name
    if instance == 0 or name not in _loaded:
        return strategy
    if (name, instance) not in _again:
        point = None if is_reference(name) else installed()[name].value
        top = _top(point or name)
        folder = _folder(top)
        mine = {key: module for key, module in sys.modules.items() if _belongs(key, module, top, folder)}
        for key in mine:
            del sys.modules[key]
        try:
            _again[name, instance] = _named(_found(name, point or name), name)
        finally:
            for key in [key for key, module in sys.modules.items() if _belongs(key, module, top, folder)]:
                del sys.modules[key]
            sys.modules.update(mine)
    return _again[name, instance]


def _top(reference: str) -> str:
    return reference.partition(":")[0].partition(".")[0]


def _folder(top: str) -> Path:
    """Return the folder in which a top-level module lies."""
    module = sys.modules[top]
    file = module.__file__ or next(iter(module.__path__), ".")
    place = Path(file).resolve()
    return place.parent.parent if place.name == "__init__.py" else place.parent


def _belongs(name: str, module: ModuleType, top: str, folder: Path) -> bool:
    """Whether a module is the user's: of the strategy's package, or lying beside it."""
    first = name.partition(".")[0]
    if first == top:
        return True
    file = getattr(module, "__file__", None)
    if first in (*OURS, "__main__") or not isinstance(file, str):
        return False
    return _lies_in(Path(file), folder)


def _found(name: str, reference: str) -> object:
    module, _, path = reference.partition(":")

    try:
        found: object = _in_time(lambda: importlib.import_module(module), reference)
    except _StillAtIt as error:
        raise DoesNotFit(f"{name} cannot be loaded: {error}") from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise DoesNotFit(f"{name} cannot be loaded: {_why_not(error, reference)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            file = getattr(sys.modules[module], "__file__", None)
            raise DoesNotFit(f"{name} cannot be loaded: {_shown(file) if file else module} has no {path}")
        found = getattr(found, part)
    return found


class _StillAtIt(Exception):
    """A call into the user's code does not come back."""


def _in_time(call: Callable[[], T], reference: str) -> T:
    """Return what the user's code returns, and raise what it raises; _StillAtIt, with the place, if it takes too long.

    The call runs in a daemon thread: one that never ends must not keep us from ending.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whatever it is, SystemExit too, it is the code's
            future.set_exception(error)

    thread = threading.Thread(target=run, name=f"call of {reference}", daemon=True)
    thread.start()
    try:
        return future.result(CALL_SECONDS_MAX)
    except FutureTimeout:
        if future.done():
            raise  # its own
        where = place_of_thread(thread.ident, reference)
        raise _StillAtIt(f"hangs: for {CALL_SECONDS_MAX:g} s it has stood in {where}") from None


def _why_not(error: BaseException, reference: str) -> str:
    module = reference.partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and error.name and (module + ".").startswith(error.name + "."):
        return f"there is no module {error.name!r} here; the folder for your own strategies is the current one"
    if isinstance(error, SyntaxError):
        return f"{_shown(error.filename or module)}, line {error.lineno}: {error.msg}"
    return f"its import raises {_said(error)} ({place_of(error.__traceback__, reference)})"


# --- Does it fit? ---------------------------------------------------------------------------------------------------


def _named(found: object, name: str) -> type[Strategy]:
    """Return a class of ours above theirs, with the name by which everybody knows it. Raises DoesNotFit."""
    if not isinstance(found, type):
        raise DoesNotFit(f"{name} is no class, but {_a(found)}")
    if not issubclass(found, Strategy) and not callable(getattr(found, "move", None)):
        raise DoesNotFit(
            f"{name} is no strategy: it is neither a subclass of bank.strategies.Strategy nor has a method move"
        )
    if found is Strategy:
        raise DoesNotFit(f"{name} is the base of all strategies, and none by itself")
    bases = (found,) if issubclass(found, Strategy) else (found, Strategy)
    summary = getattr(found, "summary", None) or (found.__doc__ or name).strip().partition("\n")[0]
    outline = {"__module__": found.__module__, "__qualname__": found.__qualname__, "__doc__": found.__doc__}
    try:
        made: type[Strategy] = type(found.__name__, bases, {**outline, "name": name, "summary": summary})
    except Exception as error:  # a metaclass, or an __init_subclass__, of theirs
        raise DoesNotFit(f"{name} cannot be subclassed: {_said(error)}") from error
    for problem in _problems(made):
        raise DoesNotFit(f"{name} does not fit: {problem}")
    return made


def _problems(strategy: type[Strategy]) -> Iterable[str]:
    yield from _wrong_attributes(strategy)
    methods = METHODS | ({"move_all": ("transaction", "orders")} if issubclass(strategy, ChunkStrategy) else {})
    for method, parameters in methods.items():
        yield from _misfits(method, inspect.getattr_static(strategy, method), parameters)
    for method, parameter in (("open", "settings"), ("install", "transaction")):
        if isinstance(inspect.getattr_static(strategy, method), classmethod):
            yield from _misfits(method, getattr(strategy, method), (parameter,))
        else:
            yield f"{method} is no classmethod: it is called before there is an object"
    if inspect.getattr_static(strategy, "open") is inspect.getattr_static(Strategy, "open"):
        yield from _misfits("__init__", strategy, ())


def _wrong_attributes(strategy: type[Strategy]) -> Iterable[str]:
    if not isinstance(strategy.claim, Claim):
        yield f"claim is {strategy.claim!r}, and not one of {', '.join(f'Claim.{one.name}' for one in Claim)}"
    if strategy.isolation not in ISOLATION_LEVELS:
        yield f"isolation is {strategy.isolation!r}, and not one of {', '.join(ISOLATION_LEVELS)}"
    for flag in FLAGS:
        if not isinstance(getattr(strategy, flag), bool):
            yield f"{flag} is {getattr(strategy, flag)!r}, and neither True nor False"
    for text in ("summary", *STATEMENTS):
        if not isinstance(getattr(strategy, text), str):
            yield f"{text} is {_a(getattr(strategy, text))}, and no text"


def _misfits(method: str, static: Any, parameters: tuple[str, ...]) -> Iterable[str]:
    bound = isinstance(static, (staticmethod, type)) or inspect.ismethod(static)
    function = static.__func__ if isinstance(static, (staticmethod, classmethod)) else static
    if not callable(function):
        yield f"{method} is {_a(function)}, and no method"
        return
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield f"{method} is async, and a teller calls it in a thread"
        return
    if inspect.isgeneratorfunction(function):
        yield f"{method} has a yield in it, and so would do nothing when it is called"
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a callable that is not written in Python
        return
    arguments = [object() for _ in parameters] if bound else [object(), *(object() for _ in parameters)]
    try:
        signature.bind(*arguments)
    except TypeError as error:
        wanted = ", ".join(parameters if bound else ("self", *parameters))
        yield f"{method}{signature} is called as {method}({wanted}): {error}"


def opened(strategy: type[Strategy], settings: Settings) -> Strategy:
    """Return the object that one instance uses. Raises StrategyFault if it cannot be made."""
    if loaded(strategy.name) is None:
        return strategy.open(settings)
    made = _asked(strategy, lambda: strategy.open(settings))
    if not isinstance(made, strategy):
        raise StrategyFault(strategy.name, f"makes {_a(made)} in open(), and not an object of its own class")
    return made


def install(strategy: type[Strategy], database: Database) -> None:
    """Let it make what it needs in the bank's schema. Raises StrategyFault if that raises or hangs."""

    def make() -> None:
        with database.transaction() as transaction:
            strategy.install(transaction)

    if strategy.install.__func__ is not Strategy.install.__func__:  # type: ignore[attr-defined]
        _asked(strategy, make)


def closed(strategy: Strategy) -> None:
    """Close an object. Raises StrategyFault if it raises, or does not end."""
    if loaded(strategy.name) is None:
        strategy.close()
    else:
        _asked(strategy, strategy.close)


def _asked(strategy: Strategy | type[Strategy], call: Callable[[], T]) -> T:
    try:
        return _in_time(call, _home(strategy))
    except _StillAtIt as error:
        raise StrategyFault(strategy.name, str(error)) from None
    except BankError:
        raise
    except (Exception, SystemExit) as error:
        raise raised(strategy, error) from error


def check_guard(strategy: Strategy, order: Order) -> None:
    """Raise StrategyFault if what its guard returns is no guard, or no lease where it claims to have one."""
    guard: Guard | None = _asked(strategy, lambda: strategy.guard(order))
    if guard is None:
        return
    wanted = ("enter", "try_enter", "leave", *(("expire",) if strategy.has_lease else ()))
    missing = [name for name in wanted if not callable(getattr(guard, name, None))]
    if missing:
        hint = ": wrap it, as in ThreadGuard(lock)" if hasattr(guard, "acquire") else ""
        raise StrategyFault(strategy.name, f"returns {_a(guard)} as its guard, without {' and '.join(missing)}{hint}")


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _said(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- Where was it? --------------------------------------------------------------------------------------------------


def raised(strategy: Strategy | type[Strategy], error: BaseException) -> StrategyFault:
    """Return what to say of a strategy from which something came that is no outcome of a transfer."""
    return StrategyFault(strategy.name, f"raises {_said(error)} ({place_of(error.__traceback__, _home(strategy))})")


def place_of_thread(ident: int | None, reference: str) -> str:
    """Return where a thread stands: in the user's code if there is any on its stack."""
    return place(stack_from(sys._current_frames().get(ident or 0)), reference)  # noqa: SLF001 - no other way to look


def place_in(strategy: Strategy, ident: int | None) -> str:
    """Return where a thread stands that runs a strategy."""
    return place_of_thread(ident, _home(strategy))


def unreturned(strategy: Strategy, borrowed: Borrowed) -> StrategyFault | None:
    """Take back what a strategy has not given back in this thread, and return what to say of it; None if nothing."""
    found = borrowed.take_back()
    return found and StrategyFault(strategy.name, f"{found[0]} ({place(found[1], _home(strategy))})")


def place_of(traceback: TracebackType | None, reference: str) -> str:
    """Return where an error comes from: the innermost line of the user's code, else the innermost of all."""
    stack: Stack = []
    while traceback is not None:
        code, module = traceback.tb_frame.f_code, traceback.tb_frame.f_globals.get("__name__", "")
        stack.insert(0, Spot(module, code.co_filename, traceback.tb_lineno, code.co_name))
        traceback = traceback.tb_next
    return place(stack, reference)


def _home(strategy: Strategy | type[Strategy]) -> str:
    return strategy.__module__ if isinstance(strategy, type) else type(strategy).__module__


def place(stack: Stack, reference: str) -> str:
    """Return the innermost line of the user's code on a stack, else of the base class's, else of all."""
    top = _top(reference)
    folder = _folder(top) if top in sys.modules and top not in OURS else None
    theirs = [
        spot
        for spot in stack
        if spot.module.partition(".")[0] == top or (folder is not None and _lies_in(Path(spot.file), folder))
    ]
    ours = [spot for spot in stack if spot.module.startswith("bank.strategies.")]
    for spot in (theirs or ours or stack)[:1]:
        file = Path(spot.file)
        shown = str(file.relative_to(folder)) if folder and file.is_relative_to(folder) else _shown(spot.file)
        return f"{shown}, line {spot.line}, in {spot.function}"
    return "an unknown place"


def _lies_in(file: Path, folder: Path) -> bool:
    """Whether a file is the user's own: in the folder, and in no package that is installed."""
    prefix = Path(sys.prefix)
    return not folder.is_relative_to(prefix) and file.is_relative_to(folder) and not file.is_relative_to(prefix)


def _shown(file: str) -> str:
    """Return a file's name as it is seen from the current folder."""
    path = Path(file)
    try:
        here = Path.cwd()
    except OSError:
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
