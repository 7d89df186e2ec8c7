"""The search by itself, over programs that are only made up: it loses no outcome, and runs no order twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankrun.schedule import Budget, Diverged, Execution, Footprint, Outcome, Step, depends, explore, follow, replay

Operation = tuple[str, str]  # read or write, and of which variable
Choose = Callable[[Sequence[str], Sequence[Step]], str | None]
operations = st.tuples(st.sampled_from(["read", "write"]), st.sampled_from("xyz"))
programs = st.lists(st.lists(operations, min_size=1, max_size=3), min_size=2, max_size=3)


class MadeUp:
    """Participants that read and write variables, each write being what was read so far and who wrote it."""

    def __init__(self, programs: Sequence[Sequence[Operation]]) -> None:
        self.programs = dict(zip("ABC", programs, strict=False))
        self.names: Sequence[str] = list(self.programs)
        self.start_order: Sequence[str] = self.names
        self.schedules: list[str] = []

    def execute(self, choose: Choose, order: Sequence[str] | None = None) -> Execution:
        variables: dict[str, str] = {}
        seen: dict[str, list[str]] = {name: [] for name in self.names}
        execution = Execution()
        done = dict.fromkeys(self.names, 0)
        while able := [name for name in self.names if done[name] < len(self.programs[name])]:
            chosen = choose(able, execution.steps)
            if chosen is None:
                execution.cut = True
                return execution
            kind, variable = self.programs[chosen][done[chosen]]
            done[chosen] += 1
            footprint = Footprint()
            if kind == "read":
                seen[chosen].append(variables.get(variable, ""))
                footprint.reads.add(("t", variable))
            else:
                variables[variable] = chosen + str(seen[chosen])
                footprint.lock(("t", variable))
                footprint.shows.add(("t", variable))
            execution.steps.append(Step(chosen, kind, variable, footprint=footprint))
            execution.schedule += chosen
        execution.outcomes = {name: Outcome(result=str(found)) for name, found in seen.items()}
        execution.rows = {"t": [f"{name}={value}" for name, value in sorted(variables.items())]}
        self.schedules.append(execution.schedule)
        return execution


def found_by(engine: MadeUp, **options: object) -> tuple[set[str], int, bool]:
    outcomes: set[str] = set()

    def judge(execution: Execution) -> None:
        outcomes.add(repr((execution.rows, [o.result for o in execution.outcomes.values()])))

    result = explore(engine, judge, budget=Budget(100_000, 600), **options)  # type: ignore[arg-type]
    return outcomes, result.executions, result.complete


@settings(max_examples=150, deadline=None)
@given(programs)
def test_sleep_sets_lose_no_outcome_and_no_order_is_run_twice(made_up: list[list[Operation]]) -> None:
    full, pruned = MadeUp(made_up), MadeUp(made_up)
    everything, count, complete = found_by(full, pruned=False)
    some, count_pruned, complete_pruned = found_by(pruned)
    assert complete
    assert complete_pruned
    assert some == everything
    assert count_pruned <= count
    assert len(set(full.schedules)) == len(full.schedules)


@settings(max_examples=50, deadline=None)
@given(programs)
def test_fewer_preemptions_come_first(made_up: list[list[Operation]]) -> None:
    engine = MadeUp(made_up)
    found_by(engine, pruned=False)
    lengths = {name: len(program) for name, program in engine.programs.items()}
    counts = [preemptions(schedule, lengths) for schedule in engine.schedules]
    assert counts == sorted(counts)


def preemptions(schedule: str, lengths: dict[str, int]) -> int:
    """How often a participant is interrupted that could have gone on."""
    left = dict(lengths)
    count = 0
    for before, after in zip(schedule, schedule[1:] + schedule[-1], strict=True):
        left[before] -= 1
        count += after != before and left[before] > 0
    return count


def test_two_programs_without_anything_in_common_are_run_once() -> None:
    assert found_by(MadeUp([[("write", "x")] * 3, [("write", "y")] * 3]))[1] == 1


def test_a_rule_that_calls_everything_independent_is_noticed() -> None:
    racing = [[("read", "x"), ("write", "x")]] * 2
    everything = found_by(MadeUp(racing), pruned=False)[0]
    assert found_by(MadeUp(racing), depends_on=lambda a, b: False)[0] != everything
    assert found_by(MadeUp(racing), depends_on=depends)[0] == everything


def test_a_schedule_is_followed_or_it_is_said_why_not() -> None:
    engine = MadeUp([[("write", "x")], [("write", "x")] * 2])
    assert replay(engine, "BAB").schedule == "BAB"
    with pytest.raises(Diverged, match="step 2 of AAB: A cannot go; B can"):
        engine.execute(follow("AAB"))


def test_a_judge_can_stop_it() -> None:
    engine = MadeUp([[("write", "x")] * 2] * 2)
    result = explore(engine, lambda execution: True)
    assert (result.executions, result.stopped, result.complete) == (1, True, False)
