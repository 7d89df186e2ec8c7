"""What a lock is worth: each almost right strategy is made to fail, and each lease is made to run out."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import filelock
import pytest
from pydantic import SecretStr

from bank.audit import audit
from bank.errors import CannotStart, NotAcquired
from bank.orders import Order
from bank.outside import strategy_named
from bank.postgres.database import Database, Transaction
from bank.postgres.schema import bank_id, create_schema, open_bank
from bank.receipts import Receipt
from bank.settings import Settings
from bank.strategies import STRATEGIES, Attempt, Guard, Lease, Strategy
from bank.strategies.file_lock import FileLock, lock_directory
from bank.strategies.redis_lock import redis_url
from bank.strategies.redis_lock_fenced import RedisLockFenced
from bank.teller import Pace
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Lab, Plan
from bankrun.runs.progress import Silence
from tests.integration.conftest import Branch, BranchMaker, balances, order
from workers.app import QUEUE
from workers.fleet import InstanceInfo
from workers.process.instance import find_file_lock_host
from workers.submission import Submission, accept

Accepted = Callable[..., Order]
SECONDS_MAX = 10.0
ALMOST_RIGHT = [
    "thread-lock-early",
    "advisory-lock-early",
    "redis-lock-fenced-late",
    "check-then-debit",
    "retry-without-reread",
]


class Staged(Pace):
    """A pace in which the first pass through each place runs what a test has put there."""

    def __init__(self) -> None:
        self.guard: Guard | None = None
        self.thinking: Callable[[], object] | None = None
        self.after_leaving: Callable[[], object] | None = None

    def enter(self, guard: Guard, timeout_seconds: float) -> None:
        super().enter(guard, timeout_seconds)
        self.guard = guard

    def leave(self, guard: Guard) -> None:
        super().leave(guard)
        self._once("after_leaving")

    def think(self, transaction: Transaction, seconds: float) -> None:
        self._once("thinking")

    def _once(self, place: str) -> None:
        staged = getattr(self, place)
        setattr(self, place, None)
        if staged is not None:
            staged()


def staged(branch: Branch) -> Staged:
    """Give a branch a pace that the test directs."""
    branch.teller.pace = pace = Staged()
    return pace


def start(branch: Branch, transfer: Order) -> Future[Receipt]:
    """Apply a transfer in one of the branch's threads."""
    return branch.pool.submit(branch.apply, transfer)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is true; fail if it never is."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def waits_in_postgres(database: Database, branch: str) -> bool:
    """Whether a branch's session waits for another's lock."""
    with database.transaction() as transaction:
        row = transaction.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %(name)s"
            " AND cardinality(pg_blocking_pids(pid)) > 0",
            {"name": f"bankrun {branch}"},
        ).fetchone()
    return row is not None and row[0] > 0


def lock_is_left(database: Database) -> bool:
    """Whether any session holds an advisory lock of ours."""
    with database.transaction() as transaction:
        row = transaction.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
        ).fetchone()
    return row is not None and row[0] > 0


@pytest.fixture
def pair(branch: BranchMaker, bank: Database, accepted: Accepted) -> Callable[[str], Any]:
    """Return a maker of two branches with a strategy each, and of two transfers from account 1 to account 2."""

    def make(name: str) -> tuple[Branch, Branch, Order, Order]:
        one, two = branch(name), branch(name)
        return one, two, accepted(1, 1, 2, 10), accepted(2, 1, 2, 5)

    return make


# --- What they say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_says_what_it_claims_and_how_on_one_line(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.__dict__["name"] == name
    assert len(strategy.summary) <= 40  # a table of them fits a terminal
    said = re.search(r"Claims (\w+|one process|one host)", strategy.__doc__ or "")
    assert said is not None, f"{strategy.__name__}'s docstring says nothing of a claim"
    claimed = {"one": "process" if "Claims one process" in str(strategy.__doc__) else "host"}.get(said[1], said[1])
    assert claimed == strategy.claim.value


def test_the_almost_right_claim_nothing_and_say_why_people_believe_in_them() -> None:
    found = [name for name, one in STRATEGIES.items() if "believe in it because" in (one.__doc__ or "")]
    assert sorted(found) == sorted(ALMOST_RIGHT)
    for name in ALMOST_RIGHT:
        assert not STRATEGIES[name].claim.covers(instances=1, threads=2, hosts=1)


