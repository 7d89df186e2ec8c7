"""Asks Postgres what a step did, and makes a footprint of it.

Locks and the log are asked in one round trip, while everybody stands and what was done is not committed yet. What a
session's open transaction has locked and written is remembered: its COMMIT carries all of it.

On servers that do not show us the log or plans, footprints are the relations in pg_locks, from the transaction's
beginning on: sound, and coarse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from bankrun.schedule.errors import Unsupported
from bankrun.schedule.observation import locks, wal
from bankrun.schedule.observation.footprints import ADVISORY, Footprint
from bankrun.schedule.observation.locks import Held, LinkKey, LockReader
from bankrun.schedule.observation.plans import read_plans
from bankrun.schedule.observation.relations import MUTES, TRIES, Relations
from bankrun.schedule.observation.sequences import Sequences
from bankrun.schedule.observation.transactions import Observation, Transaction
from bankrun.schedule.observation.wal import LogReader, Written
from bankrun.schedule.protocol.proxy import Link
from bankrun.schedule.protocol.requests import Kind, Request
from bankrun.schedule.server import Capabilities, Connection


def _mentions(word: str, requests: Iterable[Request]) -> bool:
    return any(word in request.sql.lower() for request in requests)


class Observer:
    """Remembers what the open transactions of all participants did."""

    def __init__(self, admin: Connection, capabilities: Capabilities, relations: Relations) -> None:
        self._capabilities = capabilities
        self.relations = relations
        self.log = LogReader(relations)
        self._locks = LockReader(relations, self.log)
        self._admin = admin
        self._parser: Connection | None = None
        self._open: dict[LinkKey, Transaction] = {}
        self._ends: dict[str, bool] = {}
        self._mute: set[LinkKey] = set()
        """Sessions that were told to tell less."""
        self._seen: Mapping[LinkKey, Held] = {}
        self._sequences = Sequences(relations, reads_wal=capabilities.reads_wal)

    def begin(self, admin: Connection) -> None:
        """Forget the last execution: everything was restored."""
        self._admin = admin
        self._open.clear()
        self._locks.begin()
        self._mute.clear()
        self._sequences.begin()
        if self._capabilities.reads_wal:
            self.log.begin(admin)

    def close(self) -> None:
        """Close the connection that is used to ask what a statement is."""
        if self._parser is not None:
            self._parser.close()
            self._parser = None

    # What may be let through at once.

    def ends_transaction(self, text: str, connect: Any) -> bool:
        """Return whether a statement is COMMIT or ROLLBACK, as Postgres' own parser sees it.

        In a transaction that failed, Postgres accepts to parse those that end it and nothing else (25P02).
        """
        if text not in self._ends:
            if self._parser is None:
                self._parser = connect()
                self._parser.autocommit = False
                with suppress(psycopg.errors.DivisionByZero):
                    self._parser.execute("SELECT 1 / 0")
            answer = self._parser.pgconn.prepare(b"", text.encode())
            self._ends[text] = answer.error_field(psycopg.pq.DiagnosticField.SQLSTATE) is None
        return self._ends[text]

    def look(self, links: Sequence[Link]) -> Mapping[LinkKey, Held]:
        """Return what these sessions hold."""
        held, _ = self._ask(links, with_log=False)
        return held

    @property
    def seen(self) -> Mapping[LinkKey, Held]:
        """What the sessions held when the last step was observed."""
        return self._seen

    def look_at_log(self) -> None:
        """Read what was written since the last step: by sessions that were ended."""
        self.log.take(self._admin.execute(wal.READ, [self.log.position]).fetchall(), lambda _: "")

    def forget(self, link: Link) -> None:
        """Note that this session's transaction ended, and that this was no step: it had no effects."""
        self._open.pop(link.key, None)

    # What a step did.

    def observe(
        self,
        stepped: str,
        links: Sequence[Link],
        done: Mapping[LinkKey, Sequence[Request]],
        plans: Mapping[LinkKey, Sequence[str]],
        tried: Sequence[str],
        *,
        blocked: bool,
        woken: Collection[str],
        others_wait: bool,
    ) -> Footprint:
        """Return the footprint of a step that ``stepped`` took and in which ``woken`` could go on.

        ``others_wait`` says that a third participant is involved in waiting.
        """
        held, written = self._ask(links, with_log=True)
        self._seen = held
        footprint = Footprint(blocked=blocked)
        keys = [link.key for link in links]
        gone = [key for key in self._open if key not in keys]
        whose = {link.key: link.participant for link in links}
        draws = False
        acting = [
            link.key
            for link in links
            if link.participant in (stepped, *woken) and (done.get(link.key) or link.conversation.running)
        ]
        for key in [*keys, *gone]:
            transaction = self._open.setdefault(key, Transaction())
            transaction.participant = whose.get(key, transaction.participant)
            requests = done.get(key, ())
            reading = read_plans(plans.get(key, ()), self.relations.keys, self.relations.partitions)
            if transaction.participant != stepped and transaction.participant not in woken:
                continue
            draws = draws or reading.draws
            one = Observation(
                footprint,
                transaction,
                held.get(key, Held()),
                requests,
                reading,
                [found for xid, found in written.items() if key in self._owners_of(xid, stepped, acting)],
                is_waiting=any(link.key == key and link.conversation.is_waiting for link in links),
                is_lazy=any(link.conversation.lazy for link in links if link.key == key),
                sees_rows=self._capabilities.sees_rows,
            )
            one.add()
            self._add_hidden(footprint, key, requests)
            if one.ended:
                self._open[key] = Transaction(advisory=set(one.held.advisory), participant=transaction.participant)
            if key in gone:
                self._open.pop(key)
            self._refuse_commits_inside(
                requests, [r for link in links if link.key == key and (r := link.conversation.running) is not None]
            )
        for name in tried:
            footprint.lock((ADVISORY, name))
        self._sequences.add_to(
            footprint,
            self._admin,
            {name for one in held.values() for name in one.sequences},
            written.values(),
            kept=self._locks.exclusive,
            by_itself=draws,
        )
        if any(name in self.relations.sequences for name, _ in footprint.reads):
            footprint.depends_on_all("it reads a sequence as a table")
        if blocked and not self._shows_what_it_awaits([held[key] for key in held if whose[key] == stepped]):
            footprint.depends_on_all("it waits for something that pg_locks does not name")
        if others_wait and (footprint.commits or woken):
            footprint.depends_on_all("a third participant waits, or is woken")
        return footprint

    def _add_hidden(self, footprint: Footprint, key: LinkKey, requests: Sequence[Request]) -> None:
        """Let a statement depend on everything that may hide what it does.

        Words are looked for, in any text, so this errs only towards more dependences.
        """
        if _mentions(MUTES, requests):
            self._mute.add(key)
        acts = any(request.kind is Kind.STATEMENT for request in requests)
        if acts and (key in self._mute or MUTES in self.relations.hides):
            footprint.depends_on_all("a session or a function that sets client_min_messages")
            called = {tag for request in requests for tag in request.tags} & {"CALL", "DO"}
            if called and (self._any_commits() or _mentions("commit", requests) or _mentions("rollback", requests)):
                raise Unsupported(
                    f"{' or '.join(sorted(called))} where client_min_messages is set: whether it commits inside cannot "
                    "be seen there"
                )
        if not self._capabilities.tells_advisory and (
            _mentions(TRIES, requests) or (acts and TRIES in self.relations.hides)
        ):
            footprint.depends_on_all("an advisory lock on a server that is not ours")

    def _any_commits(self) -> bool:
        """Whether a procedure, of any language, has the word COMMIT or ROLLBACK in it."""
        row = self._admin.execute(
            "SELECT EXISTS (SELECT FROM pg_proc WHERE oid >= 16384 AND prokind = 'p' AND prosrc ~* 'commit|rollback')"
        ).fetchone()
        return row == (True,)

    @staticmethod
    def _refuse_commits_inside(requests: Sequence[Request], running: Iterable[Request]) -> None:
        """Raise Unsupported for a statement that ended a transaction in its middle: nobody could be let in there.

        That is a DO or a CALL outside of a transaction (manual, Transaction Management in PL/pgSQL).
        """
        for request in (*requests, *running):
            if request.transactions > 1 and (not request.tags or {"CALL", "DO"} & set(request.tags)):
                raise Unsupported(
                    f"{' or '.join(request.tags) or 'CALL or DO'} of a procedure that commits inside: what others do "
                    "between its commits cannot be run; call it in a transaction, or send its parts one by one"
                )

    @staticmethod
    def _shows_what_it_awaits(held: Sequence[Held]) -> bool:
        return any(one.awaits or one.awaits_advisory or one.awaits_mode for one in held)

    def _owners_of(self, xid: str, stepped: str, acting: Sequence[LinkKey]) -> Collection[LinkKey]:
        """Return whose transaction id this may be.

        One that began and ended in this step, a block of a function for example, is of a session that did something.
        """
        if xid in self._locks.owners:
            return (self._locks.owners[xid],)
        mine = [key for key, transaction in self._open.items() if transaction.participant == stepped]
        return acting or mine[:1]

    def _ask(self, links: Sequence[Link], *, with_log: bool) -> tuple[dict[LinkKey, Held], Mapping[str, Written]]:
        by_pid = {link.conversation.pid: link.key for link in links if link.conversation.pid}
        rows: list[Any] = []
        log: list[Any] = []
        if with_log and self._capabilities.reads_wal:
            with self._admin.pipeline():
                found = self._admin.execute(locks.READ, [list(by_pid)])
                records = self._admin.execute(wal.READ, [self.log.position])
                rows, log = found.fetchall(), records.fetchall()
        elif by_pid:
            rows = self._admin.execute(locks.READ, [list(by_pid)]).fetchall()
        held = self._locks.take(rows, by_pid)
        whose = {link.key: link.participant for link in links}
        written = self.log.take(log, lambda xid: whose.get(self._locks.owners.get(xid, ("", 0)), "")) if log else {}
        return held, written
