"""A replayed schedule as it is saved: its steps with the rows after them, the serial orders, the programs' lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bankrun.results.models.schedule import Background, SerialTold, SourceTold, StepTold
from bankrun.results.telling import Tables, tell_source, tell_states
from bankrun.trials.case import Case, Replayed
from bankrun.trials.running.crew import name_programs
from bankrun.trials.running.execution import read_outcome
from bankrun.trials.running.programs import Call, Program, Script
from bankrun.trials.story import as_steps, endings


def tell_schedule(programs: Sequence[Program], case: Case, replayed: Replayed) -> tuple[list[StepTold], Background]:
    """Return the steps of a replayed schedule, and what they are seen against."""
    serial = case.serial
    known = [rows for rows in replayed.rows if rows is not None]
    told = tell_states([*known, *(one.rows for one in serial.values())])
    after = iter(told)
    before = next(after)
    steps = as_steps(replayed.execution)
    for step, rows in zip(steps, replayed.rows[1:], strict=True):
        if rows is not None:
            step.tables = next(after)
    background = Background(
        before,
        [_tell_serial(order, tables, case) for order, tables in zip(serial, after, strict=True)],
        endings(programs, replayed.execution, replayed.finding),
        _tell_sources(name_programs(programs)),
        case.varying,
    )
    return steps, background


def _tell_serial(order: tuple[str, ...], tables: Tables, case: Case) -> SerialTold:
    ends = read_outcome(case.serial[order]).endings
    return SerialTold("".join(order), tables, [f"{name} {ends[name].describe()}" for name in order])


def _tell_sources(programs: Mapping[str, Program]) -> dict[str, SourceTold]:
    found = {
        name: tell_source(one.file, one.function if isinstance(one, Call) else "")
        for name, one in programs.items()
        if isinstance(one, (Call, Script))
    }
    return {name: source for name, source in found.items() if source is not None}
