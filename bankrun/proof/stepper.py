"""An interleaving by hand: a visitor is the scheduler of two transfers.

Nothing waits in Postgres while a visitor thinks. An interleaving is its choices; each time they are run from the
beginning, and abandoned where nobody has chosen yet. It is the same every time, so a step back is one choice fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bank.errors import CannotStart
from bank.outside import recall
from bank.strategies import STRATEGIES, Strategy
from bankrun.proof.cases import CASES, INSTANCES, Case, applies
from bankrun.proof.prover import Prover
from bankrun.proof.replay import parse_id, tell_money, tell_step
from bankrun.schedule import Step

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
    """What has happened up to a position. ``able`` is who can go, and what that would do next.

    ``rows`` are the steps: who, and what that did, line by line. ``outcome`` is the audit's word, once all is over, and
    ``passed`` its verdict; ``note`` is why nothing happened.
    """

    position: Position
    able: dict[str, str]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    outcome: tuple[str, ...] = ()
    passed: bool | None = None
    note: str = ""


def step(prover: Prover, position: Position, own: Sequence[str] = ()) -> Stepped:
    """Run an interleaving up to a position. Raises CannotStart if its choices are not possible.

    Only ours and ``own`` strategies, which are loaded already, can be named.
    """
    strategy, case = _find(position, own)
    courtroom = prover.open(strategy, position.instances)
    courtroom.hear(case)
    choices = Choices(position.choices, courtroom.engine.stepper.describe_next)
    execution = courtroom.engine.execute(choices.choose)
    names = list(case.messages())
    rows = tuple(
        (who, tuple(line.plain for line in lines)) for one in execution.steps for who, lines in tell_step(one, names)
    )
    reached = Position(position.strategy, position.instances, position.case, execution.schedule)
    if execution.cut:
        return Stepped(reached, choices.able, rows, note=choices.refused)
    judged = courtroom.judge(execution)
    note = "cut short: it was in conflict more than twice" if execution.truncated else ""
    return Stepped(reached, {}, rows, tuple(tell_money(judged.audit, judged.torn)), not judged.is_broken, note)


class Choices:
    """Follows the choices of a position; at its end ``able`` is who can go, and what each would do next."""

    def __init__(self, choices: str, describe_next: Callable[[str], str]) -> None:
        self.able: dict[str, str] = {}
        self.refused = ""
        self._choices = choices
        self._describe_next = describe_next
        self._asked: set[int] = set()

    def choose(self, can: Sequence[str], steps: Sequence[Step]) -> str | None:
        """Return who goes on; None at the end, or where the last choice stands before a guard that is taken."""
        depth = len(steps)
        if depth < len(self._choices):
            wanted = self._choices[depth]
            if depth not in self._asked and wanted in can:
                self._asked.add(depth)
                return wanted
            if depth not in self._asked or depth < len(self._choices) - 1:
                raise CannotStart(f"step {depth + 1} of {self._choices}: {wanted} cannot go")
            self.refused = f"{wanted} could not go on: its guard is taken"
        self.able = {name: self._describe_next(name) for name in can}
        return None


def _find(position: Position, own: Sequence[str]) -> tuple[type[Strategy], Case]:
    # An address may come from anywhere, and must not be able to import.
    strategy = STRATEGIES.get(position.strategy) or (recall(position.strategy) if position.strategy in own else None)
    if strategy is None:
        raise CannotStart(f"{position.strategy!r} is not one of the strategies of this page: use `bankrun replay`")
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
