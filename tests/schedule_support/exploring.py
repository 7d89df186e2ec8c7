"""Runs programs in every order, and tells what came out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bankrun.schedule import Call, Engine, Execution, digest, explore, follow

SUPPORT = str(Path(__file__).parent)
"""Where participants find their programs."""


def calls(*programs_: Sequence[Any], **options: Any) -> list[Call]:
    """Return participants A, B, C: a function of `programs` and its arguments for each."""
    return [
        Call(name, f"programs:{function}", arguments, path=[SUPPORT], **options)
        for name, (function, *arguments) in zip("ABC", programs_, strict=False)
    ]


def outcome(execution: Execution) -> tuple[object, ...]:
    """Return all that tells one way of ending from another."""
    ends = tuple((name, o.error, o.sqlstate, repr(o.result)) for name, o in execution.outcomes.items())
    return digest(execution.rows), ends, execution.stuck


class Found:
    """What an exploration found: every outcome and how often, and what each serial order gives."""

    def __init__(self, engine: Engine, *, pruned: bool = True, **options: Any) -> None:
        self.outcomes: Counter[tuple[object, ...]] = Counter()
        self.executions: list[Execution] = []

        def judge(execution: Execution) -> None:
            self.outcomes[outcome(execution)] += 1
            self.executions.append(execution)

        self.exploration = explore(engine, judge, pruned=pruned, **options)
        names = list(engine.names)
        self.serial = {digest(engine.execute(follow(""), order).rows) for order in (names, names[::-1])}

    @property
    def broken(self) -> int:
        """How many ended with all participants content, and rows that no serial order gives."""
        return sum(
            digest(x.rows) not in self.serial and not any(o.error for o in x.outcomes.values()) for x in self.executions
        )

    @property
    def errors(self) -> set[str | None]:
        """The SQLSTATEs that callers got, in any order."""
        return {o.sqlstate for x in self.executions for o in x.outcomes.values() if o.error}


def balances(execution: Execution) -> dict[int, int]:
    """Return what the first three accounts have at the end."""
    rows = [json.loads(row) for row in execution.rows["public.account"]]
    return {row["id"]: row["balance"] for row in rows if row["id"] <= 3}
