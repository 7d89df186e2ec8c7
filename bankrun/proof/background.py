"""A broken interleaving as it is saved: its steps with the rows after them, the serial orders, the strategy's lines."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import bank
from bank.strategies import Strategy
from bankrun.proof.cases import Case
from bankrun.proof.replay import tell_money, tell_step
from bankrun.results.models.schedule import Background, SerialTold, SourceTold, StepTold
from bankrun.results.telling import tell_source, tell_states
from bankrun.schedule import CLOCK, Rows, Step, follow

if TYPE_CHECKING:
    from bankrun.proof.prover import Courtroom, Judged

COLUMNS = {
    "bankrun.accounts": ("id", "balance", "last_entry"),
    "bankrun.entries": ("id", "account_id", "delta", "before", "after", "previous_entry"),
    "bankrun.transfers": ("debit", "credit", "amount", "status"),
}
"""What there is to see of the bank. The rest is times, names, and what is the same in any order."""
OURS = Path(bank.__file__).parent


def tell_schedule(courtroom: Courtroom, case: Case, schedule: str) -> tuple[list[StepTold], Background]:
    """Return the steps of one interleaving, which is run again, and what they are seen against."""
    engine = courtroom.engine
    engine.restore()
    begins = engine.read_rows()
    judged, after = _watch(courtroom, partial(courtroom.replay, schedule, sources=True))
    orders = list(permutations(case.messages()))
    serial = [_watch(courtroom, partial(_run_serially, courtroom, order)) for order in orders]
    ends = [next((rows for rows in reversed(states) if rows is not None), begins) for _, states in serial]
    told = iter(tell_states([begins, *(rows for rows in after if rows is not None), *ends], COLUMNS))
    before = next(told)
    names = list(case.messages())
    steps = [_tell(step, names, courtroom.strategy) for step in judged.execution.steps]
    for step, rows in zip(steps, after, strict=True):
        if rows is not None:
            step.tables = next(told)
    background = Background(
        before,
        [
            SerialTold("".join(order), next(told), list(tell_money(one.audit, one.torn)))
            for order, (one, _) in zip(orders, serial, strict=True)
        ],
        list(tell_money(judged.audit, judged.torn)),
    )
    source = _tell_class(courtroom.strategy)
    background.sources = dict.fromkeys(names, source) if source is not None else {}
    return steps, background


def _run_serially(courtroom: Courtroom, order: Sequence[str]) -> Judged:
    return courtroom.judge(courtroom.engine.execute(follow(""), order))


def _watch(courtroom: Courtroom, run: Callable[[], Judged]) -> tuple[Judged, list[Rows | None]]:
    """Return an execution, and the committed rows after each of its steps, None where they were not read."""
    engine, seen = courtroom.engine, dict[int, Rows | None]()
    before = engine.on_commit

    def look(step: Step) -> None:
        if before is not None:
            before(step)
        seen[id(step)] = engine.look_at_rows()

    engine.on_commit = look
    try:
        judged = run()
    finally:
        engine.on_commit = before
    return judged, [seen.get(id(step)) for step in judged.execution.steps]


def _tell(step: Step, names: Sequence[str], strategy: type[Strategy]) -> StepTold:
    told = {name: [line.plain for line in lines] for name, lines in tell_step(step, names)}
    lines = told.pop(names[0] if step.participant == CLOCK else step.participant)
    file, number = _find_spot(step.source, strategy)
    return StepTold(
        step.participant,
        step.kind,
        [line for line in lines if not line.startswith("waits for ")],
        f"{Path(file).name}:{number}" if file else "",
        list(step.blocked_by),
        sorted({*step.woken, *step.then}),
        linecache.getline(file, number).strip(),
        {name: lines[1:] for name, lines in told.items()},
    )


def _find_spot(stack: Sequence[tuple[str, int, str]], strategy: type[Strategy]) -> tuple[str, int]:
    """Return the innermost line of the strategy's own file in a stack; else of the strategies, else of the bank."""
    own = _find_file(strategy)
    rooms: list[Callable[[Path], bool]] = [
        lambda file: str(file) == own,
        lambda file: OURS / "strategies" in file.parents,
        lambda file: OURS in file.parents and OURS / "postgres" not in file.parents,
    ]
    for is_there in rooms:
        for file, line, _ in reversed(stack):
            if is_there(Path(file)):
                return file, line
    return "", 0


def _tell_class(strategy: type[Strategy]) -> SourceTold | None:
    file = _find_file(strategy)
    return tell_source(Path(file), strategy.__name__) if file is not None else None


def _find_file(strategy: type[Strategy]) -> str | None:
    try:
        return inspect.getsourcefile(strategy)
    except TypeError:  # its module comes from no file
        return None
