"""Waiting until everybody stands: before the next request, at its end, or asleep until somebody who stands goes on.

Nothing is guessed from the time that passes where Postgres can be asked: who waits for a lock says so itself, after it
has looked for a deadlock in vain (log_lock_waits), and for whom it waits is asked then (pg_blocking_pids). A cycle is
left to Postgres: the last one that closed it is the victim, since the others have looked already.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bankrun.schedule.cast import outside
from bankrun.schedule.cast.participant import Call, Participant
from bankrun.schedule.cast.processes import Crew
from bankrun.schedule.cast.threads import Threads
from bankrun.schedule.errors import Stuck, Unsupported
from bankrun.schedule.protocol.conversation import Phase
from bankrun.schedule.protocol.proxy import Link, Proxy
from bankrun.schedule.protocol.requests import Kind
from bankrun.schedule.server import Capabilities, Connection

SETTLE_SECONDS_MAX = 10.0
PUMP_SECONDS = 0.005
OWNER_SECONDS = 0.0005  # a thread goes to sleep a moment after it has sent its request
SILENCE_SECONDS = 0.020
"""Without any sign for this long, Postgres is asked even about those who have not said that they wait."""
UNTOLD_SECONDS = 0.05
"""Where sessions cannot say that they wait, one that has waited for this long does. If the deadlock timeout is longer
than that, who becomes the victim of a deadlock may differ from run to run."""

_BLOCKERS = "SELECT pid, pg_blocking_pids(pid) || pg_safe_snapshot_blocking_pids(pid) FROM unnest(%s::int[]) pid"
# A transaction that is SERIALIZABLE READ ONLY DEFERRABLE waits for a safe snapshot, which is no lock.
_AGES = (
    "SELECT pid, extract(epoch FROM clock_timestamp() - min(waitstart))::float8 FROM pg_locks"
    " WHERE pid = ANY(%s) AND NOT granted GROUP BY pid UNION ALL"
    " SELECT pid, extract(epoch FROM clock_timestamp() - query_start)::float8 FROM pg_stat_activity"
    " WHERE pid = ANY(%s) AND wait_event = 'SafeSnapshot'"
)


class Settling:
    """Knows who stands, who is blocked and by whom."""

    def __init__(self, proxy: Proxy, crew: Crew, admin: Connection, capabilities: Capabilities) -> None:
        self.blocked: dict[str, tuple[str, ...]] = {}
        """Who waits in Postgres, and for which participants."""
        self._proxy = proxy
        self._crew = crew
        self.admin = admin
        self._capabilities = capabilities
        self._watch = outside.Watch()
        self._threads = Threads(proxy, list(crew.members.values()))

    def use(self, admin: Connection) -> None:
        """Ask on another connection from now on."""
        self.admin = admin

    def settle(self) -> None:
        """Wait until everybody stands. Raises Stuck if a participant does not, Unsupported for what is refused."""
        self._watch.begin()
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        quiet_since = time.monotonic()
        while True:
            if self._proxy.pump(0):
                quiet_since = time.monotonic()
                continue
            self._raise_faults()
            is_unknown = self._threads.find_owners()
            running, waiting, computing = self._look()
            if time.monotonic() - quiet_since > SILENCE_SECONDS:
                aged = self._waits_long_enough(running)
                waiting += [link for link in running if link in aged]
                running = [link for link in running if link not in aged]
            is_done = not running and not self._proxy.is_washing() and self._are_blocked(waiting)
            if is_done and self._are_asleep([*computing, *self._wait_for_themselves()]):
                return
            if time.monotonic() > deadline:
                raise Stuck(self._describe(running + waiting, computing))
            if self._proxy.pump(OWNER_SECONDS if is_unknown else PUMP_SECONDS):
                quiet_since = time.monotonic()

    def _wait_for_themselves(self) -> list[Participant]:
        """Return those of whose sessions one waits for another one: whoever uses that may be about to go on."""
        return [
            member
            for member in self._crew.members.values()
            if self.blocked.get(member.name) == (member.name,) and not stands(member, self._proxy.links(member.name))
        ]

    def _raise_faults(self) -> None:
        for name, fault in self._proxy.faults.items():
            raise Unsupported(f"{name} uses {fault}")

    def _look(self) -> tuple[list[Link], list[Link], list[Participant]]:
        """Return the connections that Postgres works for, those that say they wait, and who computes."""
        running: list[Link] = []
        waiting: list[Link] = []
        computing: list[Participant] = []
        for member in self._crew.members.values():
            links = self._proxy.links(member.name)
            busy = [link for link in links if is_busy(link)]
            running += [link for link in busy if not link.conversation.is_waiting]
            waiting += [link for link in busy if link.conversation.is_waiting]
            if busy or stands(member, links):
                continue
            if not member.has_ended or (links and not _keeps_connections(member)):
                computing.append(member)
        return running, waiting, computing

    def _are_blocked(self, waiting: Sequence[Link]) -> bool:
        """Return whether each of these waits, directly or not, for a connection that stands."""
        self.blocked = {}
        if not waiting:
            return True
        pids = [link.conversation.pid for link in waiting]
        rows: dict[int, list[int]] = dict(self.admin.execute(_BLOCKERS, [pids]).fetchall())
        if self._proxy.pump(0):
            return False  # what a session told before it began to wait again has arrived by now
        owners = {link.conversation.pid: link for name in self._crew.members for link in self._proxy.links(name)}
        stuck = {pid for pid, link in owners.items() if not is_busy(link)}
        while more := {pid for pid in pids if pid not in stuck and set(rows.get(pid, ())) & stuck}:
            stuck |= more
        if not set(pids) <= stuck or any(set(rows[pid]) - set(owners) for pid in pids):
            for link in waiting:
                if not rows.get(link.conversation.pid):
                    link.conversation.is_waiting = False  # it got its lock: it will tell what comes of it
            return False
        for link in waiting:
            blockers = {owners[pid].participant for pid in rows[link.conversation.pid]}
            before = self.blocked.get(link.participant, ())
            self.blocked[link.participant] = tuple(sorted({*before, *blockers}))
        return True

    def _waits_long_enough(self, running: Sequence[Link]) -> list[Link]:
        """Return those that have waited for several times the deadlock timeout, where they cannot say so."""
        if not running:
            return []
        pids = [link.conversation.pid for link in running]
        ages: dict[int, float | None] = dict(self.admin.execute(_AGES, [pids, pids]).fetchall())
        seconds = min(3 * self._capabilities.deadlock_timeout_seconds, UNTOLD_SECONDS)
        return [link for link in running if (ages.get(link.conversation.pid) or 0.0) > seconds]

    def _are_asleep(self, computing: Sequence[Participant]) -> bool:
        """Return whether all of these wait for something that is not Postgres."""
        asleep = [self._sleeps(member) for member in computing]
        if all(asleep):
            for member in self._crew.members.values():
                member.outside = member in computing and not self._closes(member)
        return all(asleep)

    def _sleeps(self, member: Participant) -> bool:
        closes = self._closes(member)
        if _keeps_connections(member) and not closes:
            return False  # it would have announced that
        return self._watch.is_asleep(member.name, member.pid, member.thread, endless=not closes)

    def _closes(self, member: Participant) -> bool:
        """Whether the end of one of its sessions is held: few programs wait for that, and some do."""
        return any(link.is_owned and link.conversation.pending for link in self._proxy.links(member.name))

    def _describe(self, busy: Sequence[Link], computing: Sequence[Participant]) -> str:
        if computing:
            return (
                f"{computing[0].name} has sent nothing for {SETTLE_SECONDS_MAX:g} s, and does not end: it computes, or "
                "waits for something that cannot be seen"
            )
        link = busy[0]
        what = link.conversation.running.sql if link.conversation.running else "(connecting)"
        return f"{link.participant} gets no answer from Postgres within {SETTLE_SECONDS_MAX:g} s: {what}"


def is_busy(link: Link) -> bool:
    """Whether the server has something to do for this connection."""
    phase = link.conversation.phase
    return link.conversation.is_busy or phase in (Phase.AUTHENTICATING, Phase.LEAVING)


def stands(member: Participant, links: Sequence[Link]) -> bool:
    """Whether a participant waits for us: before a request or an announced step, or shut out of a guard."""
    if member.announced is not None or member.shut_out:
        return True
    pending = [link.conversation.pending for link in links if link.is_owned and link.conversation.pending]
    # Most programs go on when they have sent the end of a session; who sleeps then waits for it, and stands.
    return (member.has_ended and bool(pending)) or any(request.kind is not Kind.LEAVE for request in pending)


def _keeps_connections(member: Participant) -> bool:
    return isinstance(member.spec, Call) and member.spec.kept
