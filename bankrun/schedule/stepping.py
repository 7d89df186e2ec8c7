"""One step: who can take it, what belongs to it, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from bankrun.schedule.cast.control import NOTE
from bankrun.schedule.cast.participant import Participant
from bankrun.schedule.cast.processes import Crew
from bankrun.schedule.errors import Stuck
from bankrun.schedule.observation.footprints import Footprint
from bankrun.schedule.observation.locks import Held, LinkKey
from bankrun.schedule.observation.observer import Observer
from bankrun.schedule.protocol.conversation import QUIET_TAGS
from bankrun.schedule.protocol.proxy import Link, Proxy
from bankrun.schedule.protocol.requests import Kind, Request
from bankrun.schedule.server import Server
from bankrun.schedule.settling import Settling
from bankrun.schedule.timeouts import Shortened, Timeouts
from bankrun.schedule.trace import CLOCK, CONFLICTS, Step, describe, tell

ANNOUNCED = "announced"
CONFLICTS_MAX = 2
"""After so many of them a program that says nothing of itself rests until another has moved."""
NOTHING_SEEN = "it touched nothing that can be seen"
OPENS_GUARDS = frozenset({"expire", Kind.LEAVE.value})
"""Steps after which a guard may be free, besides those in which one is left: a guard may be a session's lock."""
END_SECONDS_MAX = 10.0
EXPIRE_SECONDS_MAX = 5.0


