"""What one execution was worth: every interleaving must end like one of the serial orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from bankrun.trials.judging.differences import Keys, describe
from bankrun.trials.judging.outcomes import Outcome, Row, show
from bankrun.trials.judging.yardstick import Order, Yardstick

SERIAL, BROKEN, ERROR, NEEDS_RETRY = "serial", "broken", "error", "needs retry"
WORSE_FIRST = (BROKEN, ERROR, NEEDS_RETRY, SERIAL)

Serial = Callable[[Order], Outcome]
"""Runs some of the programs one after the other."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one execution. ``like`` is the order that it ends like, ``difference`` a sentence."""

    kind: str
    like: Order = ()
    difference: str = ""
    sqlstates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares outcomes with serial ones. ``serial`` has all orders of all programs; ``run`` gives those of some."""

    stick: Yardstick
    serial: Mapping[Order, Outcome]
    run: Serial
    keys: Keys

    def judge(self, found: Outcome, again: Callable[[Sequence[str]], Outcome] | None = None) -> Finding:
        """Return what an outcome is worth. Raises TooAlike.

        ``again`` runs programs that met a conflict once more, after the others, in this order, on what the others left
        behind, and returns the outcome then. It is called at most once, and only if the outcome is no serial one.
        """
        like = self._find(found, self.serial)
        if like is not None:
            return Finding(SERIAL, like)
        conflicts = [name for name, ending in found.endings.items() if ending.met_conflict]
        if conflicts and again is not None:
            states = tuple(sorted({found.endings[name].sqlstate or "" for name in conflicts}))
            repeated = again(conflicts)
            finding = self.judge(repeated)
            if finding.kind == SERIAL:
                return Finding(NEEDS_RETRY, finding.like, sqlstates=states)
            said = f"after {' and '.join(conflicts)} met {' and '.join(states)} and was run again, "
            return Finding(finding.kind, (), said + finding.difference, finding.sqlstates)
        refused = [name for name, ending in found.endings.items() if ending.met_constraint]
        if refused:
            like = self._without(found, refused)
            if like is not None:
                states = tuple(sorted({found.endings[name].sqlstate or "" for name in refused}))
                return Finding(
                    ERROR,
                    like,
                    f"the data is right; {' and '.join(states)} reaches the caller, which no serial order has",
                    states,
                )
        return Finding(BROKEN, (), describe(self.stick, found, self.serial, self.keys))

    def _find(self, found: Outcome, serial: Mapping[Order, Outcome]) -> Order | None:
        return next((order for order, one in serial.items() if self.stick.equal(found, one)), None)

    def _without(self, found: Outcome, refused: Sequence[str]) -> Order | None:
        """Return an order of the other programs that leaves all else equal; the refused ones may have done nothing."""
        others = [name for name in found.endings if name not in refused]
        rest = Outcome(found.tables, {name: found.endings[name] for name in others})
        orders = {order: self.run(order) for order in permutations(others)}
        return self._find(rest, orders)


def judge_invariant(violations: Sequence[Row]) -> Finding:
    """Return what an execution is worth by the user's own question: a row is a violation."""
    if not violations:
        return Finding(SERIAL)
    first = ", ".join(f"{column} {show(value)}" for column, value in violations[0].items())
    return Finding(BROKEN, (), f"the invariant is violated by {len(violations):,}: {first or 'a row without columns'}")
