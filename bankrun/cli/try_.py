"""``bankrun try``: any programs, every interleaving, and whether each ends like one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bankrun.cli.app import CONTRADICTED, open_console
from bankrun.errors import CannotStart
from bankrun.render.terminal import Terminal
from bankrun.results import store
from bankrun.results.models.trial import TrialResult
from bankrun.trials.case import INCONCLUSIVE, SAFE
from bankrun.trials.judging.judge import BROKEN, ERROR, NEEDS_RETRY
from bankrun.trials.running.programs import (
    Call,
    Command,
    Program,
    Script,
    describe_function,
    pair,
    read_command,
    read_program,
)
from bankrun.trials.saving import as_result, begin_provenance, given_files, read_question
from bankrun.trials.trial import EXECUTIONS, SECONDS, Question, Trial, put_on_trial, replay_schedule
from bankrun.trials.windows import write_script

STYLES = {SAFE: "green", BROKEN: "bold red", ERROR: "bold red", NEEDS_RETRY: "yellow", INCONCLUSIVE: "yellow"}


def try_(
    programs: Annotated[
        list[str] | None, typer.Argument(help="FILE.py:function(1, 'a') or FILE.sql; one alone meets itself.")
    ] = None,
    command: Annotated[
        list[str] | None, typer.Option(help="A program in any language, run without a shell. Repeatable.")
    ] = None,
    setup: Annotated[
        str | None, typer.Option(metavar="FILE", help="Schema and data: FILE.sql or FILE.py:function.")
    ] = None,
    instances: Annotated[
        Literal["two", "same", "both"], typer.Option(help="Two processes, two threads of one, or both.")
    ] = "both",
    invariant: Annotated[str | None, typer.Option(metavar="SELECT", help="Each row it returns is a violation.")] = None,
    judge: Annotated[
        Literal["serial", "invariant"], typer.Option(help="Judge by serial orders, or by the invariant only.")
    ] = "serial",
    ignore: Annotated[list[str] | None, typer.Option(metavar="TABLE.COLUMN", help="Not compared. Repeatable.")] = None,
    isolation: Annotated[
        str | None, typer.Option(help="Of transactions that name none, such as `repeatable read`.")
    ] = None,
    preemptions: Annotated[int | None, typer.Option(help="How often one may be interrupted, at most.")] = None,
    executions: Annotated[int, typer.Option(help="How many interleavings are run, at most.")] = EXECUTIONS,
    seconds: Annotated[float, typer.Option(help="How long each case may take.")] = SECONDS,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TEMPLATE", help="A variable with {url} {host} {port} {user} {database}. Repeatable."
        ),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Use scratch databases on this server.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 for `needs retry` and `inconclusive`.")] = False,
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything; `-` is stdout.")] = None,
    report: Annotated[str | None, typer.Option(metavar="FILE", help="Write it as one HTML file.")] = None,
) -> None:
    """Run every interleaving of two programs on a real Postgres: each must end like one after the other.

    Nothing of the programs is changed: DATABASE_URL and PG* name the database. What they do outside Postgres happens
    in every execution. Exits with 3 if one is broken.
    """
    question = Question(
        _read_programs(programs or [], command or []),
        _read_setup(setup),
        invariant,
        judge,
        instances,
        tuple(ignore or ()),
        isolation,
        preemptions,
        executions,
        seconds,
        tuple(env or ()),
        database_url,
    )
    console = open_console(export_json, report, inputs=given_files(question))
    provenance = begin_provenance(question)
    with _Telling(console) as telling:
        trial = put_on_trial(question, tell=telling.tell)
    result = as_result(trial, provenance)
    if export_json is not None:
        store.save(export_json, result)
    if report is not None:
        from bankrun.render.trial_page import trial_page

        store.write(report, trial_page(result))
    show_trial(console, trial, saved=export_json)
    if trial.verdict in (BROKEN, ERROR) or (strict and trial.verdict != SAFE):
        raise typer.Exit(CONTRADICTED)


def show_trial(console: Console, trial: Trial, *, saved: str | None) -> None:
    """Print the story of what is wrong, and then the verdicts."""
    if trial.story:
        console.print(trial.story, markup=False, soft_wrap=True)
        console.print()
    for case, sentence in zip(trial.cases, trial.sentences, strict=True):
        where = "" if len(trial.cases) == 1 else {"two": "two processes: ", "same": "one process: "}[case.instances]
        console.print(f"{where}{sentence}", style=STYLES[case.verdict], markup=False, soft_wrap=True)
    if trial.shortest and saved not in (None, store.STDOUT):
        console.print(f"bankrun replay {saved} {trial.shortest}", markup=False, soft_wrap=True)
        console.print(f"bankrun page {saved}", markup=False, soft_wrap=True)


def replay_trial(file: Path, schedule: str, export_sql: str | None) -> None:
    """Run one schedule of a saved trial again, and tell it step by step."""
    question = read_question(store.read_as(TrialResult, file))
    console = open_console(export_sql, inputs=[file, *given_files(question)])
    execution, _, story = replay_schedule(question, schedule)
    if export_sql is not None:
        store.write(export_sql, "\n".join(write_script(schedule, question.programs, question.setup, execution)) + "\n")
    console.print(story, markup=False, soft_wrap=True)


def _read_programs(programs: list[str], commands: list[str]) -> tuple[Program, ...]:
    return pair([*(read_program(one) for one in programs), *(read_command(one) for one in commands)])


def _read_setup(setup: str | None) -> Call | Script | None:
    if setup is None:
        return None
    program = describe_function(setup)
    if isinstance(program, Command):
        raise CannotStart("--setup is FILE.sql or FILE.py:function")
    return program


class _Telling:
    """Says on a terminal how far a trial is, and leaves nothing behind."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Terminal(stderr=True),
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("a Postgres of its own, and the set-up", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, what: str, count: int) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=f"{count:,}  {what}" if count else what)
