"""Every order in which a few transfers can meet: run by the engine, audited, counted."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Self
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import make_url

from bank.audit import Audit, audit
from bank.errors import BankError, StrategyFault
from bank.outside.places import Spot, find_place, folder_of, lies_in, top_of
from bank.postgres.models import APPLIED, REFUSED, SCHEMA
from bank.settings import Settings
from bank.strategies import STRATEGIES
from bank.strategies.base import Strategy
from bankrun.errors import CannotStart
from bankrun.proof.background import tell_schedule
from bankrun.proof.cases import PARTICIPANTS, Case
from bankrun.proof.leases import EmptyRedis, Leases
from bankrun.proof.participant import SESSION_ENDS
from bankrun.proof.private_bank import PrivateBank, accept_case, open_private_bank
from bankrun.results.models.proof import CaseResult
from bankrun.results.provenance import Verdict
from bankrun.runs.rehearsal import rehearse
from bankrun.schedule import Budget, Call, Engine, Execution, Step, Warmed, explore, follow, replay, run_serially
from bankrun.schedule.errors import Diverged, ScheduleError
from bankrun.schedule.observation.footprints import ADVISORY
from bankrun.schedule.trace import describe

IS_WHOLE = f"""
    SELECT NOT EXISTS (
        SELECT FROM {SCHEMA}.accounts a
        WHERE balance <> opening + (SELECT coalesce(sum(delta), 0) FROM {SCHEMA}.entries e WHERE e.account_id = a.id)
    ) AND NOT EXISTS (
        SELECT FROM {SCHEMA}.transfers t
        WHERE (SELECT count(*) FROM {SCHEMA}.entries e WHERE e.transfer_id = t.id)
            <> CASE status WHEN 'applied' THEN 2 ELSE 0 END
    )
"""  # noqa: S608 - our own schema
"""What everybody may expect to see who looks after a commit: each account is what its entries say, each transfer all
or nothing."""

PARTICIPANT = "bankrun.proof.participant"
"""The module that participants' processes have imported."""
REPLAYS = 3
"""How often a broken interleaving is run again before it is reported."""
BUDGET = Budget(executions=5_000, seconds=60.0)
INTERRUPTED = ("same-pair", "drain", "apart")
"""Cases of which each interleaving with one interruption is run besides where transfers may remember something."""


@dataclass(slots=True)
class Judged:
    """One execution: what happened in it, and what became of the money."""

    execution: Execution
    audit: Audit
    torn: tuple[str, ...] = ()
    """The steps after whose commit the bank was not whole, although it may be in the end."""
    unlawful: tuple[UUID, ...] = ()
    """Transfers that were refused, and that no order one by one refuses beside what was applied."""

    @property
    def is_broken(self) -> bool:
        """Whether an invariant fails, in the end or at a commit."""
        return bool(self.torn) or not self.audit.passed

    @property
    def kinds(self) -> list[str]:
        """What fails."""
        kinds = list(dict.fromkeys(finding.kind for finding in self.audit.findings))
        return kinds or (["torn commit"] if self.torn else [])

    @property
    def outcome(self) -> str:
        """What it came to, in a form that can be compared."""
        statuses = ",".join(f"{count} {status}" for status, count in self.audit.transfers.items() if count)
        torn = "; torn" if self.torn and self.audit.passed else ""
        return f"{statuses}; drift {self.audit.drift:+d}; {self.audit.lost_postings} lost{torn}"


