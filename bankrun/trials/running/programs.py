"""What is put on trial: a call of a Python function, an SQL script, or a command of any language.

shop.py:buy(1)         a function of a file, with literal arguments
transfer.sql           a script, run by psql
--command 'node b.js'  split into words as a shell does it, and run without one
"""

from __future__ import annotations

import ast
import inspect
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bankrun.errors import CannotStart
from bankrun.results.reading import read_bounded

PARTICIPANTS_MAX = 4
SOURCE_BYTES_MAX = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class Call:
    """A function of a Python file, with the arguments it is called with."""

    file: Path
    function: str
    arguments: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()
    shown_file: str = ""

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        words = [repr(value) for value in self.arguments] + [f"{key}={value!r}" for key, value in self.keywords]
        return f"{self.shown_file or self.file.name}:{self.function}({', '.join(words)})"

    @property
    def short_name(self) -> str:
        """As it is called in a sentence."""
        return self.name.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Script:
    """An SQL script, run by psql."""

    file: Path
    shown_file: str = ""

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return self.shown_file or self.file.name

    @property
    def short_name(self) -> str:
        """As it is called in a sentence."""
        return self.file.name


@dataclass(frozen=True, slots=True)
class Command:
    """A command, in words."""

    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return shlex.join(self.words)

    @property
    def short_name(self) -> str:
        """As it is called in a sentence."""
        return self.name


Program = Call | Script | Command


def read_program(text: str, folder: Path | None = None) -> Call | Script:
    """Return what a word of the command line stands for. Raises CannotStart, in a sentence, for what does not exist."""
    file, colon, call = _split(text)
    path = (folder or Path.cwd()) / file
    if path.suffix == ".sql" and not colon:
        _check_file(path, text)
        return Script(path.resolve(), text)
    if path.suffix != ".py" or not colon:
        raise CannotStart(
            f"{text!r} is neither FILE.py:function(…) nor FILE.sql: another program is given as --command '{text}'"
        )
    _check_file(path, text)
    function, arguments, keywords = _read_call(call, text)
    _check_defined(path, function)
    return Call(path.resolve(), function, arguments, keywords, file)


def read_command(text: str) -> Command:
    """Return a command. Raises CannotStart if it cannot be split or its program does not exist."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CannotStart(f"--command {text!r} cannot be split into words: {error}") from error
    if not words:
        raise CannotStart("--command is empty: it is the program and its arguments")
    if shutil.which(words[0]) is None:
        raise CannotStart(f"there is no program {words[0]!r} to run (a command is run without a shell)")
    return Command(tuple(words))


def describe_function(function: Callable[..., Any] | str | Program) -> Program:
    """Return the program that a Python object or a text stands for.

    A function is run in an interpreter of its own, which imports it by file and name: so it must be found there.
    Raises CannotStart, in a sentence, for a lambda, a closure, a method, a fixture.
    """
    if isinstance(function, (Call, Script, Command)):
        return function
    if isinstance(function, str):
        return read_program(function)
    if not inspect.isfunction(function):
        raise CannotStart(f"{function!r} is no function of a file: give a function, or text as for `bankrun try`")
    name = function.__qualname__
    if function.__name__ == "<lambda>":
        raise CannotStart("a lambda has no name to be imported by: write it as a function of a file")
    if "<locals>" in name or function.__closure__:
        raise CannotStart(f"{name} is defined inside another function, and cannot be imported: move it to the file")
    if "." in name:
        raise CannotStart(f"{name} is a method: give a function of a file that calls it")
    source = inspect.getsourcefile(function)
    if source is None or not Path(source).is_file():
        raise CannotStart(f"{name} comes from no file, and cannot be imported by another interpreter")
    needed = [
        one.name
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed:
        raise CannotStart(
            f"{name} needs {', '.join(needed)}: give the call as text, 'file.py:{function.__name__}(1)', "
            "or a function without arguments (fixtures do not reach another process)"
        )
    return Call(Path(source).resolve(), function.__name__, shown_file=Path(source).name)


def pair(programs: Sequence[Program]) -> tuple[Program, ...]:
    """Return who takes part: one program alone meets itself. Raises CannotStart for none, or too many."""
    if not programs:
        raise CannotStart("nothing to try: give a program, such as 'shop.py:buy(1)'")
    if len(programs) > PARTICIPANTS_MAX:
        raise CannotStart(f"{len(programs)} programs: at most {PARTICIPANTS_MAX} can be tried against each other")
    return tuple(programs) * 2 if len(programs) == 1 else tuple(programs)


def _split(text: str) -> tuple[str, str, str]:
    """Split at the colon after a file's name; a path may have one of its own."""
    at = text.find(".py:")
    return (text[: at + 3], ":", text[at + 4 :]) if at >= 0 else (text, "", "")


def _check_file(path: Path, text: str) -> None:
    try:
        is_file = path.is_file()
    except OSError:  # such as a name that is too long
        is_file = False
    if not is_file:
        raise CannotStart(f"{text!r}: there is no file {path}")


def _read_call(call: str, text: str) -> tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    try:
        tree = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CannotStart(f"{text!r}: {call!r} is not a call such as buy(1)") from error
    if isinstance(tree, ast.Name):
        return tree.id, (), ()
    if isinstance(tree, ast.Lambda):
        raise CannotStart(f"{text!r}: a lambda has no name to be imported by: write it as a function of the file")
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise CannotStart(f"{text!r}: {call!r} is not a call of a function of that file, such as buy(1)")
    try:
        arguments = tuple(ast.literal_eval(one) for one in tree.args)
        keywords = tuple((one.arg or "**", ast.literal_eval(one.value)) for one in tree.keywords)
        repr((arguments, keywords))  # which Python refuses for a number of very many digits
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise CannotStart(
            f"{text!r}: arguments are literals (numbers, texts, lists, None): build anything else inside the function"
        ) from error
    if any(key == "**" for key, _ in keywords):
        raise CannotStart(f"{text!r}: name each keyword argument, ** is not read")
    return tree.func.id, arguments, keywords


def _check_defined(path: Path, function: str) -> None:
    """Look for the function where it would be found without running the file."""
    try:
        tree = ast.parse(read_bounded(path, SOURCE_BYTES_MAX), str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CannotStart(f"{path.name} is no Python: {error}") from error
    names: dict[str, ast.AST] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node in tree.body:
            names[node.name] = node
    found = names.get(function)
    if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and any(
        "fixture" in ast.unparse(one) for one in found.decorator_list
    ):
        raise CannotStart(f"{path.name}:{function} is a pytest fixture: give a function")
    if found is None and not _may_define(tree, function):
        known = ", ".join(sorted(name for name in names if not name.startswith("_"))) or "none"
        raise CannotStart(f"{path.name} has no function {function!r}: it has {known}")


def _may_define(tree: ast.Module, name: str) -> bool:
    """Whether the name may come from an import, an assignment or a branch, which only running the file tells."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and any(
            alias.name == "*" or (alias.asname or alias.name) == name for alias in node.names
        ):
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
    return any(
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name
        for top in tree.body
        if isinstance(top, (ast.If, ast.Try, ast.With))
        for node in ast.walk(top)
    )
