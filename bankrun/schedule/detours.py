"""Detours: what has no end, or takes time, and is left out of the search for that; each is shown once.

Who has been in conflict rests until another has moved, for it would only meet the same conflict again. Not so if it
counts: whoever gives up after some attempts, and goes on without the lock, does that only if it goes on at once. And no
clock runs by itself: a wait that ends after some time ends so only if that time passes.

So from each point where somebody rested, or waited, one more execution begins: it goes on alone, to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bankrun.schedule.errors import Diverged
from bankrun.schedule.trace import CLOCK, CONFLICTS, Execution, Step

STEPS_ALONE_MAX = 500
"""So long is somebody followed who comes to no end: 200 steps are enough for everybody else."""
RUN_OUTS = {1: 2, 2: 3, 3: 6}
"""If its time ran out so often in one execution, how often it does in the next one."""
DETOURS_MAX = 100
"""So many are shown, those with the shortest way first."""


@dataclass(frozen=True, slots=True)
class Detour:
    """After these steps ``name`` goes on at once, or, if it ``times_out``, when the time has run out that it waits."""

    way: str
    name: str
    times_out: bool
    place: tuple[object, ...]
    """Where in its program it is: who, and its statement that waits or was in conflict."""
    run_outs: int = 1
    """How often its time runs out: the wait after that ends otherwise."""

    def runs_out(self, number: int) -> bool:
        """Whether its time is to run out in a wait in which the step with this number ends: in this, and all later."""
        return self.times_out and number >= len(self.way)

    def choose(self, able: Sequence[str], steps: Sequence[Step]) -> str | None:
        """Choose as ``explore`` does; None if there is no such detour."""
        if len(steps) < len(self.way):
            name = self.way[len(steps)]
            if name not in able:
                raise Diverged(f"step {len(steps) + 1} of {self.way}: {name} cannot go; {', '.join(able)} can")
            return name
        if self.times_out and len(steps) == len(self.way):
            return CLOCK if CLOCK in able else None
        run_outs = sum(step.kind == "timeout" for step in steps)
        if self.times_out and run_outs < self.run_outs and self.name not in able and CLOCK in able:
            return CLOCK
        return self.name if self.name in able else able[0]

    def find_next(self, execution: Execution) -> Detour | None:
        """Return the same with time running out more often, if it has waited once more; None if there is none."""
        last = max((number for number, step in enumerate(execution.steps) if step.kind == "timeout"), default=-1)
        waits = any(step.participant == self.name and step.blocked_by for step in execution.steps[last + 1 :])
        more = RUN_OUTS.get(self.run_outs) if waits and self.times_out else None
        return None if more is None else replace(self, run_outs=more)


class Detours:
    """Those that the executions of a search have passed by."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Detour] = {}

    def note(self, execution: Execution) -> None:
        """Take note of where somebody rested, or waited."""
        for count, name in execution.rested:
            self._keep(
                (name, _without_conflicts(execution.steps[:count], name)),
                Detour(execution.schedule[:count], name, False, (name, _last_conflict(execution.steps[:count], name))),
            )
        for number, step in enumerate(execution.steps, 1):
            if step.blocked_by:
                name, before = step.participant, execution.steps[:number]
                place = (name, step.text, sum(one.participant == name for one in before))
                self._keep(
                    (place, _without_conflicts(before, name)), Detour(execution.schedule[:number], name, True, place)
                )

    def _keep(self, key: tuple[object, ...], detour: Detour) -> None:
        known = self._found.get(key)
        if known is None or len(detour.way) < len(known.way):
            self._found[key] = detour

    def __iter__(self) -> Iterator[Detour]:
        """Return them, the shortest first."""
        return iter(sorted(self._found.values(), key=lambda one: (one.times_out, len(one.way), one.way)))


def _last_conflict(steps: Sequence[Step], name: str) -> str:
    """Return the statement with which one was in conflict last."""
    return next((step.text for step in reversed(steps) if step.participant == name and step.sqlstate in CONFLICTS), "")


def _without_conflicts(steps: Sequence[Step], name: str) -> str:
    """Return who took which step, without what one did after it was in conflict: the others stand where they stood."""
    told, met = "", False
    for step in steps:
        met = met or (step.participant == name and step.sqlstate in CONFLICTS)
        if step.participant != name or not met:
            told += step.participant
    return told
