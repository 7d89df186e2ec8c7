"""Where a user's code lies, and where in it something stands or went wrong."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from bank.strategies.base import Strategy

OURS = ("bank", "bankrun", "workers")
HERE = Path(__file__).resolve().parents[2]
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
STACK_MAX = 40


class Spot(NamedTuple):
    """A line of a stack. No frame: that would keep alive what its function had in its hands."""

    module: str
    file: str
    line: int
    function: str


Stack = list[Spot]


def stack_from(frame: Any) -> Stack:
    """Return where a frame stands, and who called it, the innermost first."""
    stack: Stack = []
    while frame is not None and len(stack) < STACK_MAX:
        code = frame.f_code
        stack.append(Spot(frame.f_globals.get("__name__", ""), code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return stack


def stack_of(traceback: TracebackType | None) -> Stack:
    """Return where an error comes from, the innermost first."""
    stack: Stack = []
    while traceback is not None:
        code, module = traceback.tb_frame.f_code, traceback.tb_frame.f_globals.get("__name__", "")
        stack.insert(0, Spot(module, code.co_filename, traceback.tb_lineno, code.co_name))
        traceback = traceback.tb_next
    return stack


def stack_of_thread(ident: int | None) -> Stack:
    """Return where a thread stands, the innermost first."""
    return stack_from(sys._current_frames().get(ident or 0))  # noqa: SLF001 - no other way to look


def find_place(stack: Stack, module: str) -> str:
    """Return the innermost line of the user's code on a stack, else of the base class's, else of all."""
    top = top_of(module)
    folder = folder_of(top) if top in sys.modules and top not in OURS else None
    theirs = [spot for spot in stack if is_theirs(spot, module)]
    ours = [spot for spot in stack if spot.module.startswith("bank.strategies.")]
    for spot in (theirs or ours or stack)[:1]:
        file = Path(spot.file)
        shown = str(file.relative_to(folder)) if folder and file.is_relative_to(folder) else show_file(spot.file)
        return f"{shown}, line {spot.line}, in {spot.function}"
    return "an unknown place"


def is_theirs(spot: Spot, module: str) -> bool:
    """Whether a line is of the user's module, or of one beside it."""
    top = top_of(module)
    if top_of(spot.module) == top:
        return True
    return top in sys.modules and top not in OURS and lies_in(Path(spot.file), folder_of(top))


def home_of(strategy: Strategy | type[Strategy]) -> str:
    """Return the module that a strategy was written in."""
    return strategy.__module__ if isinstance(strategy, type) else type(strategy).__module__


def top_of(reference: str) -> str:
    """Return the top-level module of ``package.module:Class``, or of a module."""
    return reference.partition(":")[0].partition(".")[0]


def folder_of(top: str) -> Path:
    """Return the folder in which a top-level module lies."""
    module = sys.modules[top]
    file = module.__file__ or next(iter(module.__path__), ".")
    place = Path(file).resolve()
    return place.parent.parent if place.name == "__init__.py" else place.parent


def lies_in(file: Path, folder: Path) -> bool:
    """Whether a file is the user's own: in the folder, and neither in a package that is installed nor in bankrun."""
    prefix = Path(sys.prefix)
    ours = (prefix, STANDARD_LIBRARY, *(HERE / name for name in OURS))
    return not folder.is_relative_to(prefix) and file.is_relative_to(folder) and not any(map(file.is_relative_to, ours))


def show_file(file: str) -> str:
    """Return a file's name as it is seen from the current folder."""
    path = Path(file)
    try:
        here = Path.cwd()
    except OSError:
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