# --- The almost right, made to fail ----------------------------------------------------------------------------------


def test_a_thread_lock_released_before_commit_loses_a_posting_in_one_instance(pair: Any, bank: Database) -> None:
    one, _, first, second = pair("thread-lock-early")
    pace, read, second_done = staged(one), threading.Event(), []

    def second_enters_and_reads() -> None:
        pace.thinking = read.set
        second_done.append(start(one, second))
        assert read.wait(SECONDS_MAX)

    pace.after_leaving = second_enters_and_reads
    assert start(one, first).result().outcome == "applied"
    assert second_done[0].result().outcome == "applied"
    assert audit(bank).lost_postings == 2


def test_an_advisory_lock_released_before_commit_loses_a_posting(
    branch: BranchMaker, bank: Database, accepted: Accepted, settings: Settings
) -> None:
    early = strategy_named("advisory-lock-early")
    read, second_done = threading.Event(), []

    class Directed(early):  # type: ignore[misc, valid-type]
        def move(self, transaction: Transaction, attempt: Attempt) -> None:
            super().move(transaction, attempt)
            # It has unlocked. COMMIT comes next.
            second_done.append(start(two, second))
            assert read.wait(SECONDS_MAX)

    one, two = branch(Directed.open(settings)), branch("advisory-lock-early")
    staged(two).thinking = read.set
    first, second = accepted(1, 1, 2, 10), accepted(2, 1, 2, 5)
    assert start(one, first).result().outcome == "applied"
    assert second_done[0].result().outcome == "applied"
    assert audit(bank).lost_postings == 2


def test_a_session_lock_does_not_stay_behind_a_transfer_that_fails(pair: Any, bank: Database) -> None:
    one, two, first, second = pair("advisory-lock-early")

    def fail() -> None:
        raise ZeroDivisionError

    staged(one).thinking = fail
    with pytest.raises(ZeroDivisionError):
        start(one, first).result()
    wait_for(lambda: not lock_is_left(bank))
    assert start(two, second).result().attempts == 1
    assert start(one, first).result().outcome == "applied"


def test_a_session_lock_does_not_stay_behind_a_refusal_or_a_commit(
    pair: Any, bank: Database, accepted: Accepted
) -> None:
    one, _, first, _ = pair("advisory-lock-early")
    assert one.apply(first).outcome == "applied"
    assert one.apply(accepted(3, 1, 2, 1000)).outcome == "refused"
    assert not lock_is_left(bank)