class Courtroom:
    """One strategy in one or two instances, ready for any case: its database, its processes, the engine.

    Use as a context manager.
    """

    def __init__(
        self, bank: PrivateBank, warmed: Sequence[Warmed], strategy: type[Strategy], instances: str, participants: str
    ) -> None:
        self.strategy = strategy
        self.instances = instances
        self._participants = participants
        self._bank = bank
        self._warmed = warmed
        self._resources = ExitStack()
        self._case: Case | None = None
        self._torn: list[str] = []
        self._is_warm = False

    def __enter__(self) -> Self:
        try:
            name = self._resources.enter_context(self._bank.database_for(self.strategy))
            self._redis = self._resources.enter_context(EmptyRedis(self._bank.broker_url))
            calls = [
                Call(
                    participant,
                    f"{PARTICIPANT}:apply",
                    process="instance" if self.instances == "same" else "",
                )
                for participant in self._participants
            ]
            self.engine = self._resources.enter_context(
                Engine(
                    self._bank.server(name),
                    calls,
                    reads_rows=False,
                    warmed=self._warmed,
                    environment=self._describe_instance,
                    on_commit=self._look_at_commit,
                    on_begin=self._begin_anew,
                )
            )
            self._bank.mark_template(name)
            self._database = self._resources.enter_context(self._bank.connect(name))
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _describe_instance(self, name: str, variables: Mapping[str, str]) -> Mapping[str, str]:
        """Return the environment of a participant's process: a worker's, with the proof's servers."""
        worker = self._bank.worker
        url = make_url(variables["DATABASE_URL"]).set(username=worker).render_as_string(hide_password=False)
        return {**self._bank.describe_settings(url), "DATABASE_URL": url, "PGUSER": worker}

    def hear(self, case: Case) -> None:
        """Make a case the beginning of every execution from now on."""
        self._case = case
        self.engine.leases_expire = case.leases_expire
        for name, message in case.messages().items():
            orders = [[str(one.id), one.debit, one.credit, one.amount] for one in message]
            self.engine.give(name, [self.strategy.name, find_folder(self.strategy), orders])
        self.engine.begin_from(lambda admin: accept_case(admin, case, self.strategy.name))
        self._warm_up()

    def _warm_up(self) -> None:
        """Let the processes ask for what they ask for only once, and learn what a user's drivers ask for each time."""
        if self.strategy not in STRATEGIES.values():
            run_serially(self.engine)
        elif not self._is_warm:
            self.engine.execute(follow(""), self._participants)
        self._is_warm = True

    def _begin_anew(self) -> None:
        """Begin an execution: nothing is torn, and Redis is as empty as the bank is new."""
        self._torn.clear()
        self._redis.empty()

    @property
    def may_remember(self) -> bool:
        """Whether transfers can leave each other something that no footprint has: in a process, or in Redis."""
        is_others = self.strategy not in STRATEGIES.values()
        return is_others and (self.instances == "same" or self._redis.was_written)

    def _look_at_commit(self, step: Step) -> None:
        row = self.engine.admin.execute(IS_WHOLE).fetchone()
        if row != (True,):
            self._torn.append(step.text)

    def judge(self, execution: Execution) -> Judged:
        """Audit the bank after an execution. Raises StrategyFault where the strategy failed to be one."""
        torn = tuple(self._torn)
        self._raise_faults(execution)
        found = self._audit()
        assert self._case is not None
        return Judged(execution, found, torn, self._find_unlawful(self._case))

    def _raise_faults(self, execution: Execution) -> None:
        """Raise StrategyFault for what is no outcome of a transfer."""
        name = self.strategy.name
        for outcome in execution.outcomes.values():
            if outcome.truncated or outcome.abandoned:
                continue
            if outcome.error == StrategyFault.__name__:
                raise StrategyFault(name, outcome.message.removeprefix(name).strip())
            if outcome.error:
                raise StrategyFault(name, f"ends with {outcome.error}: {outcome.message}")
        if execution.stuck:
            raise StrategyFault(name, self._name_hang(execution) if execution.stuck_kind == "hang" else execution.stuck)
        for number, step in enumerate(execution.steps):
            keys = {key for relation, key in step.footprint.locks if relation == ADVISORY}
            held = step.kind == "leave" and not step.was_closed and keys
            if held and self._is_over(execution.steps[:number], step.participant):
                raise StrategyFault(name, self._name_leak(execution, step.participant, keys))

    @staticmethod
    def _is_over(steps: Sequence[Step], participant: str) -> bool:
        return any(step.participant == participant and SESSION_ENDS in step.notes for step in steps)

    def _name_leak(self, execution: Execution, participant: str, keys: Collection[str]) -> str:
        """Return what a session still held when its transfer was over, and where it was taken."""
        self.engine.stepper.sources = True
        again = replay(self.engine, execution.schedule)
        self.engine.stepper.sources = False
        places = [
            self._find_theirs(step.source)
            for step in again.steps
            if step.participant == participant and any(key in keys for _, key in step.footprint.locks)
        ]
        where = f", taken in {places[0]}" if places and places[0] else ""
        return f"leaks a session lock: its transfer is over, and its session still holds {_name_keys(keys)}{where}"

    def name_fault(self, error: ScheduleError) -> StrategyFault:
        """Return what to say of a strategy with which the engine cannot go on."""
        return StrategyFault(self.strategy.name, f"cannot be proved: {error}")

    def _name_hang(self, execution: Execution) -> str:
        places = [self._find_theirs(stack) for stack in execution.stands.values()]
        where = f" (it stands in {' and in '.join(filter(None, places))})" if any(places) else ""
        return f"hangs{where}: {execution.stuck}; a lock of its own that it waits for belongs into guard()"

    def _find_theirs(self, stack: Sequence[tuple[str, int, str]]) -> str:
        """Return the innermost line of the user's code on a stack; nothing if there is none."""
        spots = [Spot("", file, line, function) for file, line, function in stack]
        folder = find_folder(self.strategy)
        theirs = [spot for spot in spots if folder is not None and lies_in(Path(spot.file), Path(folder))]
        return find_place(theirs[::-1], self.strategy.__module__) if theirs else ""

    def _audit(self) -> Audit:
        try:
            return audit(self._database)
        except BankError:  # the database was made anew, and the session is gone
            return audit(self._database)

    def _find_unlawful(self, case: Case) -> tuple[UUID, ...]:
        """Return the refused transfers that each order one by one would have paid, given those that are applied."""
        with self._database.transaction() as transaction:
            rows = transaction.execute("SELECT id, status FROM transfers ORDER BY id").fetchall()
        applied = frozenset(number for number, status in rows if status == APPLIED)
        if any(status not in (APPLIED, REFUSED) for _, status in rows) or applied in case.lawful_outcomes():
            return ()
        return tuple(number for number, status in rows if status == REFUSED)

    def run_serially(self) -> list[Judged]:
        """Run the transfers one after the other, in each order.

        Raises StrategyFault for one that is tried again and again though nobody is in its way: where nothing is ever
        done, nothing is ever lost.
        """
        found = [self.judge(self.engine.execute(follow(""), order)) for order in permutations(self._participants)]
        for judged in found:
            if judged.execution.truncated and not judged.is_broken:
                why = _name_failure(judged.execution) or "it is in conflict each time"
                raise StrategyFault(
                    self.strategy.name, f"does not apply a transfer that nobody is in the way of: {why}"
                )
        return found

    def replay(self, schedule: str, *, sources: bool = False) -> Judged:
        """Run one interleaving again. Raises CannotStart if these choices are not possible."""
        self.engine.stepper.sources = sources
        try:
            return self.judge(replay(self.engine, schedule))
        except Diverged as error:
            raise CannotStart(str(error)) from error
        finally:
            self.engine.stepper.sources = False


