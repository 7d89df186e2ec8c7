"""A trial as it is saved, and what it takes to run one of its schedules again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from bankrun.errors import CannotStart
from bankrun.results.models.trial import TrialCase, TrialResult
from bankrun.results.provenance import Provenance, describe_machine, write_command
from bankrun.trials.case import CaseFound
from bankrun.trials.judging.judge import BROKEN, ERROR, NEEDS_RETRY
from bankrun.trials.running.programs import Call, Command, Program, Script, pair, read_command, read_program
from bankrun.trials.trial import EXECUTIONS, SECONDS, Question, Trial


def as_result(trial: Trial, provenance: Provenance) -> TrialResult:
    """Return what is saved of a trial."""
    question = trial.question
    return TrialResult(
        provenance,
        [write_program(one) for one in question.programs],
        [_case(case, sentence, trial) for case, sentence in zip(trial.cases, trial.sentences, strict=True)],
        write_program(question.setup) if question.setup is not None else None,
        question.invariant,
        question.judge,
        list(question.ignore),
        question.isolation,
        question.preemptions,
        list(question.env),
        hash_files(question),
    )


def begin_provenance(question: Question) -> Provenance:
    """Return the provenance of a trial that begins now."""
    return Provenance.begin(write_question(question), environment=describe_machine())


def write_question(question: Question) -> str:
    """Return the command that asks a question again; a server's address, which may have a password, is left out."""
    scripts = [write_program(one) for one in question.programs if not isinstance(one, Command)]
    commands = [one.name for one in question.programs if isinstance(one, Command)]
    return write_command(
        "try",
        *scripts,
        command=commands,
        setup=write_program(question.setup) if question.setup is not None else None,
        instances=question.instances if question.instances != "both" else None,
        invariant=question.invariant,
        judge=question.judge if question.judge != "serial" else None,
        ignore=question.ignore,
        isolation=question.isolation,
        preemptions=question.preemptions,
        executions=question.executions if question.executions != EXECUTIONS else None,
        seconds=question.seconds if question.seconds != SECONDS else None,
        env=question.env,
    )


def write_program(program: Program) -> str:
    """Return a program as the command line takes it, its file as seen from here."""
    if isinstance(program, Command):
        return f"--command {program.name}"
    file = os.path.relpath(program.file)
    return f"{file}:{program.short_name}" if isinstance(program, Call) else file


def read_question(result: TrialResult) -> Question:
    """Return what was asked in a saved trial. Raises CannotStart if its files are not here, or are others by now."""
    setup = read_program(result.setup) if result.setup is not None else None
    question = Question(
        pair([_read(one) for one in result.programs]),
        setup,
        result.invariant,
        result.judge,
        ignore=tuple(result.ignored),
        isolation=result.isolation,
        preemptions=result.preemptions,
        env=tuple(result.env),
    )
    changed = [name for name, digest in hash_files(question).items() if result.files.get(name) not in (None, digest)]
    if changed:
        raise CannotStart(f"{', '.join(changed)} changed since the trial: its schedules are of the old one; try again")
    return question


def _read(text: str) -> Program:
    command = text.removeprefix("--command ")
    return read_command(command) if command != text else read_program(text)


def given_files(question: Question) -> list[Path]:
    """Return the files that were given: programs and set-up, each once."""
    given: Sequence[Program | None] = (*question.programs, question.setup)
    return list(dict.fromkeys(one.file for one in given if isinstance(one, (Call, Script))))


def hash_files(question: Question) -> dict[str, str]:
    """Return the SHA-256 of each file that was given."""
    return {os.path.relpath(file): _hash(file) for file in given_files(question)}


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _case(case: CaseFound, sentence: str, trial: Trial) -> TrialCase:
    return TrialCase(
        case.instances,  # type: ignore[arg-type]
        case.verdict,  # type: ignore[arg-type]
        case.complete,
        case.executions,
        case.counts.get(BROKEN, 0),
        case.counts.get(ERROR, 0),
        case.counts.get(NEEDS_RETRY, 0),
        case.shortest or None,
        case.difference,
        case.reason,
        sentence,
        case.story,
        list(case.steps),
        [str(place) for place in case.not_compared],
        round(case.seconds, 3),
        case.background,
    )
