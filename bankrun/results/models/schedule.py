"""A schedule of a trial or a proof, run once more to be looked at: its steps, the rows, the serial orders."""

from __future__ import annotations

from dataclasses import dataclass, field

from bankrun.results.provenance import Count


@dataclass(slots=True)
class TableTold:
    """A table's committed rows, each with a text for each column; of a large table only some rows.

    ``left_out`` counts the others. None is NULL.
    """

    columns: list[str]
    rows: list[list[str | None]] = field(default_factory=list)
    left_out: Count = 0


@dataclass(slots=True)
class StepTold:
    """A step of a schedule: who took it, what was sent, from which line, for whom it waits, and whom it let go on.

    ``text`` is that line, ``then`` what those who go on get to see. ``tables`` are the committed rows after it, where
    they were read: after a step that commits.
    """

    participant: str
    kind: str
    statements: list[str] = field(default_factory=list)
    line: str = ""
    waits_for: list[str] = field(default_factory=list)
    goes_on: list[str] = field(default_factory=list)
    text: str = ""
    then: dict[str, list[str]] = field(default_factory=dict)
    tables: dict[str, TableTold] = field(default_factory=dict)


@dataclass(slots=True)
class SerialTold:
    """A serial order: the rows at its end, and how each program ended."""

    order: str
    tables: dict[str, TableTold] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)


@dataclass(slots=True)
class SourceTold:
    """Some lines of a program's file, from ``first_line`` on."""

    file: str
    first_line: Count
    lines: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Background:
    """What the steps of a schedule are seen against.

    ``tables`` are the rows before the first step, of those tables in which any step or serial order changes something;
    ``serial`` what one after the other comes to; ``ended`` what this schedule came to, line by line; ``sources`` each
    participant's program; ``varying`` the columns, as ``table.column``, that are never the same twice.
    """

    tables: dict[str, TableTold] = field(default_factory=dict)
    serial: list[SerialTold] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    sources: dict[str, SourceTold] = field(default_factory=dict)
    varying: list[str] = field(default_factory=list)
