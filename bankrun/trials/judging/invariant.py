"""The user's own question, asked after each execution: each row it returns is a violation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.rows import dict_row

from bankrun.errors import CannotStart
from bankrun.trials.judging.outcomes import Row, show

ROWS_MAX = 20


class Invariant:
    """A query that returns nothing as long as all is well. Asked in a session that sees only what is committed."""

    def __init__(self, question: str, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self.question = question
        self._connect = connect
        self._connection: psycopg.Connection[Any] | None = None

    def close(self) -> None:
        """End the session."""
        if self._connection is not None:
            self._connection.close()

    def check_before(self) -> None:
        """Raise CannotStart if it does not hold for what the set-up made. The session ends: a template is made next."""
        violations = self.ask()
        self.close()
        if violations:
            first = ", ".join(f"{column} {show(value)}" for column, value in violations[0].items())
            raise CannotStart(f"the invariant is violated before anything runs: {first or 'a row without columns'}")

    def ask(self) -> list[Row]:
        """Return the violations, the first of them."""
        with self._open().cursor(row_factory=dict_row) as cursor:
            try:
                cursor.execute(self.question)
                if cursor.description is None:
                    raise CannotStart("--invariant is a SELECT: each row that it returns is a violation")
                return list(cursor.fetchmany(ROWS_MAX))
            except psycopg.Error as error:
                raise CannotStart(f"--invariant cannot be asked: {str(error).splitlines()[0]}") from error

    def _open(self) -> psycopg.Connection[Any]:
        """Return a session; the one of before ended if the database was made anew."""
        if self._connection is not None:
            with suppress(psycopg.OperationalError):
                self._connection.execute("SELECT 1")
            if not self._connection.closed:
                return self._connection
        self._connection = self._connect()
        self._connection.read_only = True
        return self._connection
