"""One case: some programs, in two processes or in one, every interleaving of them, and what was found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from bankrun.errors import BankrunError
from bankrun.quoting import one_line
from bankrun.results.models.schedule import Background, StepTold
from bankrun.schedule import Budget, Diverged, Engine, Execution, Exploration, Rows, Step, explore, replay
from bankrun.trials.judging.differences import Keys
from bankrun.trials.judging.invariant import Invariant
from bankrun.trials.judging.judge import BROKEN, ERROR, NEEDS_RETRY, SERIAL, Finding, Judge, judge_invariant
from bankrun.trials.judging.matching import TooAlike
from bankrun.trials.judging.outcomes import Outcome, Place
from bankrun.trials.judging.values import Windows
from bankrun.trials.judging.yardstick import Yardstick, learn, learned
from bankrun.trials.running.crew import SAME
from bankrun.trials.running.execution import read_outcome, read_tables
from bankrun.trials.running.programs import Program
from bankrun.trials.running.serial import SerialRuns
from bankrun.trials.story import leave_out_chatter

REPLAYS = 3
"""A fault is reported if it shows as often as this when its schedule is run again."""
SAFE, INCONCLUSIVE = "safe", "inconclusive"
TEXT_MAX = 80
STARTED = "-"
"""Between the order in which programs were started and the steps: two/BA-AABB."""
Tell = Callable[[str, int], None]
"""Is told what is being done, and how many executions there were."""


@dataclass(slots=True)
class CaseFound:
    """What was found in one case."""

    instances: str
    verdict: str = INCONCLUSIVE
    complete: bool = False
    executions: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    schedules: dict[str, str] = field(default_factory=dict)
    """The shortest schedule of each kind of finding."""
    findings: dict[str, Finding] = field(default_factory=dict)
    reason: str = ""
    not_compared: list[Place] = field(default_factory=list)
    story: str = ""
    steps: list[StepTold] = field(default_factory=list)
    background: Background | None = None
    seconds: float = 0.0
    serial_executions: int = 0

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong so far."""
        return not self.counts.keys() & {BROKEN, ERROR}

    @property
    def shortest(self) -> str:
        """The id of the shortest schedule that shows the verdict; nothing if there is none."""
        kind = self.verdict if self.verdict in self.schedules else ""
        return f"{self.instances}/{self.schedules[kind]}" if kind else ""

    @property
    def difference(self) -> str:
        """In a sentence, what is wrong with it."""
        found = self.findings.get(self.verdict)
        return found.difference if found is not None else ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked for."""

    invariant: Invariant | None = None
    compares_serial: bool = True
    ignored: frozenset[Place] = frozenset()
    preemptions_max: int | None = None
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True)
class Replayed:
    """One schedule as it was run again: what happened, what it is worth, and the rows after each step that committed.

    ``rows`` are those before the first step, and then one state for each step, None where nothing was read.
    """

    execution: Execution
    finding: Finding | None
    rows: list[Rows | None]


class Case:
    """Programs under the engine, on a database that was set up."""

    def __init__(
        self,
        engine: Engine,
        programs: Mapping[str, Program],
        instances: str,
        asked: Asked,
        *,
        keys: Keys,
        windows: Windows,
    ) -> None:
        self._engine = engine
        self._asked = asked
        self._windows = windows
        self._keys = keys
        self._instances = instances
        self._serial = SerialRuns(engine, programs, windows)
        self._judge: Judge | None = None
        self._begins = engine.read_rows()
        self._before = Outcome(read_tables(self._begins))

    def learn(self) -> None:
        """Run the serial orders, and learn from them what can be compared.

        Raises NotTheSame if one does not end the same way twice, and BankrunError if the invariant does not hold there.
        """
        self._serial.run_all_twice()
        self._make_judge()

    def _make_judge(self) -> None:
        if not self._asked.compares_serial:
            return
        stick = learn(self._serial.pairs, self._before, self._windows, self._asked.ignored)
        if self._judge is not None:
            before = self._judge.stick
            stick = Yardstick(
                stick.windows,
                stick.constants | before.constants,
                stick.generated | before.generated,
                stick.ignored | before.ignored,
            )
        orders = {order: self._serial.outcomes[order] for order in self._serial.pairs}
        self._judge = Judge(stick, orders, self._serial_outcome, self._keys)

    def _serial_outcome(self, order: tuple[str, ...]) -> Outcome:
        return self._serial.run(order) if order else self._before

    def explore(self, tell: Tell) -> CaseFound:
        """Run every interleaving within the budget, and return what was found."""
        found = CaseFound(self._instances)
        stuck: list[str] = []
        several: list[str] = []
        # The same interleavings in another way count where they end otherwise.
        begins_again = looks_again = False

        def look(execution: Execution) -> bool:
            again = begins_again or (looks_again and execution.started == "".join(self._engine.names))
            if not again:
                found.executions += 1
            tell(f"{self._instances}: {execution.schedule}", found.executions)
            several.extend(_say_several(execution))
            if execution.stuck and execution.stuck_kind != "cycle":  # a cap tells nothing
                stuck.append(execution.stuck)
                return False
            try:
                finding = self.judge(execution)
            except TooAlike as error:
                stuck.append(str(error))
            else:
                if not again or finding.kind in (BROKEN, ERROR) or finding.kind not in found.counts:
                    found.executions += again
                    self._note(found, self._name(execution), finding)
            return False

        def begin_again() -> bool:
            nonlocal begins_again
            begins_again = len(self._engine.names) == 2 and found.is_well
            return begins_again

        def look_again(*, where: bool = True) -> bool:
            nonlocal looks_again
            wanted = where and found.is_well
            looks_again = looks_again or wanted
            return wanted

        exploration = explore(
            self._engine,
            look,
            budget=self._asked.budget,
            preemptions_max=self._asked.preemptions_max,
            # What one program leaves in its process, the other finds there.
            remembers=lambda: look_again(where=self._instances == SAME),
            insists=look_again,
            starts=begin_again,
        )
        found.seconds = exploration.seconds
        found.serial_executions = len(self._serial.outcomes) + len(self._serial.pairs)
        if self._judge is not None:
            found.not_compared = learned(self._judge.stick, self._asked.ignored)
        self._conclude(found, exploration, [*stuck, *several])
        return found

    def _note(self, found: CaseFound, schedule: str, finding: Finding) -> None:
        found.counts[finding.kind] = found.counts.get(finding.kind, 0) + 1
        known = found.schedules.get(finding.kind)
        if known is None or _length(schedule) < _length(known):
            found.schedules[finding.kind] = schedule
            found.findings[finding.kind] = finding

    def _conclude(self, found: CaseFound, exploration: Exploration, stuck: Sequence[str]) -> None:
        found.complete = exploration.complete and not stuck
        found.reason = stuck[0] if stuck else exploration.reason
        for kind in (BROKEN, ERROR):
            if found.counts.get(kind):
                if self._shows_again(found, kind):
                    found.verdict = kind
                else:
                    found.verdict, found.complete = INCONCLUSIVE, False
                    found.reason = (
                        f"{found.instances}/{found.schedules[kind]} was {kind} once, and not when it was run again"
                    )
                return
        if not found.complete:
            found.verdict = INCONCLUSIVE
        else:
            found.verdict = NEEDS_RETRY if found.counts.get(NEEDS_RETRY) else SAFE

    def _shows_again(self, found: CaseFound, kind: str) -> bool:
        """Run the shortest schedule again, beside serial orders that are as young."""
        if self._judge is not None:
            self._serial.refresh()
            self._make_judge()
        for _ in range(REPLAYS):
            try:
                finding = self.judge(self._replay(found.schedules[kind]))
            except (Diverged, TooAlike):
                return False
            if finding.kind != kind:
                return False
            found.findings[kind] = finding
        return True

    def judge(self, execution: Execution) -> Finding:
        """Return what an execution is worth."""
        if execution.stuck:
            return Finding(BROKEN, (), _say_cycle(execution.stuck))
        finding = Finding(SERIAL)
        if self._judge is not None:
            outcome = read_outcome(execution)
            finding = self._judge.judge(outcome, partial(self._run_again, execution, outcome))
        if finding.kind != BROKEN and self._asked.invariant is not None:
            violated = judge_invariant(self._asked.invariant.ask())
            if violated.kind == BROKEN:
                return violated
        return finding

    def _run_again(self, execution: Execution, before: Outcome, names: Sequence[str]) -> Outcome:
        """Run programs that met a conflict once more; the others have ended as they did."""
        again = read_outcome(self._engine.run_again(names))
        return Outcome(again.tables, {**before.endings, **again.endings})

    def replay(self, schedule: str) -> Replayed:
        """Run one schedule, with the line of each step. Raises BankrunError if it cannot be followed."""
        seen: dict[int, Rows | None] = {}

        def look(step: Step) -> None:
            seen[id(step)] = self._engine.look_at_rows()

        self._engine.stepper.sources, self._engine.on_commit = True, look
        try:
            execution = self._replay(schedule)
        except Diverged as error:
            raise BankrunError(f"{self._instances}/{schedule} cannot be followed here: {error}") from error
        finally:
            self._engine.stepper.sources, self._engine.on_commit = False, None
        finding = self.judge(execution)
        rows = [self._begins, *(seen.get(id(step)) for step in execution.steps)]
        if execution.steps:
            rows[-1] = execution.rows
        return Replayed(leave_out_chatter(execution, self._engine.stepper.chatter), finding, rows)

    @property
    def serial(self) -> Mapping[tuple[str, ...], Execution]:
        """The serial orders of all programs, as they were run."""
        return {order: self._serial.executions[order] for order in self._serial.pairs}

    @property
    def varying(self) -> list[str]:
        """The columns that are generated, or are never the same."""
        stick = self._judge.stick if self._judge is not None else None
        places = stick.generated | stick.ignored if stick is not None else frozenset()
        return sorted(str(place) for place in places if place.what == "row")

    def _replay(self, schedule: str) -> Execution:
        started, separator, steps = schedule.rpartition(STARTED)
        return replay(self._engine, steps, started if separator else "")

    def _name(self, execution: Execution) -> str:
        """Return a schedule's id; who was started first is in it where that is not the usual one."""
        usual = "".join(self._engine.names)
        before = f"{execution.started}{STARTED}" if execution.started not in ("", usual) else ""
        return before + execution.schedule


def _say_several(execution: Execution) -> Iterator[str]:
    """Return a sentence for each message with several statements: nobody was let in between them."""
    for step in execution.steps:
        for name, told in ((step.participant, step.statements), *step.then.items()):
            for one in told:
                if one.is_several:
                    sent = one_line(" ".join(one.sql.split()), TEXT_MAX)
                    yield f"{name} sends several statements in one message, between which nothing was run: {sent}"


def _say_cycle(stuck: str) -> str:
    return stuck.replace("nobody can go on", "neither ends", 1)


def _length(schedule: str) -> tuple[int, int, str]:
    """Return by what schedules are short: how often somebody is interrupted, then how many steps they have."""
    return len(re.findall(r"(.)(?!\1)", schedule)), len(schedule), schedule
