"""An interleaving by hand: whoever steps is the scheduler of two transfers.

Nothing waits in Postgres while a visitor thinks. An interleaving is its choices; each time they are run from the
beginning, and abandoned where nobody has chosen yet. It is the same every time, so a step back is one choice fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bank.audit import audit
from bank.errors import CannotStart
from bank.strategies import STRATEGIES, Strategy
from bankrun.proof.interleavings import CASES, INSTANCES, Case, Prover, applies
from bankrun.proof.replay import money, parse_id, told
from bankrun.proof.scheduler import Step

STEPS_MAX = 80


@dataclass(frozen=True, slots=True)
class Position:
    """A place in an interleaving: all choices so far."""

    strategy: str
    instances: str
    case: str
    choices: str = ""

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read an id, as ``bankrun prove`` prints it; its choices may be missing. Raises CannotStart if it is none."""
        strategy, instances, case, choices = parse_id(text if text.count("/") > 2 else f"{text.rstrip('/')}/A")
        return cls(strategy, instances, case.name, choices if text.count("/") > 2 else "")

    def __str__(self) -> str:
        return f"{self.strategy}/{self.instances}/{self.case}" + (f"/{self.choices}" if self.choices else "")

    def then(self, who: str) -> Position:
        """Return the place after one more choice."""
        return Position(self.strategy, self.instances, self.case, self.choices + who)

    def back(self) -> Position:
        """Return the place before the last choice."""
        return Position(self.strategy, self.instances, self.case, self.choices[:-1])


@dataclass(frozen=True, slots=True)
class Stepped:
    """What has happened up to a position. ``able`` is who can go, and what he would do next.

    ``rows`` are the steps: who, and what he did, line by line. ``outcome`` is the audit's word, once all is over, and
    ``passed`` its verdict; ``note`` is why nothing happened.
    """

    position: Position
    able: dict[str, str]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    outcome: tuple[str, ...] = ()
    passed: bool | None = None
    note: str = ""


def step(prover: Prover, position: Position) -> Stepped:
    """Run an interleaving up to a position. Raises CannotStart if its choices are not possible."""
    strategy, case = _found(position)
    able: dict[str, str] = {}
    refused = ""
    asked: set[int] = set()

    def choose(can: Mapping[str, Step], depth: int) -> str | None:
        nonlocal refused
        if depth >= len(position.choices):
            able.update({who: one.text for who, one in can.items()})
            return None
        wanted = position.choices[depth]
        if depth in asked or wanted not in can:
            if depth < len(position.choices) - 1 or depth not in asked:
                raise CannotStart(f"step {depth + 1} of {position.choices}: {wanted} cannot go")
            refused = f"{wanted} could not go on: its guard is taken"
            able.update({who: one.text for who, one in can.items()})
            return None
        asked.add(depth)
        return wanted

    execution = prover.run(strategy, position.instances, case, choose)
    rows = tuple((event.who, tuple(told(event))) for event in execution.events if event.kind != "begin")
    reached = Position(position.strategy, position.instances, position.case, execution.choices)
    if not execution.complete:
        return Stepped(reached, able, rows, note=refused or ("cut short" if execution.truncated else ""))
    found = audit(prover.database)
    return Stepped(reached, {}, rows, tuple(money(found)), found.passed)


def _found(position: Position) -> tuple[type[Strategy], Case]:
    if position.strategy not in STRATEGIES:  # an address may come from anywhere, and must not be able to import
        raise CannotStart(f"{position.strategy!r} is none of bankrun's own strategies: use `bankrun replay`")
    strategy = STRATEGIES[position.strategy]
    if strategy.routed_to_one:
        raise CannotStart(f"{strategy.name} sends all transfers to one instance, one at a time: they never meet")
    if position.instances not in INSTANCES or position.case not in CASES:
        raise CannotStart(f"{position} is no interleaving")
    case = CASES[position.case]
    if not applies(strategy, case):
        raise CannotStart(f"{strategy.name} has no lease that could run out: {case.name} says nothing about it")
    if len(position.choices) > STEPS_MAX:
        raise CannotStart(f"an interleaving has at most {STEPS_MAX} steps")
    return strategy, case
