"""Runs executions: everybody from the same beginning, one step at a time, in the order that ``choose`` gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self
from urllib.parse import quote

from bankrun.prepared import roll_back_prepared
from bankrun.schedule.cast.control import INSISTENT_RETRIES_MAX, RETRIES_MAX
from bankrun.schedule.cast.participant import Call, Command
from bankrun.schedule.cast.processes import Crew
from bankrun.schedule.cast.warmed import Warmed
from bankrun.schedule.errors import Stuck
from bankrun.schedule.observation.observer import Observer
from bankrun.schedule.observation.relations import Relations
from bankrun.schedule.protocol.proxy import Proxy
from bankrun.schedule.restore import Keeper, Rows
from bankrun.schedule.server import Connection, Server, ask_capabilities
from bankrun.schedule.settling import Settling
from bankrun.schedule.stepping import Stepper
from bankrun.schedule.trace import Execution, Step

Choose = Callable[[Sequence[str], Sequence[Step]], str | None]
"""Given who can go, and the steps that were taken: whom to let go. None leaves out the rest of the execution."""

STEPS_MAX = 200


class Engine:
    """Participants, a proxy before a server, and a database that is the same before every execution.

    Use as a context manager. The database belongs to the engine: nobody else may change it. With ``recreates`` it is
    copied once, and made anew when a participant changed its definition. With ``warmed``, the processes of calls are
    forked from these, one from each, in their order; they have imported what is needed.
    """

    def __init__(
        self,
        server: Server,
        participants: Sequence[Call | Command],
        *,
        reuse_sessions: bool = True,
        tcp: bool = False,
        recreates: bool = True,
        reads_rows: bool = True,
        leases_expire: bool = False,
        warmed: Sequence[Warmed] = (),
        steps_max: int = STEPS_MAX,
        environment: Callable[[str, Mapping[str, str]], Mapping[str, str]] | None = None,
        on_commit: Callable[[Step], None] | None = None,
        on_begin: Callable[[], None] | None = None,
    ) -> None:
        self.server = server
        self.executions = 0
        self.steps_max = steps_max
        self.leases_expire = leases_expire
        self.on_commit = on_commit
        self.on_begin = on_begin
        self.reads_rows = reads_rows
        self.seconds: dict[str, float] = {"restore": 0.0, "start": 0.0, "steps": 0.0, "end": 0.0, "rows": 0.0}
        self.names: Sequence[str] = [spec.name for spec in participants]
        self.start_order: Sequence[str] = self.names
        with server.connect() as connection:
            self.capabilities = ask_capabilities(connection)
        self._keeper = Keeper(server, server.connect(), recreates=recreates)
        self._relations = Relations(self._keeper.admin)
        self._observer = Observer(self._keeper.admin, self.capabilities, self._relations)
        self._proxy = Proxy(server.address, reuse_sessions=reuse_sessions, tcp=tcp)
        try:
            self._crew = Crew(self._proxy, participants, warmed)
            self._urls = {name: self._url(name) for name in self.names}
            addresses = {name: self._variables(name) for name in self.names}
            if environment is not None:
                addresses = {name: {**one, **environment(name, one)} for name, one in addresses.items()}
            self._addresses: Mapping[str, Mapping[str, str]] = addresses
            self._crew.warm_up(addresses)
            self._settling = Settling(self._proxy, self._crew, self._keeper.admin, self.capabilities)
            self.stepper = Stepper(self._proxy, self._crew, self._settling, self._observer, server)
        except BaseException:
            self._proxy.close()
            raise
        self._is_dirty = False
        self._is_unseen = False  # whether something changed that the log was not asked about
        self._changed: set[int] | None = None
        try:
            self._crew.await_warm(self._let_through)
            self._forget_warming()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every participant and close every connection; the database stays, as it was at the beginning."""
        self._crew.close()
        self._proxy.drop_spares()
        try:
            self.restore()
        finally:
            self._close()

    def _close(self) -> None:
        self._proxy.close()
        self._observer.close()
        self._keeper.admin.close()
        self._keeper.drop_template()

    @property
    def urls(self) -> Mapping[str, str]:
        """The address of each participant, as libpq takes it."""
        return self._urls

    def _url(self, name: str) -> str:
        address = self._crew.members[name].address
        login = quote(self.server.user, safe="")
        if self.server.password is not None:
            login += ":" + quote(self.server.password, safe="")
        database = quote(self.server.database, safe="")
        if address.host.startswith("/"):
            return f"postgresql://{login}@/{database}?host={address.host}&port={address.port}"
        return f"postgresql://{login}@{address.host}:{address.port}/{database}?sslmode=disable"

    def _variables(self, name: str) -> dict[str, str]:
        address = self._crew.members[name].address
        variables = {
            "DATABASE_URL": self._urls[name],
            "PGHOST": address.host,
            "PGPORT": str(address.port),
            "PGUSER": self.server.user,
            "PGDATABASE": self.server.database,
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
            # As in life, no two processes hash alike; here the same ones do each time.
            "PYTHONHASHSEED": str(1 + list(self.names).index(name)),
        }
        if self.server.password is not None:
            variables["PGPASSWORD"] = self.server.password
        return variables

    def _let_through(self) -> None:
        """Relay what is asked before any execution: by imports that connect, and by what prepares."""
        self._proxy.pump(0.01)
        for name in self.names:
            for link in list(self._proxy.links(name)):
                self._is_dirty = self._is_unseen = True
                if link.conversation.pending is not None:
                    self._proxy.release(link)

    def _forget_warming(self) -> None:
        if self._is_dirty:
            unfinished = [pid for name in self.names for pid in self._proxy.hang_up(name)]
            if unfinished:
                self.stepper.await_end_of(unfinished)
            self.stepper.settle_spares()
            self.restore()

    def give(self, name: str, arguments: Sequence[Any]) -> None:
        """Let a participant, a ``Call``, be called with other arguments from the next execution on."""
        member = self._crew.members[name]
        assert isinstance(member.spec, Call)
        member.spec = replace(member.spec, arguments=arguments)

    # Executions.

    def read_rows(self) -> Rows:
        """Return the committed rows of all tables, as they are now."""
        return self._keeper.read_rows()

    def look_at_rows(self) -> Rows | None:
        """Return the committed rows in the middle of an execution; None if somebody keeps others from a table."""
        return self._keeper.look_at_rows()

    def restore(self) -> None:
        """Make the database what it was, if anything changed."""
        if not self._is_dirty:
            return
        started = time.perf_counter()
        looks = self._is_unseen or not self.capabilities.reads_wal or self._observer.log.catalog_changed
        by_template = not self._keeper.can_put_back  # only a superuser can put rows back past triggers and keys
        if by_template or (looks and self._keeper.take_fingerprint() != self._keeper.fingerprint):
            self._proxy.drop_spares()
            self._observer.close()
            self._keeper.recreate()
            self._relations.look(self._keeper.admin)
            self._settling.use(self._keeper.admin)
        else:
            self._keeper.restore(None if looks else self._changed)
            if looks:
                self._relations.look(self._keeper.admin)
        self._is_dirty = self._is_unseen = False
        self.seconds["restore"] += time.perf_counter() - started

    @property
    def admin(self) -> Connection:
        """Our own connection to the database; it is another one after the database was made anew."""
        return self._keeper.admin

    def begin_from(self, change: Callable[[Connection], None]) -> None:
        """Change the database, and let every execution begin from what it is then. The template stays as it was."""
        self.restore()
        self._keeper.begin_from(change)
        self._relations.look(self._keeper.admin)

    def execute(
        self,
        choose: Choose,
        order: Sequence[str] | None = None,
        *,
        prepare: Callable[[Connection], None] | None = None,
    ) -> Execution:
        """Run all participants once, from the same beginning.

        With ``order``, those are run one after the other, each alone. ``prepare`` is called between restoring and
        starting. Raises Unsupported for what is refused.
        """
        self.restore()
        if self.on_begin is not None:
            self.on_begin()
        if prepare is not None:
            prepare(self._keeper.admin)
        started = time.perf_counter()
        self.executions += 1
        execution = Execution(started="".join(order or self.start_order))
        self._is_dirty = True
        self._proxy.refuses = False
        self._proxy.faults.clear()
        for name in self.names:
            self._proxy.forget(name)
        self._crew.begin(self.executions)
        self._observer.begin(self._keeper.admin)
        self.stepper.begin(leases_expire=self.leases_expire)
        waiting = list(order) if order is not None else []
        try:
            for name in self.start_order if order is None else [waiting.pop(0)]:
                self._start(name)
            self.seconds["start"] += time.perf_counter() - started
            self._run(execution, choose, waiting)
        except Stuck as error:
            execution.stuck, execution.stuck_kind = str(error), "hang"
            execution.stands = {name: self.stepper.locate(name) for name in self.start_order}
        finally:
            middle = time.perf_counter()
            self._end(execution)
            self.seconds["end"] += time.perf_counter() - middle
        if self.reads_rows and not execution.cut:
            middle = time.perf_counter()
            execution.rows = self.read_rows()
            self.seconds["rows"] += time.perf_counter() - middle
        execution.seconds = time.perf_counter() - started
        return execution

    def run_again(self, names: Sequence[str]) -> Execution:
        """Run participants once more, one after the other, on what the last execution left behind.

        The outcomes and the steps are those of this time; the rows are what is there in the end.
        """
        before, unseen = self._changed, self._observer.log.catalog_changed
        self._is_dirty = False
        again = self.execute(lambda able, _: able[0], names)
        self._is_unseen = self._is_unseen or unseen
        self._changed = None if before is None or self._changed is None else before | self._changed
        return again

    def _start(self, name: str) -> None:
        retries_max = INSISTENT_RETRIES_MAX if self.stepper.insists else RETRIES_MAX
        self._crew.start(name, self._urls, self._addresses, retries_max)
        self.stepper.settle()

    def _run(self, execution: Execution, choose: Choose, waiting: list[str]) -> None:
        started = time.perf_counter()
        try:
            while True:
                able = self.stepper.able()
                execution.rested += [(len(execution.steps), name) for name in self.stepper.resting]
                if not able and waiting and self.stepper.have_all_ended():
                    self._start(waiting.pop(0))
                    continue
                if not able:
                    execution.stuck = self.stepper.why_not()
                    execution.stuck_kind = "cycle" if execution.stuck else ""
                    return
                chosen = choose(able, execution.steps)
                if chosen is None:
                    execution.cut = True
                    return
                step = self.stepper.step(chosen)
                if step is None:
                    continue  # the guard was not free: nothing happened
                execution.steps.append(step)
                execution.schedule += chosen
                if step.footprint.commits and self.on_commit is not None:
                    self.on_commit(step)
                if sum(one.participant == chosen for one in execution.steps) >= self.steps_max:
                    execution.stuck = f"{chosen} has taken {self.steps_max} steps, and does not come to an end"
                    execution.stuck_kind = "cap"
                    return
        finally:
            self.seconds["steps"] += time.perf_counter() - started

    def _end(self, execution: Execution) -> None:
        self._proxy.refuses = True
        unfinished = self._crew.end()
        for name in self.names:
            unfinished += self._proxy.hang_up(name)
        if unfinished:
            self.stepper.await_end_of(unfinished)
        if self._proxy.faults:  # PREPARE TRANSACTION is refused when it is done
            roll_back_prepared(self._keeper.admin)
        members = self._crew.members
        execution.outcomes = {name: outcome for name in self.names if (outcome := members[name].outcome) is not None}
        execution.truncated = tuple(name for name, end in execution.outcomes.items() if end.truncated)
        execution.beyond = tuple(self.stepper.beyond)
        execution.waits_outside = self.stepper.saw_outside
        self.stepper.settle_spares()
        if self.capabilities.reads_wal:
            self._observer.look_at_log()
            self._changed = set(self._observer.log.changed)
            execution.catalog_changed = self._observer.log.catalog_changed