class Prover:
    """Proves strategies on a private bank. Use as a context manager; it keeps the last courtroom open.

    With ``database_url``, in scratch databases of that server.
    """

    def __init__(self, settings: Settings, *, transfers: int = 2, database_url: str | None = None) -> None:
        self._settings = settings
        self._database_url = database_url
        self._participants = PARTICIPANTS[:transfers]
        self._resources = ExitStack()
        self._courtroom: Courtroom | None = None

    def __enter__(self) -> Self:
        with self._resources:
            self._warmed = [Warmed.start({**os.environ, **hash_seed(one)}) for one in range(len(self._participants))]
            for warmed in self._warmed:
                self._resources.callback(warmed.close)
                warmed.import_all([PARTICIPANT])  # while the servers start
            self.bank = self._resources.enter_context(open_private_bank(self._settings.state_dir, self._database_url))
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        self._resources.close()

    def _leave(self) -> None:
        courtroom, self._courtroom = self._courtroom, None
        if courtroom is not None:
            courtroom.__exit__()

    def open(self, strategy: type[Strategy], instances: str) -> Courtroom:
        """Return the courtroom for a strategy, in a bank that nobody used before unless it is open already."""
        now = self._courtroom
        if now is None or (now.strategy, now.instances) != (strategy, instances):
            self._leave()
            self._courtroom = now = Courtroom(
                self.bank, self._warmed, strategy, instances, self._participants
            ).__enter__()
        return now

    def rehearse(self, strategy: type[Strategy]) -> None:
        """Let a strategy show that it can be used at all. Raises StrategyFault, and says what is wrong."""
        with self.bank.database_for(strategy) as name, self.bank.connect(name) as database:
            broker = SecretStr(self.bank.broker_url)
            settings = self._settings.model_copy(update={"database_url": SecretStr(database.url), "broker_url": broker})
            leases = Leases(settings)
            try:
                rehearse(database, settings, [strategy.name], hold=leases.try_enter)
            finally:
                leases.close()

    def prove(
        self,
        strategy: type[Strategy],
        instances: str,
        case: Case,
        *,
        pruned: bool = True,
        preemptions_max: int | None = None,
        budget: Budget | None = None,
    ) -> CaseResult:
        """Run every interleaving of a case and audit each.

        Raises StrategyFault, naming the fault and its place, for a strategy that does not keep to its contract; the
        prover can then go on with others.
        """
        started = time.perf_counter()
        courtroom = self.open(strategy, instances)
        try:
            return self._prove(courtroom, case, pruned, preemptions_max, budget, started)
        except ScheduleError as error:
            fault = courtroom.name_fault(error)
            self._leave()
            raise fault from error
        except BaseException:
            self._leave()  # what hangs in there, or is held, ends with it
            raise

    def _prove(
        self,
        courtroom: Courtroom,
        case: Case,
        pruned: bool,  # noqa: FBT001
        preemptions_max: int | None,
        budget: Budget | None,
        started: float,
    ) -> CaseResult:
        strategy = courtroom.strategy
        result = begin_case(strategy, courtroom.instances, case)
        courtroom.hear(case)
        result.serial_broken = sum(judged.is_broken for judged in courtroom.run_serially())
        kinds: dict[str, None] = {}
        outcomes: set[str] = set()
        broken: dict[str, str] = {}
        again = False  # the same interleavings in another way, or detours: they count if they are broken

        def judge(execution: Execution) -> None:
            judged = courtroom.judge(execution)
            if again and not (judged.is_broken or judged.unlawful):
                return
            _count(result, judged)
            outcomes.add(judged.outcome)
            if judged.is_broken:
                kinds.update(dict.fromkeys(judged.kinds))
                broken[execution.schedule] = judged.outcome

        def may_remember() -> bool:
            nonlocal again
            again = case.name in INTERRUPTED and courtroom.may_remember and not result.broken
            return again

        def insists() -> bool:
            nonlocal again
            again = again or (strategy not in STRATEGIES.values() and not result.broken)
            return again

        found = explore(
            courtroom.engine,
            judge,
            budget=budget or BUDGET,
            pruned=pruned,
            preemptions_max=preemptions_max,
            remembers=may_remember,
            insists=insists,
        )
        result.left_out, result.complete, result.reason = found.cut, found.complete, found.reason
        result.kinds, result.outcomes = list(kinds), sorted(outcomes)
        schedules = sorted(broken, key=lambda schedule: (len(schedule), schedule))
        result.broken_ids = [name_interleaving(strategy.name, courtroom.instances, case, one) for one in schedules]
        result.shortest_broken = next(iter(result.broken_ids), None)
        if schedules:
            try:
                shown = {courtroom.replay(schedules[0]).outcome for _ in range(REPLAYS)}
            except CannotStart:  # the same choices led elsewhere
                shown = set()
            if shown != {broken[schedules[0]]}:
                result.complete, result.reason = False, f"{schedules[0]} did not end the same when it was run again"
            else:
                with suppress(CannotStart):  # the verdict stands without a schedule to look at
                    result.steps, result.background = tell_schedule(courtroom, case, schedules[0])
        result.verdict, result.reason = _give_verdict(result)
        result.seconds = round(time.perf_counter() - started, 3)
        return result

    def replay(self, strategy: type[Strategy], instances: str, case: Case, schedule: str) -> Judged:
        """Run exactly one interleaving again. Raises CannotStart if these choices are not possible."""
        courtroom = self.open(strategy, instances)
        courtroom.hear(case)
        return courtroom.replay(schedule, sources=True)


