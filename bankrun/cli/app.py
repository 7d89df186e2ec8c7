"""What all commands share: the list of them, where they print, the exit codes, and the sentence for each error.

A command is the function of its own name in the file of its own name (`try_` for `try`, which is a keyword): it parses
its options, calls one function, and prints. Its file is imported when it is called, or listed: a wrong word costs no
database driver, and what needs no bank of ours works where another package has that name.
"""

from __future__ import annotations

import io
import keyword
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bankrun.environ import check_packages
from bankrun.errors import BankrunError, CannotStart
from bankrun.quoting import one_line
from bankrun.render.terminal import Terminal
from bankrun.results import store

COMMANDS = (
    "compare",
    "prove",
    "try",
    "replay",
    "new",
    "page",
    "report",
    "diff",
    "chaos",
    "soak",
    "bench",
    "audit",
    "worker",
    "strategies",
    "doctor",
    "lesson",
)
"""In the order of ``bankrun --help``."""

WITHOUT_BANK = {"try", "replay"}
"""What a project can use that has a ``bank`` or ``workers`` of its own."""

SENTENCE_MAX = 1_000
OK, FAILED, CANNOT_START, CONTRADICTED = 0, 1, 2, 3


class Terminated(BaseException):
    """The process was asked to end, with SIGTERM."""


class Commands(TyperGroup):
    """The commands of COMMANDS, each imported when it is asked for."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes | {"commands": dict.fromkeys(COMMANDS)})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by name, or None if there is none."""
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
            try:
                if cmd_name not in WITHOUT_BANK:
                    check_packages()
                alone.command(cmd_name)(getattr(import_module(f"bankrun.cli.{name}"), name))
            except CannotStart as error:
                _stand_in(alone, cmd_name, error)
            self.commands[cmd_name] = typer.main.get_command(alone)
        return self.commands.get(cmd_name)


def _stand_in(alone: typer.Typer, name: str, error: CannotStart) -> None:
    """Add a command that says why it cannot be used here: it is listed all the same."""

    def refuse(_: typer.Context) -> None:
        raise error

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    alone.command(name, help="Not here: another package stands in for bankrun's own.", context_settings=anything)(
        refuse
    )


cli = typer.Typer(
    name="bankrun",
    cls=Commands,
    help="Run the same bank on many workers, and see which locks keep the money.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(value: bool) -> None:
    if value:
        from bankrun.results.provenance import bankrun_version

        print(f"bankrun {bankrun_version()}")
        raise typer.Exit


@cli.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run the same bank on many workers, and see which locks keep the money."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def open_console(*exports: str | None, inputs: Sequence[Path] = ()) -> Terminal:
    """Return where to print: stdout, or stderr where an export takes that.

    Raises CannotStart if an export could not be written, or would be written over one of the ``inputs``; an option
    that was not given is None.
    """
    wanted = [destination for destination in exports if destination is not None]
    store.check_writable(*wanted, inputs=inputs)
    reserve_stdout(*exports)
    return Terminal(stderr=store.STDOUT in wanted)


def reserve_stdout(*exports: str | None) -> None:
    """Keep stdout for an export that takes it: before a user's code is imported, which may print."""
    if store.STDOUT in exports:
        store.reserve_stdout()


@contextmanager
def told_if_cut(result: store.Result, tell: Callable[[], None]) -> Iterator[None]:
    """If the block is cut short, by a signal or an error, mark the result so and tell of it; then that goes its way."""
    try:
        yield
    except BaseException:
        result.provenance = replace(result.provenance, cut_short=True)
        tell()
        raise


def main() -> None:
    """Run the command line. Every error that a user can cause ends in one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    # An interruption that comes while a connection is closed is told once, by us.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every locale has an arrow
    sys.exit(run())


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def run() -> int:
    """Run the command line, and return its exit code."""
    try:
        code = cli(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except Terminated:
        return 128 + signal.SIGTERM
    except Exception as error:
        reported = _report(error)
        if reported is None:
            raise
        return reported
    return code if isinstance(code, int) else OK


def _report(error: Exception) -> int | None:
    """Say in one sentence what a user can have caused, and return the exit code; None for an error of ours."""
    if isinstance(error, (typer.TyperException, CannotStart, *_bank_errors("CannotStart"))):
        # Typer's own errors, for which only this method puts the parameter's name into the sentence.
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        print(f"bankrun: {one_line(message, SENTENCE_MAX)}", file=sys.stderr)
        return CANNOT_START
    if isinstance(error, (BankrunError, *_bank_errors("BankError"))):
        return _report_failure(error, str(error))
    if isinstance(error, _lost_server()):
        # A lost server raises its driver's errors, wherever we happen to be.
        return _report_failure(error, f"failed while running: {_first_line(error)}")
    return None


def _bank_errors(name: str) -> tuple[type[Exception], ...]:
    """Return the bank's error of this name, unless the bank was never loaded: then nothing raised it."""
    found = getattr(sys.modules.get("bank.errors"), name, None)
    return (found,) if isinstance(found, type) else ()


def _lost_server() -> tuple[type[Exception], ...]:
    """Return what drivers raise where a server is lost; those of the workers only if these were loaded."""
    if "bank.postgres" in sys.modules:
        from workers.errors import LOST_SERVER

        return LOST_SERVER
    from psycopg import Error

    return (Error, OSError)


def _first_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error  # SQLAlchemy's errors carry the driver's
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def _report_failure(error: Exception, sentence: str) -> int:
    """Say in one sentence what went wrong."""
    if isinstance(error, OSError):
        # The output itself may be what is broken: a pipe that nobody reads, a full disk.
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with suppress(OSError):
        print(f"bankrun: {one_line(sentence, SENTENCE_MAX)}", file=sys.stderr)
    return FAILED
