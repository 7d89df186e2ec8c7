"""Which sequences a step drew from or set, wherever that is hidden: a default, a function, a bare assignment."""

from __future__ import annotations

from collections.abc import Collection

from psycopg import sql

from bankrun.schedule.observation.footprints import SEQUENCES, Footprint
from bankrun.schedule.observation.relations import Relations
from bankrun.schedule.observation.wal import Written
from bankrun.schedule.server import Connection


class Sequences:
    """Remembers what sequences stand at, from step to step.

    Whoever draws holds a lock on the sequence until its transaction ends; so those that are held are asked. ``setval``
    is in the log even if it changes nothing. Where there is no log, whatever is held counts as drawn.
    """

    def __init__(self, relations: Relations, *, reads_wal: bool) -> None:
        self._relations = relations
        self._reads_wal = reads_wal
        self._stands_at: dict[str, int] = {}

    def begin(self) -> None:
        """Forget the last execution."""
        self._stands_at.clear()

    def add_to(
        self,
        footprint: Footprint,
        admin: Connection,
        held: Collection[str],
        written: Collection[Written],
        *,
        kept: Collection[str],
        by_itself: bool,
    ) -> None:
        """Add the sequences that moved to a step's footprint. They are not given back: what is drawn stays drawn.

        What is drawn for a row that is written is that row's name: such draws share the sequence. ``by_itself`` says
        that something drew without writing, ``kept`` which sequences cannot be asked, since somebody has them alone.
        """
        names_rows = not by_itself and any(one.shows for one in written)
        logged = {name for one in written for name in one.sequences}
        for name in {*held, *logged}:
            before, now = self._stands_at.get(name), None
            if self._reads_wal and name in self._relations.sequences and name not in kept:
                now = self._stands_at[name] = self._ask(admin, name)
            if now is None or now != before or name in logged:
                goes_on = now is not None and (before is None or now > before)
                footprint.lock((SEQUENCES, name), shared=names_rows and goes_on)

    def _ask(self, admin: Connection, name: str) -> int:
        query = sql.SQL("SELECT last_value + is_called::int FROM {}").format(self._relations.sequences[name])
        row = admin.execute(query).fetchone()
        assert row is not None
        return int(row[0])
