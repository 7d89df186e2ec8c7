"""From programs to participants: A, B, … in processes of their own, or as threads of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bankrun.errors import CannotStart
from bankrun.schedule import Call as ForkedCall
from bankrun.schedule import Command as StartedCommand
from bankrun.schedule.cast import outside
from bankrun.trials.running import scratch
from bankrun.trials.running.programs import Call, Program, Script

NAMES = "ABCD"
SAME, TWO = "same", "two"
FUNCTION = "bankrun.trials.running.participant:call"
PREPARE = "bankrun.trials.running.participant:prepare"


def name_programs(programs: Sequence[Program]) -> dict[str, Program]:
    """Return the programs by the names they have in schedules."""
    return dict(zip(NAMES, programs, strict=False))


def wanted_instances(instances: str, programs: Sequence[Program]) -> tuple[str, ...]:
    """Return where they are tried. Raises CannotStart for programs that cannot be threads of one process."""
    functions = all(isinstance(one, Call) for one in programs)
    if instances == SAME and not functions:
        raise CannotStart("--instances same: only Python functions can be threads of one process")
    if instances not in (SAME, TWO, "both"):
        raise CannotStart(f"instances={instances!r}: same, two or both")
    if instances == "both":
        return (TWO, SAME) if functions and outside.is_known() else (TWO,)
    if instances == SAME and not outside.is_known():
        raise CannotStart("--instances same needs Linux on x86-64: which thread waits is asked of /proc")
    return (instances,)


def participants(programs: Mapping[str, Program], instances: str) -> list[ForkedCall | StartedCommand]:
    """Return what the engine is to run."""
    return [_participant(name, program, instances) for name, program in programs.items()]


def _participant(name: str, program: Program, instances: str) -> ForkedCall | StartedCommand:
    if isinstance(program, Call):
        return ForkedCall(
            name,
            FUNCTION,
            (str(program.file), program.function, list(program.arguments), dict(program.keywords)),
            kept=False,
            process="one" if instances == SAME else "",
            prepare=PREPARE,
            prepare_arguments=(str(program.file), program.function),
        )
    argv = [*scratch.psql_argv(), "-f", str(program.file)] if isinstance(program, Script) else list(program.words)
    directory = program.file.parent if isinstance(program, Script) else Path.cwd()
    return StartedCommand(name, argv, directory=str(directory))


def check_arguments(program: Program) -> None:
    """Raise CannotStart for arguments that cannot be handed to another process as they are."""
    if isinstance(program, Call):
        given = [list(program.arguments), dict(program.keywords)]
        try:
            same = json.loads(json.dumps(given)) == given
        except (TypeError, ValueError):
            same = False
        if not same:
            raise CannotStart(f"{program.name}: arguments are numbers, texts, lists, None, and objects with text keys")