def hash_seed(number: int) -> dict[str, str]:
    """Return what makes a process hash in its own way, and in the same way each time. A fork keeps it."""
    return {"PYTHONHASHSEED": str(number + 1)}


def begin_case(strategy: type[Strategy], instances: str, case: Case) -> CaseResult:
    """Return a case's result without any execution yet: what is claimed, and what is to be expected."""
    covered = strategy.claim.covers(instances=1 + (instances == "two"), threads=2, hosts=1)
    safe = covered and (strategy.survives_pause is not False or not case.leases_expire)
    return CaseResult(
        strategy.name, instances, case.name, len(case.legs), strategy.claim.value, "safe" if safe else "unsafe"
    )


def _count(result: CaseResult, judged: Judged) -> None:
    conflicts: Counter[str] = Counter()
    for outcome in judged.execution.outcomes.values():
        if outcome.result:
            conflicts.update(outcome.result["conflicts"])
            result.leases |= outcome.result["leases"]
    result.interleavings += 1
    result.broken += judged.is_broken
    result.truncated += bool(judged.execution.truncated)
    result.conflicts += conflicts.total()
    result.deadlocks += conflicts["deadlocks"]
    result.refused_payable += bool(judged.unlawful)


def _give_verdict(result: CaseResult) -> tuple[Verdict, str]:
    """Return a case's verdict and its reason. Nothing that was cut short, or refuses what could be paid, is safe."""
    if result.broken:
        if result.serial_broken:
            return "broken", "broken one after the other, too: it is the arithmetic, not a race"
        if result.leases and result.case == "paused-holder":
            keys = ", ".join(f"{key} in Redis, {milliseconds} ms" for key, milliseconds in result.leases.items())
            return "broken", f"its guard is a lease that it does not declare ({keys}): say survives_pause"
        return "broken", result.reason
    if result.refused_payable:
        return "inconclusive", f"{result.refused_payable} of {result.interleavings} refuse what could have been paid"
    if not result.complete:
        return "inconclusive", result.reason
    return "safe", result.reason


