"""A class behind ``module:Class`` is imported, once in a process; only what was announced, where that matters."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bank.errors import DoesNotFit
from bank.outside.calling import StillAtIt, call_in_time, tell_what
from bank.outside.checking import fit
from bank.outside.exits import catch_exits
from bank.outside.places import find_place, folder_of, lies_in, show_file, stack_of, top_of
from bank.settings import Settings
from bank.strategies import STRATEGIES
from bank.strategies.base import Strategy

EVERYTHING = "*"
"""Announces every class that is in the folders of BANKRUN_STRATEGIES_PATH."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A class, what it was loaded as, what tells its file from another, and the imports of further instances."""

    strategy: type[Strategy]
    reference: str
    fingerprint: str


_loaded: dict[str, Loaded] = {}
"""As ``sys.modules``: what a process has imported, it has."""
_cannot_be_imported_anew: set[str] = set()


def is_reference(name: str) -> bool:
    """Whether a name has the form ``package.module:Class``."""
    module, colon, path = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *path.split(".")))


def load(name: str, reference: str) -> type[Strategy]:
    """Return the class behind ``module:Class``, checked. Its name, in messages and results, is ``name``.

    Raises DoesNotFit, in one sentence, if there is no such class, if it cannot be imported, or if it is no strategy.
    """
    if name not in _loaded:
        found = _find(name, reference)
        for ours in STRATEGIES.values():
            if found is ours:
                raise DoesNotFit(f"{name} is bankrun's own: write {ours.name}")
        strategy = fit(found, name)
        _loaded[name] = Loaded(strategy, reference, _hash_file(strategy))
    return _loaded[name].strategy


def recall(name: str) -> type[Strategy] | None:
    """Return a class that was loaded before under this name."""
    return _loaded[name].strategy if name in _loaded else None


def fingerprint(name: str) -> str | None:
    """Return what tells the file of a loaded class from an older, or another, file of the same name."""
    return _loaded[name].fingerprint if name in _loaded else None


def announce() -> dict[str, str]:
    """Return the settings with which workers accept what this process has loaded, and nothing else."""
    names = [name for name in _loaded if is_reference(name)]
    folders = dict.fromkeys(str(folder_of(top_of(name))) for name in names)
    return {"BANKRUN_STRATEGIES": ",".join(names), "BANKRUN_STRATEGIES_PATH": os.pathsep.join(folders)} if names else {}


@contextmanager
def imported_anew(name: str, folder: str | None) -> Iterator[None]:
    """Let what a user's modules remember be forgotten: the name is loaded from its file again within the block.

    Where that cannot be, for what they tell a library can be told only once, they stay as they are.
    """
    if folder is None or name in _cannot_be_imported_anew:
        yield
        return
    modules = {
        module_name: module
        for module_name, module in sys.modules.items()
        if (file := getattr(module, "__file__", None)) and file.endswith(".py") and lies_in(Path(file), Path(folder))
    }
    loaded = _loaded.pop(name, None)
    for module_name in modules:
        del sys.modules[module_name]
    try:
        load(name, name if loaded is None else loaded.reference)
    except DoesNotFit:
        if loaded is None:
            raise
        _cannot_be_imported_anew.add(name)
        _loaded[name] = loaded
        sys.modules.update(modules)
    yield


def is_announced(name: str, settings: Settings) -> bool:
    """Whether this process was started to load ``module:Class``. Imports nothing.

    A message says which strategy to use, and anything that can write to the broker can write a message: it must not be
    able to import what it likes.
    """
    announced = [one.strip() for one in (settings.strategies or "").split(",")]
    if name in announced:
        return True
    if EVERYTHING not in announced or not is_reference(name):
        return False
    spec = importlib.util.find_spec(top_of(name))
    if spec is None:
        return False
    # What is frozen, or built in, has an origin that is no file.
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    folders = [folder.resolve() for folder in folders_in(settings.strategies_path)]
    return bool(places) and all(
        any(Path(place).resolve().is_relative_to(folder) for folder in folders) for place in places
    )


def folders_in(path: str | None) -> list[Path]:
    """Return the folders of a value like PATH."""
    return [Path(folder) for folder in (path or "").split(os.pathsep) if folder]


def _find(name: str, reference: str) -> object:
    module, _, path = reference.partition(":")
    catch_exits(module)
    try:
        found: object = call_in_time(lambda: importlib.import_module(module), module)
    except StillAtIt as error:
        raise DoesNotFit(f"{name} cannot be loaded: {error}") from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise DoesNotFit(f"{name} cannot be loaded: {_tell_why_not(error, module)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            file = getattr(sys.modules[module], "__file__", None)
            raise DoesNotFit(f"{name} cannot be loaded: {show_file(file) if file else module} has no {path}")
        found = getattr(found, part)
    return found


def _tell_why_not(error: BaseException, module: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and (module + ".").startswith(error.name + "."):
        return f"there is no module {error.name!r} here; the folder for your own strategies is the current one"
    if isinstance(error, SyntaxError):
        return f"{show_file(error.filename or module)}, line {error.lineno}: {error.msg}"
    place = find_place(stack_of(error.__traceback__), module)
    return f"its import {tell_what(error)} ({place})"


def _hash_file(strategy: type[Strategy]) -> str:
    file = getattr(sys.modules.get(strategy.__module__), "__file__", None)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except OSError:
        return ""
