"""Serial orders: one program after the other. They are what interleavings are measured by, so each is run twice."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from typing import LiteralString

from bankrun.errors import BankrunError, CannotStart
from bankrun.schedule import Engine, Execution, Step
from bankrun.schedule.chatter import find_chatter
from bankrun.trials.judging.outcomes import Outcome
from bankrun.trials.judging.values import Windows
from bankrun.trials.judging.yardstick import Order
from bankrun.trials.running.execution import read_outcome
from bankrun.trials.running.programs import Program
from bankrun.trials.running.scratch import move_sequences

APART_SECONDS = 1.1
"""Between the two runs of an order: what has the time of day in seconds is another then."""


class FailsAlways(BankrunError):
    """A program fails in every serial order: there is nothing to compare."""


class SerialRuns:
    """Runs serial orders, and remembers their outcomes."""

    def __init__(self, engine: Engine, programs: Mapping[str, Program], windows: Windows) -> None:
        self._engine = engine
        self._programs = programs
        self._windows = windows
        self._large_objects = look_at_large_objects(engine)
        self.executions: dict[Order, Execution] = {}
        self.outcomes: dict[Order, Outcome] = {}
        self.pairs: dict[Order, tuple[Outcome, Outcome]] = {}

    def run(self, order: Order) -> Outcome:
        """Return what these programs leave behind, one after the other; each order is run once."""
        if order not in self.outcomes:
            self.executions[order], self.outcomes[order] = self._execute(order)
        return self.outcomes[order]

    def run_all_twice(self) -> None:
        """Run all orders of all programs, and then all again, a second later and with sequences moved on.

        Raises CannotStart if a program sends nothing to Postgres, and FailsAlways if one fails in every order.
        """
        begun = time.monotonic()
        orders = list(permutations(self._programs))
        for number, order in enumerate(orders):
            self.run(order)
            if number == 0:
                self._check_connected(self.executions[order].steps)
                self._check_compared()
        self._check_successes(orders)
        self._engine.stepper.chatter = find_chatter(self.executions.values(), self._engine.admin)
        time.sleep(max(0.0, begun + APART_SECONDS - time.monotonic()))
        self.repeat(orders)

    def repeat(self, orders: Sequence[Order]) -> None:
        """Run orders once more, with sequences moved on; the outcomes are pairs with those of before."""
        for order in orders:
            _, second = self._execute(order, moved=True)
            self.pairs[order] = (self.run(order), second)

    def refresh(self) -> None:
        """Run all orders anew: an outcome may depend on the hour, or the day."""
        orders = list(self.pairs)
        before = dict(self.outcomes)
        self.outcomes.clear()
        for order in orders:
            self.run(order)
            _, later = self._execute(order, moved=True)  # else what was drawn twice would pass for a constant
            self.pairs[order] = (before[order], later)

    def _execute(self, order: Order, *, moved: bool = False) -> tuple[Execution, Outcome]:
        prepare = partial(move_sequences, windows=self._windows) if moved else None
        execution = self._engine.execute(lambda able, _: able[0], order, prepare=prepare)
        if execution.stuck:
            raise BankrunError(f"{self._say(order)}, one after the other, does not end: {execution.stuck}")
        return execution, read_outcome(execution)

    def _check_connected(self, steps: Sequence[Step]) -> None:
        for name, program in self._programs.items():
            if not any(step.participant == name for step in steps):
                ending = self.outcomes[tuple(self._programs)].endings[name]
                if ending.failed:
                    raise CannotStart(
                        f"{program.short_name} fails before it asks Postgres: {_why(ending.error, ending.message)}"
                    )
                raise CannotStart(
                    f"{program.short_name} sends nothing to the Postgres that DATABASE_URL and PGHOST name: "
                    "does it read another variable? Set that with --env NAME='{url}'"
                )

    def _check_compared(self) -> None:
        """Refuse what is no row of any table."""
        if look_at_large_objects(self._engine) != self._large_objects:
            raise CannotStart(
                "large objects are made, written or removed, and are not compared: keep them out of a trial"
            )

    def _check_successes(self, orders: Sequence[Order]) -> None:
        for name, program in self._programs.items():
            endings = [self.outcomes[order].endings[name] for order in orders]
            if all(ending.failed for ending in endings):
                first = endings[0]
                code = f" ({first.sqlstate})" if first.sqlstate else ""
                raise FailsAlways(
                    f"{program.short_name} fails in every order: {_why(first.error, first.message)}{code}"
                )

    def _say(self, order: Order) -> str:
        return " then ".join(f"{name} ({self._programs[name].short_name})" for name in order)


def look_at_large_objects(engine: Engine) -> tuple[object, ...] | None:
    """Return how many there are, and a digest of what is in them where we may look into them: as a superuser."""
    query: LiteralString = "SELECT count(*) FROM pg_largeobject_metadata"
    if engine.capabilities.is_superuser:
        query = """
            SELECT count(*), (SELECT md5(string_agg(concat_ws(':', loid, pageno, md5(data)), ' ' ORDER BY loid, pageno))
                              FROM pg_largeobject) FROM pg_largeobject_metadata
        """
    return engine.admin.execute(query).fetchone()


def _why(error: str, message: str) -> str:
    lines = [line for line in message.strip().splitlines() if line.strip()]
    return f"{error}: {lines[-1] if error.startswith('exit') else lines[0]}" if lines else error
