"""How an execution ended: the committed rows of all tables, and how each program ended.

An outcome is data alone, as JSON has it, so that tests can write one by hand, and a replay can compare two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bankrun.schedule.trace import CONFLICTS

Row = Mapping[str, Any]
"""Column → value, as ``to_jsonb`` has it; numbers with a fraction are Decimals."""
CONSTRAINT_CLASS = "23"


class Place(NamedTuple):
    """Where a value stands: a column of a table, or what a program returned, printed, or failed with."""

    what: str
    """``row``, ``result``, ``output`` or ``message``."""
    of: str
    """The table, or the participant."""
    column: str = ""

    def __str__(self) -> str:
        return f"{self.of}.{self.column}" if self.what == "row" else f"{self.what} of {self.of}"


@dataclass(frozen=True, slots=True)
class Ending:
    """How one program ended. ``error`` is empty where it ended well, else an exception's type, or ``exit 3``."""

    error: str = ""
    sqlstate: str | None = None
    """The last error that Postgres gave this program, whether or not it failed with it."""
    message: str = ""
    result: Any = None
    output: str = ""

    @property
    def failed(self) -> bool:
        """Whether the caller was told of a failure."""
        return bool(self.error)

    @property
    def met_conflict(self) -> bool:
        """Whether it failed with what may be run again."""
        return self.failed and self.sqlstate in CONFLICTS

    @property
    def met_constraint(self) -> bool:
        """Whether it failed with a violated constraint."""
        return self.failed and (self.sqlstate or "").startswith(CONSTRAINT_CLASS)

    def describe(self) -> str:
        """Return the end of a sentence that begins with the program's name."""
        if self.failed:
            code = f" ({self.sqlstate})" if self.sqlstate else ""
            return f"fails with {self.error}{code}"
        if self.result is not None:
            return f"returns {show(self.result)}"
        return f"prints {show(self.output.strip())}" if self.output.strip() else "ends well"


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that is compared of an execution."""

    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    endings: Mapping[str, Ending] = field(default_factory=dict)

    def values(self) -> Iterator[tuple[Place, Any]]:
        """Return every value, and where it stands."""
        for table, rows in self.tables.items():
            for row in rows:
                for column, value in row.items():
                    yield Place("row", table, column), value
        for name, ending in self.endings.items():
            yield from ending_values(name, ending)


def ending_values(name: str, ending: Ending) -> Iterator[tuple[Place, Any]]:
    """Return what is compared of an ending, beside its error.

    Postgres' own messages name processes and transactions; of them the SQLSTATE is enough.
    """
    yield Place("result", name), ending.result
    yield Place("output", name), ending.output
    if ending.failed and ending.sqlstate is None:
        yield Place("message", name), ending.message


def show(value: Any, length_max: int = 60) -> str:
    """Return a value as a sentence quotes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, (str, list, dict)) else str(value)
    return text if len(text) <= length_max else text[: length_max - 1] + "…"
