"""What happened in an execution, step by step: for judges, stories and replays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bankrun.schedule.cast.participant import Outcome
from bankrun.schedule.observation.footprints import Footprint
from bankrun.schedule.protocol.conversation import QUIET_TAGS
from bankrun.schedule.protocol.requests import Request
from bankrun.schedule.restore import Rows

_ENDS_OR_IS_QUIET = QUIET_TAGS | {"COMMIT", "ROLLBACK", "CLOSE CURSOR", "CLOSE CURSOR ALL", "UNLISTEN", "RESET ALL"}
CLOCK = "t"
"""Who is chosen, and is no participant: time, in which a lease or the wait for a lock runs out."""

CONFLICTS = frozenset({"40001", "40P01", "55P03", "57014"})
"""What a transaction may be run again after: a serialization failure, a deadlock, a lock that is not available, a wait
that took too long (manual, section 13.5 and appendix A)."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Something that was sent to Postgres, and what came of it."""

    connection: int
    kind: str
    sql: str
    parameters: tuple[str | None, ...]
    tag: str
    rows: int | None
    sqlstate: str | None
    message: str
    values: tuple[tuple[str | None, ...], ...] = ()
    """The first rows that it returned, as text."""

    @property
    def is_several(self) -> bool:
        """Whether others could come between what it does: several statements were sent in one message."""
        acts = sum(tag not in _ENDS_OR_IS_QUIET for tag in self.tag.split("; ") if tag)
        return acts + (self.sqlstate is not None and acts > 0) > 1


@dataclass(slots=True)
class Step:
    """A step that a participant took, and what it made others do."""

    participant: str
    kind: str
    """``statement``, ``commit``, ``leave`` (a session's end), or the kind that was announced."""
    text: str
    statements: list[Statement] = field(default_factory=list)
    """BEGIN, SET and SHOW belong to the step that follows them, so there may be several."""
    blocked_by: tuple[str, ...] = ()
    woken: tuple[str, ...] = ()
    then: dict[str, list[Statement]] = field(default_factory=dict)
    """What those who were woken got to their end."""
    opens_guards: bool = False
    """Whether a guard may be free after it: who found one taken asks again."""
    was_closed: bool = False
    """For a session's end: whether its program had closed it before its last note."""
    notes: list[str] = field(default_factory=list)
    footprint: Footprint = field(default_factory=Footprint)
    source: tuple[tuple[str, int, str], ...] = ()
    """Where in its program the participant was: file, line and function, the innermost last; only in a replay."""

    @property
    def sqlstate(self) -> str | None:
        """The error that the step ended with."""
        return next((statement.sqlstate for statement in self.statements if statement.sqlstate), None)

    @property
    def identity(self) -> tuple[object, ...]:
        """What must be the same when the same schedule is run again: not texts, some drivers put values into them."""
        told = tuple((statement.tag, statement.sqlstate) for statement in self.statements)
        return self.participant, self.kind, told, self.blocked_by, self.woken


@dataclass(slots=True)
class Execution:
    """One run of all participants under one schedule."""

    schedule: str = ""
    """Who took each step."""
    steps: list[Step] = field(default_factory=list)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    """The committed rows of all tables at the end."""
    stuck: str = ""
    """Why it did not come to its end, if it did not: nobody could go on, or somebody went on too long."""
    started: str = ""
    """In which order they were started. It matters where they wait for something that is not Postgres."""
    waits_outside: bool = False
    """Whether anybody waited for something that is not Postgres."""
    stuck_kind: str = ""
    """``cycle`` if nobody could go on, ``cap`` if somebody took too many steps, ``hang`` if somebody gave no sign."""
    stands: Mapping[str, tuple[tuple[str, int, str], ...]] = field(default_factory=dict)
    """Where in its program each stood when somebody gave no sign: file, line and function, the innermost last."""
    cut: bool = False
    """Whether the rest was left out: other executions show it."""
    truncated: tuple[str, ...] = ()
    """Who was in conflict more often than is explored, and was ended."""
    beyond: tuple[str, ...] = ()
    """Who was in conflict so often that not every order is run from there."""
    rested: list[tuple[int, str]] = field(default_factory=list)
    """After how many steps who was not let go on, because it had been in conflict."""
    seconds: float = 0.0
    catalog_changed: bool = False


def tell(request: Request, connection: int) -> Statement:
    """Return a request as it is told."""
    tag = "; ".join(tag for tag in request.tags if tag)
    return Statement(
        connection,
        request.kind.value,
        request.sql,
        request.parameters,
        tag,
        request.rows,
        request.sqlstate,
        request.message,
        tuple(row for row in request.values if row),
    )


def describe(statements: Sequence[Statement]) -> str:
    """Return statements in one line."""
    return "; ".join(" ".join(statement.sql.split()) for statement in statements if statement.sql)