class Stepper:
    """Lets participants go on, one step at a time, and remembers what each did."""

    def __init__(self, proxy: Proxy, crew: Crew, settling: Settling, observer: Observer, server: Server) -> None:
        self.chatter: frozenset[str] = frozenset()
        """Statements that are no steps: in every serial order they touched nothing."""
        self.saw_outside = False
        """Whether anybody waited for something that is not Postgres in this execution."""
        self.sources = False
        """Whether each step says where in its program the participant was."""
        self.insists = False
        """Whether those who rest after a conflict can go on all the same: they come last among the able."""
        self.timeouts = Timeouts(proxy)
        self.resting: list[str] = []
        """Who rested when it was last asked who can go, though it stands and others can go."""
        self.beyond: set[str] = set()
        """Who was in conflict so often that not every order is run from there, and would have gone on."""
        self._often: set[str] = set()
        self._proxy = proxy
        self._crew = crew
        self._settling = settling
        self._observer = observer
        self._server = server
        self._leases_expire = False
        self._has_expired = False
        self._conflicts: dict[str, int] = {}
        self._done: dict[LinkKey, list[Request]] = {}
        self._plans: dict[LinkKey, list[str]] = {}
        self._tried: list[str] = []
        self._whose: dict[LinkKey, str] = {}
        self._closed: set[LinkKey] = set()

    def begin(self, *, leases_expire: bool) -> None:
        """Forget the last execution."""
        self._leases_expire = leases_expire
        self._has_expired = False
        self.saw_outside = False
        self._conflicts.clear()
        self.beyond.clear()
        self._often.clear()
        self.timeouts.begin()
        self._closed.clear()
        self._forget_done()

    # Who can go.

    def able(self) -> list[str]:
        """Return who can take a step. Those that rest after a conflict can only if nobody else can."""
        standing = [member for member in self._crew.members.values() if self._stands(member)]
        able = [member.name for member in standing if not member.rests]
        if not able and standing:
            standing[0].rests = False
            able = [standing[0].name]
        self.resting = [member.name for member in standing if member.rests]
        self.beyond |= self._often.intersection(self.resting)
        if self.insists:
            able += self.resting
        if able and (self._lease_holder() is not None or self._find_short() is not None):
            able.append(CLOCK)
        return able

    def have_all_ended(self) -> bool:
        """Whether every participant that was started has ended."""
        return all(member.has_ended for member in self._crew.members.values())

    def why_not(self) -> str:
        """Return why nobody can go on; nothing if everybody has ended."""
        reasons = []
        for member in self._crew.members.values():
            if member.has_ended:
                continue
            if member.shut_out:
                reasons.append(f"{member.name} waits for a guard that nobody leaves")
            elif member.outside:
                reasons.append(f"{member.name} waits for something that is not Postgres")
            else:
                blockers = ", ".join(self._settling.blocked.get(member.name, ()))
                reasons.append(f"{member.name} waits in Postgres for {blockers or 'nobody who takes part'}")
        return "nobody can go on: " + "; ".join(reasons) if reasons else ""

    def _stands(self, member: Participant) -> bool:
        if member.shut_out:
            return False
        return member.announced is not None or self._pending(member.name) is not None

    def _pending(self, name: str) -> Link | None:
        """Return where a participant has a request; the end of a session comes first, for it was sent first."""
        found = [link for link in self._proxy.links(name) if link.is_owned and link.conversation.pending]
        return next(filter(_leaves, found), found[0] if found else None)

    def _next_request(self, member: Participant) -> Link | None:
        """Return the connection whose request is this participant's next step; None if that is what it announced."""
        link = self._pending(member.name)
        return None if member.announced is not None and not (link and _leaves(link)) else link

    def _lease_holder(self) -> Participant | None:
        if not self._leases_expire or self._has_expired:
            return None
        members = self._crew.members.values()
        return next((m for m in members if m.has_lease and m.steps_in_guard and not m.has_ended), None)

    def describe_next(self, name: str) -> str:
        """Return what a participant that can take a step would do."""
        if name == CLOCK:
            holder = self._lease_holder()
            return f"{holder.name}'s lease runs out" if holder else "the time to wait runs out"
        member = self._crew.members[name]
        link = self._next_request(member)
        if link is None:
            return member.announced.text if member.announced is not None else ""
        request = link.conversation.pending
        assert request is not None
        return " ".join(request.sql.split()) or request.kind.value

    # One step.

    def step(self, name: str) -> Step | None:
        """Let a participant take its step, and wait until everybody stands again.

        Returns None if it was about to enter a guard that is taken: then nothing has happened.
        """
        waits_outside = self._outside()
        if name == CLOCK:
            step: Step | None = self._run_out() if self._lease_holder() is None else self._expire()
        else:
            member = self._crew.members[name]
            source = self._where(member) if self.sources else ()
            link = self._next_request(member)
            step = self._take_announced(member) if link is None else self._take_requests(member, link)
            if step is not None:
                step.source = source
        if step is not None:
            if step.kind in OPENS_GUARDS or any(one.left for one in self._crew.members.values()):
                step.opens_guards = True
                self._open_guards()
            if waits_outside or self._outside():
                step.footprint.depends_on_all("a wait for something that is not Postgres")
                self.saw_outside = True
            for member in self._crew.members.values():
                if member.name != name:
                    member.rests = False
                step.notes += member.notes
                member.notes.clear()
            self.timeouts.count_step()
        return step

    def _outside(self) -> list[str]:
        """Return who waits for something that is not Postgres."""
        return [member.name for member in self._crew.members.values() if member.outside and not member.has_ended]

    def settle(self) -> None:
        """Wait until everybody stands, and let through what is no step of its own."""
        self._settle()
        self.saw_outside = self.saw_outside or bool(self._outside())
        self._release_tails()
        self._forget_done()

    def _expire(self) -> Step:
        holder = self._lease_holder()
        assert holder is not None
        footprint = Footprint(locks={(ANNOUNCED, holder.guard): False})
        step = Step(CLOCK, "expire", f"{holder.name}'s lease runs out", footprint=footprint)
        self._has_expired = True
        holder.has_lease = False
        holder.tell(expire=True)
        deadline = time.monotonic() + EXPIRE_SECONDS_MAX
        while not holder.expired:
            self._proxy.pump(0.005)
            if time.monotonic() > deadline:
                raise Stuck(f"{holder.name}'s lease does not run out within {EXPIRE_SECONDS_MAX:g} s")
        return step

    def _run_out(self) -> Step:
        """Let the time run out for which a session waits for a lock."""
        found = self._find_short()
        assert found is not None
        name, before = found.link.participant, dict(self._settling.blocked)
        has_run_out = self.timeouts.run_out(found)
        self._settle()
        self.timeouts.restore()  # before what belongs to this step: a ROLLBACK would take our setting back by itself
        self._collect()
        step = self._observe(self._crew.members[name], "timeout", before)
        step.notes += [f"its {found.name} runs out"] if has_run_out else []
        return step

    def _find_short(self) -> Shortened | None:
        return self.timeouts.find(link for name in self._settling.blocked for link in self._proxy.links(name))

    def _open_guards(self) -> None:
        for member in self._crew.members.values():
            member.shut_out = False
            member.left = False

    def _take_announced(self, member: Participant) -> Step | None:
        announced = member.go()
        self._settle()
        if announced.guard and member.shut_out:
            return None
        footprint = Footprint(locks={(ANNOUNCED, name): False for name in announced.locks})
        footprint.reads = {(ANNOUNCED, name) for name in announced.reads}
        footprint.shows = {(ANNOUNCED, name) for name in announced.shows}
        return Step(member.name, announced.kind, announced.text, footprint=footprint)

    def _take_requests(self, member: Participant, first: Link) -> Step:
        name = member.name
        before = dict(self._settling.blocked)
        kind = ""
        was_closed = _leaves(first) and first.key in self._closed
        following: Link | None = first
        while following is not None:
            link = following
            ends_nothing = self._ends_nothing(link)
            is_chatter = link.conversation.pending is not None and link.conversation.pending.sql in self.chatter
            touched = self._look_at(link) if is_chatter else ()
            self.timeouts.shorten(link)
            request = self._proxy.release(link)
            is_local = request.kind is Kind.PREPARE or is_chatter or ends_nothing
            kind = request.kind.value if not kind or not is_local else kind
            self._settle()
            self._collect()
            self.timeouts.restore()
            is_local = is_local or (request.kind is Kind.STATEMENT and _is_quiet(request))
            if is_chatter and self._look_at(link) != touched:
                is_local = False  # it touches something after all, this time: a step of its own
            goes_on = is_local and not request.sqlstate and name not in self._settling.blocked
            following = self._pending(name) if goes_on and member.announced is None else None
        step = self._observe(member, kind, before)
        step.was_closed = was_closed
        return step

    def _settle(self) -> None:
        """Wait until everybody stands. Notes are taken without being steps."""
        self._settling.settle()
        while noting := [one for one in self._crew.members.values() if one.announced and one.announced.kind == NOTE]:
            for member in noting:
                self._closed |= {link.key for link in self._proxy.links(member.name) if _leaves(link)}
                member.notes.append(member.go().text)
            self._settling.settle()

    def _look_at(self, link: Link) -> tuple[object, ...]:
        """Return what a session holds."""
        held = self._observer.look([link]).get(link.key)
        return () if held is None else (held.modes, held.xids, held.advisory, held.predicates, held.unlogged)

    def _observe(self, member: Participant, kind: str, before: dict[str, tuple[str, ...]]) -> Step:
        name = member.name
        blocked = self._settling.blocked
        woken = tuple(sorted(one for one in before if one not in blocked))
        others_wait = len(self._crew.members) > 2 and bool(woken or any(one != name for one in blocked))
        footprint = self._observer.observe(
            name,
            self._links(),
            self._done,
            self._plans,
            self._tried,
            blocked=name in blocked,
            woken=woken,
            others_wait=others_wait,
        )
        step = Step(name, kind, "", blocked_by=blocked.get(name, ()), woken=woken, footprint=footprint)
        for key, requests in self._done.items():
            told = [tell(request, key[1]) for request in requests]
            if self._whose[key] == name:
                step.statements += told
            else:
                step.then.setdefault(self._whose[key], []).extend(told)
        for link in self._proxy.links(name):
            if link.conversation.running is not None and name in blocked:
                step.statements.append(tell(link.conversation.running, link.conversation.number))
        step.text = describe(step.statements) or kind
        self._count_conflicts(step)
        member.steps_in_guard += 1
        known = all(
            one.sql in self.chatter or one.tag in ("COMMIT", "ROLLBACK")
            for one in step.statements
            if one.kind == "statement"
        )
        if footprint.is_unexplained and kind == "statement" and not (known or footprint.harmless):
            footprint.depends_on_all(NOTHING_SEEN)
        self._forget_done()
        self._release_tails(self._observer.seen)
        self._forget_done()
        return step

    def _count_conflicts(self, step: Step) -> None:
        for name, statements in ((step.participant, step.statements), *step.then.items()):
            found = sum(statement.sqlstate in CONFLICTS for statement in statements)
            self._conflicts[name] = self._conflicts.get(name, 0) + found
            if found and self._conflicts[name] > CONFLICTS_MAX:
                self._crew.members[name].rests = True
                self._often.add(name)

    # What belongs to the step before it.

    def _release_tails(self, seen: Mapping[LinkKey, Held] | None = None) -> None:
        """Let through what has no effect: the commit of nothing, the end of an idle session.

        ``seen`` is what the sessions hold, if that was asked since anything moved.
        """
        while True:
            found = [link for link in self._links() if self._may_be_tail(link)]
            if not found:
                return
            held = self._observer.look(found) if seen is None else seen
            seen = None
            released = False
            for link in found:
                one = held.get(link.key)
                if one is not None and one.has_effects:
                    continue
                released = True
                self._observer.forget(link)
                if link.conversation.holds_sync:
                    self._proxy.commit_at_once(link)
                else:
                    self._proxy.release(link)
            if not released:
                return
            self._settle()
            self._collect()

    def _may_be_tail(self, link: Link) -> bool:
        request = link.conversation.pending
        if request is None:
            return False
        if request.kind in (Kind.COMMIT, Kind.LEAVE):
            return True
        if request.kind is not Kind.STATEMENT or link.conversation.status == "I":
            return False
        return self._observer.ends_transaction(request.sql, self._server.connect)

    def _ends_nothing(self, link: Link) -> bool:
        """Whether the request is COMMIT or ROLLBACK of a transaction in which nothing but chatter was."""
        request = link.conversation.pending
        if request is None or request.kind is not Kind.STATEMENT or not self._may_be_tail(link):
            return False
        held = self._observer.look([link]).get(link.key)
        return held is not None and not held.has_effects

    def _links(self) -> list[Link]:
        return [link for name in self._crew.members for link in self._proxy.links(name)]

    def _collect(self) -> None:
        for link in self._links():
            conversation = link.conversation
            key = link.key
            self._whose[key] = link.participant
            if conversation.done:
                self._done.setdefault(key, []).extend(conversation.take_done())
            if conversation.plans:
                self._plans.setdefault(key, []).extend(conversation.plans)
                conversation.plans = []
            self._tried += conversation.tried
            conversation.tried = []

    def _forget_done(self) -> None:
        self._collect()
        self._done, self._plans, self._tried, self._whose = {}, {}, [], {}

    # Where a participant is.

    def locate(self, name: str) -> tuple[tuple[str, int, str], ...]:
        """Return where in its program a participant is, the innermost last; nothing if that cannot be told."""
        return self._where(self._crew.members[name])

    def _where(self, member: Participant) -> tuple[tuple[str, int, str], ...]:
        if member.channel is None:
            return ()
        member.stack = []
        member.tell(where=1)
        deadline = time.monotonic() + 1.0
        while not member.stack and time.monotonic() < deadline:
            self._proxy.pump(0.005)
        return tuple(member.stack)

    # The end.

    def await_end_of(self, pids: Sequence[int]) -> None:
        """End these sessions, and wait until they are gone. Raises Stuck if one stays."""
        admin = self._settling.admin
        admin.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [list(pids)])
        self._wait_until(
            lambda: not admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", [list(pids)]).fetchall(),
            f"the sessions {', '.join(map(str, pids))} do not end",
        )

    def settle_spares(self) -> None:
        """Wait until the sessions that will be used again are clean."""
        self._wait_until(lambda: not self._proxy.is_washing(), "a session does not answer DISCARD ALL")

    def _wait_until(self, is_so: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + END_SECONDS_MAX
        while not is_so():
            self._proxy.pump(0.002)
            if time.monotonic() > deadline:
                raise Stuck(otherwise)


def _leaves(link: Link) -> bool:
    return link.conversation.pending is not None and link.conversation.pending.kind is Kind.LEAVE


def _is_quiet(request: Request) -> bool:
    return bool(request.tags) and QUIET_TAGS.issuperset(request.tags)
