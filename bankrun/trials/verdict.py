"""The verdict of a case, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from bankrun.trials.case import SAFE, CaseFound
from bankrun.trials.judging.judge import BROKEN, ERROR, NEEDS_RETRY
from bankrun.trials.running.programs import Call, Program

NUMBERS = {2: "two", 3: "three", 4: "four"}


def say_verdict(programs: Sequence[Program], case: CaseFound) -> str:
    """Return the sentence."""
    count, broken = case.executions, case.counts.get(case.verdict, 0)
    if case.verdict == SAFE:
        whom = f"{_all(count)} of these {NUMBERS[len(programs)]} {_what(programs)}, on this data,"
        return f"safe: {whom} end{'' if count != 1 else 's'} like one after the other{_left_out(case)}"
    if case.verdict == BROKEN:
        return f"broken: {broken:,} of {count:,}; {case.difference}"
    if case.verdict == ERROR:
        return f"error: {case.difference}"
    if case.verdict == NEEDS_RETRY:
        states = " and ".join(case.findings[NEEDS_RETRY].sqlstates)
        return f"needs retry: {broken:,} of {count:,} end with {states}; run again, they are serial"
    faults = {kind: case.counts[kind] for kind in (BROKEN, ERROR) if case.counts.get(kind)}
    so_far = "" if faults or not count else "; no fault so far"
    return f"inconclusive: {case.reason or 'nothing was run'}{so_far}"


def _all(count: int) -> str:
    return f"all {count:,} interleavings" if count != 1 else "the only interleaving"


def _what(programs: Sequence[Program]) -> str:
    return "calls" if all(isinstance(one, Call) for one in programs) else "programs"


def _left_out(case: CaseFound) -> str:
    notes = []
    if case.reason:
        notes.append(case.reason)
    if case.not_compared:
        notes.append("not compared: " + ", ".join(str(place) for place in case.not_compared))
    return f" ({'; '.join(notes)})" if notes else ""