def test_funds_checked_in_another_transaction_overdraw_and_lose_no_posting(
    branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    one, two = branch("check-then-debit"), branch("check-then-debit")
    both_have_checked = threading.Barrier(2, timeout=SECONDS_MAX)
    for each in (one, two):
        staged(each).thinking = both_have_checked.wait
    transfers = [accepted(1, 1, 2, 60), accepted(2, 1, 3, 60)]
    for done in [start(one, transfers[0]), start(two, transfers[1])]:
        assert done.result().outcome == "applied"
    assert balances(bank) == [-20, 160, 160]
    found = audit(bank)
    assert (found.lost_postings, found.drift, found.overdrawn) == (0, 0, 1)
    assert not found.passed


def test_the_same_two_are_not_both_booked_where_the_check_is_in_the_update(
    branch: BranchMaker, bank: Database, accepted: Accepted
) -> None:
    one, two = branch("atomic-update"), branch("atomic-update")
    both_think = threading.Barrier(2, timeout=SECONDS_MAX)
    for each in (one, two):
        staged(each).thinking = both_think.wait
    transfers = [accepted(1, 1, 2, 60), accepted(2, 1, 3, 60)]
    outcomes = [done.result().outcome for done in [start(one, transfers[0]), start(two, transfers[1])]]
    assert sorted(outcomes) == ["applied", "refused"]
    assert audit(bank).passed


@pytest.mark.parametrize(("name", "lost"), [("retry-without-reread", 2), ("version-check", 0)])
def test_a_retry_that_does_not_read_again_loses_a_posting(name: str, lost: int, pair: Any, bank: Database) -> None:
    one, two, first, second = pair(name)
    staged(one).thinking = lambda: start(two, second).result()
    receipt = start(one, first).result()
    assert receipt.attempts == (1 if lost else 2)
    found = audit(bank)
    assert (found.lost_postings, found.passed) == (lost, not lost)


# --- A holder that is paused while its lease runs out ----------------------------------------------------------------


def expire(pace: Staged) -> None:
    """Let the lease that this branch holds run out."""
    assert isinstance(pace.guard, Lease)
    pace.guard.expire()


def test_a_redis_lock_whose_holder_overslept_loses_what_the_next_one_did(pair: Any, bank: Database) -> None:
    one, two, first, second = pair("redis-lock")
    pace = staged(one)

    def oversleep() -> None:
        expire(pace)
        assert start(two, second).result().outcome == "applied"

    pace.thinking = oversleep
    assert start(one, first).result().outcome == "applied"
    assert audit(bank).lost_postings == 2
    assert not STRATEGIES["redis-lock"].survives_pause


def test_with_a_fence_the_next_one_waits_for_a_holder_that_has_read(pair: Any, bank: Database) -> None:
    one, two, first, second = pair("redis-lock-fenced")
    pace, second_done = staged(one), []

    def oversleep() -> None:
        expire(pace)
        second_done.append(start(two, second))
        wait_for(lambda: waits_in_postgres(bank, "b2"))

    pace.thinking = oversleep
    assert start(one, first).result().attempts == 1
    assert second_done[0].result().attempts == 1
    assert audit(bank).passed
    assert balances(bank) == [85, 115, 100]


def test_with_a_fence_a_holder_that_overslept_before_it_read_starts_over(
    branch: BranchMaker, bank: Database, accepted: Accepted, settings: Settings
) -> None:
    sleepy = []

    class Directed(RedisLockFenced):
        def prepare(self, database: Database, transfer: Order) -> object:
            token = super().prepare(database, transfer)
            if not sleepy:
                sleepy.append(token)
                expire(pace)
                assert start(two, second).result().outcome == "applied"
            return token

    one, two = branch(Directed.open(settings)), branch("redis-lock-fenced")
    pace = staged(one)
    first, second = accepted(1, 1, 2, 10), accepted(2, 1, 2, 5)
    receipt = start(one, first).result()
    assert (receipt.outcome, receipt.attempts) == ("applied", 2)
    assert audit(bank).passed
    assert balances(bank) == [85, 115, 100]


def test_a_fence_checked_on_write_turns_away_a_holder_that_overslept_the_next_ones_write(
    pair: Any, bank: Database
) -> None:
    one, two, first, second = pair("redis-lock-fenced-late")
    pace = staged(one)

    def oversleep() -> None:
        expire(pace)
        assert start(two, second).result().outcome == "applied"

    pace.thinking = oversleep
    assert start(one, first).result().attempts == 2
    assert audit(bank).passed


def test_a_fence_checked_on_write_lets_the_next_one_lose_what_the_sleeper_wrote(pair: Any, bank: Database) -> None:
    one, two, first, second = pair("redis-lock-fenced-late")
    pace, next_pace = staged(one), staged(two)
    has_read, sleeper_is_done, second_done = threading.Event(), threading.Event(), []

    def oversleep() -> None:
        expire(pace)
        second_done.append(start(two, second))
        assert has_read.wait(SECONDS_MAX)

    def think_meanwhile() -> None:
        has_read.set()
        assert sleeper_is_done.wait(SECONDS_MAX)

    pace.thinking, next_pace.thinking = oversleep, think_meanwhile
    assert start(one, first).result().outcome == "applied"
    sleeper_is_done.set()
    assert second_done[0].result().attempts == 1
    assert audit(bank).lost_postings == 2


# --- Leases and guards, by themselves --------------------------------------------------------------------------------

GUARDED = [name for name, one in STRATEGIES.items() if one.guard is not Strategy.guard]


@pytest.fixture
def opened_strategy(settings: Settings) -> Iterator[Callable[..., Strategy]]:
    """Return a maker of strategy objects; they are closed after the test."""
    made: list[Strategy] = []

    def make(name: str, **changed: object) -> Strategy:
        made.append(strategy_named(name).open(settings.model_copy(update=changed)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def guards(strategy: Strategy, other: Strategy | None = None) -> tuple[Guard, Guard]:
    """Return two guards for transfers that share an account."""
    one, two = strategy.guard(order(1, 1, 2, 10)), (other or strategy).guard(order(2, 3, 2, 10))
    assert one is not None
    assert two is not None
    return one, two


@pytest.mark.parametrize("name", GUARDED)
def test_a_guard_lets_one_in_at_a_time_and_never_waits_when_it_only_tries(
    name: str, opened_strategy: Callable[..., Strategy]
) -> None:
    one, two = guards(opened_strategy(name))
    assert one.try_enter()
    assert not two.try_enter()
    with pytest.raises(NotAcquired, match=r"within 0\.05 s"):
        two.enter(0.05)
    one.leave()
    two.enter(1)
    assert not one.try_enter()
    two.leave()
    assert one.try_enter()
    one.leave()


@pytest.mark.parametrize("name", GUARDED)
def test_a_guard_is_shared_by_instances_as_far_as_it_claims(
    name: str, opened_strategy: Callable[..., Strategy]
) -> None:
    one, two = guards(opened_strategy(name), opened_strategy(name))
    assert one.try_enter()
    shared = not two.try_enter()
    assert shared == (name not in ("thread-lock", "striped-lock", "thread-lock-early"))
    one.leave()
    if not shared:
        two.leave()


def test_striped_locks_do_not_meet_where_no_account_is_shared_and_an_order_may_hit_one_stripe_twice(
    opened_strategy: Callable[..., Strategy],
) -> None:
    strategy = opened_strategy("striped-lock")
    one, two, twice = (strategy.guard(order(number, 1, credit, 1)) for number, credit in ((1, 2), (2, 2), (3, 1025)))
    apart = strategy.guard(order(4, 3, 4, 1))
    assert one is not None
    assert two is not None
    assert twice is not None
    assert apart is not None
    assert one.try_enter()
    assert apart.try_enter()
    assert not two.try_enter()
    one.leave()
    assert twice.try_enter()  # accounts 1 and 1025: one lock, which a thread could not take twice
    twice.leave()
    apart.leave()


@pytest.mark.parametrize("name", [name for name in GUARDED if name.startswith("redis")])
def test_a_lease_that_ran_out_is_given_back_without_a_word_and_is_not_the_next_holders(
    name: str, opened_strategy: Callable[..., Strategy]
) -> None:
    one, two = guards(opened_strategy(name))
    third, _ = guards(opened_strategy(name))
    assert isinstance(one, Lease)
    one.enter(1)
    one.expire()
    assert two.try_enter()
    one.expire()
    one.leave()
    assert not third.try_enter()
    two.leave()
    assert third.try_enter()
    third.leave()


def test_a_lease_runs_out_by_itself(opened_strategy: Callable[..., Strategy]) -> None:
    one, two = guards(opened_strategy("redis-lock", lease_ttl_ms=60))
    one.enter(1)
    two.enter(SECONDS_MAX)
    one.leave()
    assert not one.try_enter()
    two.leave()


def test_without_a_redis_the_lock_is_not_acquired_and_nothing_is_raised_on_the_way_out(
    opened_strategy: Callable[..., Strategy], tmp_path: Path
) -> None:
    nowhere = SecretStr(f"redis+socket://{tmp_path / 'no.sock'}?virtual_host=0")
    one, two = guards(opened_strategy("redis-lock", broker_url=nowhere))
    with pytest.raises(NotAcquired, match="transfers-lock"):
        one.enter(0.1)
    two.leave()
    with pytest.raises(CannotStart, match="redis-lock needs BANKRUN_BROKER_URL"):
        opened_strategy("redis-lock", broker_url=None)


@pytest.mark.parametrize(
    ("broker", "redis"),
    [
        ("redis://h:6379/1", "redis://h:6379/1"),
        ("redis://:p%40ss@h", "redis://:p%40ss@h"),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "rediss://h/0?ssl_cert_reqs=none"),
        ("redis+socket:///tmp/r.sock?virtual_host=3", "unix:///tmp/r.sock?db=3"),
        ("redis+socket:///tmp/r.sock", "unix:///tmp/r.sock?db=0"),
    ],
)
def test_kombus_addresses_are_understood(broker: str, redis: str) -> None:
    assert redis_url(broker) == redis


# --- The lock file ---------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for temporary files of this test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_lock_files_directory_is_private_and_is_what_an_instance_calls_its_host(temporary: Path) -> None:
    directory = lock_directory()
    assert directory == lock_directory() == temporary / f"bankrun-{os.getuid()}"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert find_file_lock_host(directory).endswith(f":{directory.stat().st_ino}")


@pytest.mark.parametrize("what", ["open to all", "a link", "a file"])
def test_a_directory_that_is_not_ours_alone_is_refused(what: str, temporary: Path) -> None:
    path = temporary / f"bankrun-{os.getuid()}"
    if what == "a file":
        path.touch()
    elif what == "a link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(temporary / "elsewhere")
    else:
        path.mkdir()
        path.chmod(0o777)
    with pytest.raises(CannotStart, match="bankrun-"):
        lock_directory()


def test_one_file_lock_object_would_let_its_own_holder_in_again(tmp_path: Path) -> None:
    once = filelock.FileLock(tmp_path / "lock", thread_local=False)
    with once, once:  # the trap: a guard object that two transfers share guards nothing
        pass
    one, two = guards(FileLock(tmp_path))
    assert one is not two
    assert one.try_enter()
    assert not two.try_enter()
    one.leave()


# --- The schema, and the routing -------------------------------------------------------------------------------------


def test_a_bank_of_an_older_bankrun_gets_what_is_missing_and_keeps_what_it_has(bank: Database) -> None:
    before = bank_id(bank)
    with bank.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE bankrun.fences")
        connection.exec_driver_sql("DROP SEQUENCE bankrun.fence_tokens")
        connection.exec_driver_sql("ALTER TABLE bankrun.transfers DROP COLUMN redeliveries, DROP COLUMN run")
    create_schema(bank)
    assert bank_id(bank) == before
    assert balances(bank) == [100, 100, 100]
    open_bank(bank, accounts=2, opening=5)


def test_a_single_writers_cell_goes_to_one_instance_with_one_thread(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    class Enough(Exception):
        pass

    class Fleet:
        def join(self, queue: str, instances: list[InstanceInfo]) -> None:
            told["instances"] = [info.instance for info in instances]
            raise Enough

        def leave(self, queue: str, instances: list[InstanceInfo]) -> None:
            pass

    infos = [InstanceInfo(f"w{n}@bankrun", f"w{n}", n, 4, "h", "h", "3", True, None) for n in (1, 2)]
    monkeypatch.setattr(
        "bankrun.runs.delivery.publish", lambda app, orders, sent, **_: told.update(threads=sent.threads)
    )
    lab = Lab(database, None, Fleet(), infos)  # type: ignore[arg-type]
    for name, instances, threads in (("single-writer", ["w1"], 1), ("row-lock", ["w1", "w2"], 4)):
        plan = Plan((name,), (Topology(2, 4),), Workload(transfers=2), 1, warmup=0)
        with pytest.raises(Enough):
            lab.run(name, Topology(2, 4), plan, Silence())
        assert (told["instances"], told["threads"]) == (instances, threads)


def test_a_single_writers_transfers_are_refused_by_the_queue_that_every_instance_consumes() -> None:
    with pytest.raises(CannotStart, match="single-writer holds only where one instance gets all"):
        Submission("run-1", "single-writer")
    assert Submission("run-1", "single-writer", "run-1").queue == "run-1"
    assert Submission("run-1", "row-lock").queue == QUEUE


def test_past_the_routing_a_single_writer_meets_no_lock(pair: Any, bank: Database) -> None:
    one, two, first, second = pair("single-writer")
    staged(one).thinking = lambda: start(two, second).result()
    start(one, first).result()
    assert audit(bank).lost_postings == 2


def test_one_thread_of_one_instance_loses_nothing_without_a_lock(branch: BranchMaker, database: Database) -> None:
    open_bank(database, accounts=4, opening=100)
    orders = list(Workload(accounts=4, transfers=40, opening=100).orders(7))
    accept(database, orders, Submission("test", "single-writer", "test"), forgettable=True)
    alone = branch("single-writer", threads=1)
    assert all(done.result().first for done in [start(alone, transfer) for transfer in orders])
    assert audit(database).passed
