"""Detours: what has no end, or takes time, and is left out of the search for that; each is shown once.

Who has been in conflict rests until another has moved, for it would only meet the same conflict again. Not so if it
counts: whoever gives up after some attempts, and goes on without the lock, does that only if it goes on at once. And no
clock runs by itself: a wait that ends after some time ends so only if that time passes.

So from each point where somebody rested, or waited, one more execution begins: it goes on alone, to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bankrun.schedule.errors import Diverged
from bankrun.schedule.trace import CLOCK, CONFLICTS, Execution, Step

STEPS_ALONE_MAX = 500
"""So long is somebody followed who comes to no end: 200 steps are enough for everybody else."""
DETOURS_MAX = 100
"""So many are shown, those with the shortest way first."""


@dataclass(frozen=True, slots=True)
class Detour:
    """After these steps ``name`` goes on at once, or, if it ``times_out``, when the time has run out that it waits."""

    way: str
    name: str
    times_out: bool
    waits_in: str = ""
    """The statement whose time would run out."""

    def choose(self, able: Sequence[str], steps: Sequence[Step]) -> str | None:
        """Choose as ``explore`` does; None if there is no such detour."""
        if len(steps) < len(self.way):
            name = self.way[len(steps)]
            if name not in able:
                raise Diverged(f"step {len(steps) + 1} of {self.way}: {name} cannot go; {', '.join(able)} can")
            return name
        if self.times_out and len(steps) == len(self.way):
            return CLOCK if CLOCK in able else None
        return self.name if self.name in able else able[0]


class Detours:
    """Those that the executions of a search have passed by."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Detour] = {}

    def note(self, execution: Execution) -> None:
        """Take note of where somebody rested, or waited."""
        for count, name in execution.rested:
            self._keep(
                (name, _without_conflicts(execution.steps[:count], name)),
                Detour(execution.schedule[:count], name, times_out=False),
            )
        for number, step in enumerate(execution.steps, 1):
            if step.blocked_by:
                key = (step.participant, step.text, _without_conflicts(execution.steps[:number], step.participant))
                self._keep(key, Detour(execution.schedule[:number], step.participant, True, step.text))

    def _keep(self, key: tuple[object, ...], detour: Detour) -> None:
        known = self._found.get(key)
        if known is None or len(detour.way) < len(known.way):
            self._found[key] = detour

    def __iter__(self) -> Iterator[Detour]:
        """Return them, the shortest first."""
        return iter(sorted(self._found.values(), key=lambda one: (one.times_out, len(one.way), one.way)))


def _without_conflicts(steps: Sequence[Step], name: str) -> str:
    """Return who took which step, without what one did after it was in conflict: the others stand where they stood."""
    told, met = "", False
    for step in steps:
        met = met or (step.participant == name and step.sqlstate in CONFLICTS)
        if step.participant != name or not met:
            told += step.participant
    return told