def name_interleaving(strategy: str, instances: str, case: Case, schedule: str) -> str:
    """Return the id by which an interleaving can be run again: it says all there is to know."""
    return f"{strategy}/{instances}/{case.name}/{schedule}"


def _name_failure(execution: Execution) -> str:
    """Return the last statement that failed for one who was cut short, and what Postgres said."""
    failed = [
        statement
        for step in execution.steps
        if step.participant in execution.truncated
        for statement in step.statements
        if statement.sqlstate
    ]
    return f"{describe(failed[-1:])} fails with {failed[-1].sqlstate}: {failed[-1].message}" if failed else ""


def _name_keys(keys: Collection[str]) -> str:
    """Return advisory locks as they were taken: by one number, or by two (manual, section 53.13)."""
    named = []
    for key in sorted(keys):
        high, low, kind = (int(part) for part in key.split(":"))
        named.append(f"pg_advisory_lock({(high << 32) | low})" if kind == 1 else f"pg_advisory_lock({high}, {low})")
    return " and ".join(named)


def find_folder(strategy: type[Strategy]) -> str | None:
    """Return the folder in which a user's module lies, for processes that have to find it, too."""
    if strategy in STRATEGIES.values():
        return None
    top = top_of(strategy.__module__)
    return str(folder_of(top)) if top in sys.modules else None
