"""Faults while transfers flow: what recovers, what breaks, and that a broken promise would be found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bank.audit import audit
from bank.errors import BankError, CannotStart
from bank.outside import make_importable, user_strategy
from bank.postgres.schema import open_bank
from bank.settings import Settings
from bank.strategies import STRATEGIES
from bankrun.chaos import cells as chaos
from bankrun.chaos.cells import CHAOS_LOAD, ChaosCell, ChaosPlan, begin_chaos, run_cell, run_chaos
from bankrun.chaos.faults import FAULTS
from bankrun.chaos.soak import SoakPlan, begin_soak, run_soak
from bankrun.chaos.targets import WAITS, Targets, open_targets
from bankrun.cli.app import told_if_cut
from bankrun.cli.chaos import choose_survivors
from bankrun.cli.soak import tell_soak
from bankrun.render.terminal import Terminal
from bankrun.results import store
from bankrun.results.models.chaos import Chaos
from bankrun.results.models.soak import Soak
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.delivery import Delivery
from bankrun.runs.progress import Steps
from tests.acceptance.conftest import Bankrun, processes_of
from tests.places import make_place
from tests.waiting import wait_until
from workers.control.failpoints import Failpoint
from workers.submission import Submission

SEED = 3
HANGING = """
import threading

from bank.strategies import Claim, Strategy


class HangsAtThree(Strategy):
    claim = Claim.EVERYWHERE
    READ = Strategy.READ + " FOR UPDATE"

    def guard(self, order):
        if order.debit == 3:
            threading.Event().wait()
"""


@pytest.fixture(scope="module")
def targets() -> Iterator[Targets]:
    """Two instances with four threads each, and servers that may be broken."""
    path = make_place("chaos")
    (path / "hanging.py").write_text(HANGING)
    make_importable([path])
    user_strategy("hanging:HangsAtThree")  # what is known when they start is what instances may use
    with open_targets(Settings(state_dir=path), instances=2, threads=4) as opened:
        yield opened
    shutil.rmtree(path, ignore_errors=True)


def strike(
    targets: Targets, fault: str, strategy: str = "row-lock", *, transfers: int = 240, seed: int = SEED, rounds: int = 1
) -> ChaosCell:
    """Run one cell."""
    load = replace(CHAOS_LOAD, transfers=transfers, accounts=8)
    plan = ChaosPlan((fault,), (strategy,), Topology(2, 4), load, seed, rounds)
    return run_cell(targets, plan, FAULTS[fault], strategy)


@pytest.mark.long
@pytest.mark.parametrize(
    ("receive_many", "faults", "lost"),
    [(True, ("kill-while-receiving", "kill-while-waiting"), 0), (False, ("kill-while-waiting",), 1)],
    ids=["as here", "as Kombu does"],
)
def test_an_instance_that_dies_while_it_receives_loses_no_message_unless_it_takes_them_as_kombu_does(
    receive_many: bool, faults: Sequence[str], lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_place("chaos")
    settings = Settings(state_dir=path, receive_many=receive_many)
    monkeypatch.setattr(chaos, "STALLED_SECONDS", 12.0)  # longer than what is noted needs to come back
    with open_targets(settings, instances=2, threads=4, waits={**WAITS, "reconcile_ms": 600_000}) as targets:
        cells = [strike(targets, fault) for fault in faults]
    shutil.rmtree(path, ignore_errors=True)
    assert [(cell.pending, cell.republished) for cell in cells] == [(lost, 0)] * len(faults)


@pytest.mark.parametrize(
    ("fault", "strategy"),
    [
        ("kill-while-receiving", "row-lock"),
        ("kill-while-waiting", "single-statement"),
        ("kill-between-writes", "row-lock-orm"),
        ("kill-before-commit", "atomic-update"),
        ("kill-after-commit", "row-lock"),
        ("lost-answer", "serializable"),
        ("cut", "row-lock"),
        ("terminate", "atomic-update"),
        ("postgres-restart", "row-lock"),
        ("postgres-crash", "batch"),
        ("no-connections", "row-lock"),
        ("disk-full", "row-lock"),
        ("redis-emptied", "row-lock"),
        ("messages-lost", "row-lock"),
        ("messages-repeated", "row-lock"),
        ("messages-poisoned", "row-lock"),
        ("submitter-dies", "row-lock"),
        ("two-reconcilers", "row-lock"),
    ],
)
def test_nothing_is_lost_nothing_is_applied_twice_and_nothing_is_left(
    targets: Targets, fault: str, strategy: str
) -> None:
    cell = strike(targets, fault, strategy)
    assert (cell.verdict, cell.reason) == ("safe", "")
    assert (cell.lost_postings, cell.duplicates, cell.pending, cell.unexplained) == (0, 0, 0, 0)
    assert cell.recovery_s is not None
    poisoned = fault == "messages-poisoned"
    assert cell.applied + cell.refused == 240
    assert cell.failed == poisoned


@pytest.mark.long
@pytest.mark.parametrize("fault", ["kill-between-writes", "messages-poisoned", "terminate"])
def test_each_round_strikes_among_transfers_of_its_own(targets: Targets, fault: str) -> None:
    cell = strike(targets, fault, transfers=400, rounds=2)
    assert (cell.verdict, cell.reason, cell.rounds) == ("safe", "", 2)
    assert cell.applied + cell.refused == 400
    assert cell.failed == (2 if fault == "messages-poisoned" else 0)


def test_a_fault_that_finds_nothing_left_to_strike_did_not_happen(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    awaited = chaos._await_pending
    monkeypatch.setattr(chaos, "_await_pending", lambda given, _: awaited(given, 0))
    cell = strike(targets, "terminate")
    assert cell.verdict == "inconclusive"
    assert "every transfer was decided before it struck" in cell.reason


@pytest.mark.long
def test_an_instance_that_ends_while_the_others_recover_is_noticed_and_started_again(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    awaited = chaos._await_pending

    def end_one(given: Targets, most: int) -> int:
        pending = awaited(given, most)
        if not most:
            given.kill("w2")
        return pending

    with monkeypatch.context() as patched:
        patched.setattr(chaos, "_await_pending", end_one)
        cell = strike(targets, "terminate")
    assert (cell.verdict, cell.reason) == ("broken", "w2 ended by itself")
    again = strike(targets, "terminate", transfers=600)
    assert (again.verdict, again.reason) == ("safe", "")


@pytest.mark.long
def test_a_paused_holder_breaks_a_lease_and_not_a_fenced_one(targets: Targets) -> None:
    broken = strike(targets, "pause-holder", "redis-lock")
    assert (broken.verdict, broken.expected) == ("broken", "unsafe")
    assert broken.lost_postings > 0
    fenced = strike(targets, "pause-holder", "redis-lock-fenced")
    assert (fenced.verdict, fenced.lost_postings) == ("safe", 0)


def test_no_lock_at_all_loses_postings_whatever_strikes(targets: Targets) -> None:
    cell = strike(targets, "terminate", "none", transfers=300)
    assert (cell.verdict, cell.expected) == ("broken", "unsafe")


def test_a_message_duplicated_is_seen_as_an_extra_delivery(targets: Targets) -> None:
    assert strike(targets, "messages-repeated").extra_deliveries > 0


@pytest.mark.long
def test_a_system_that_forgets_would_be_found_broken(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the reconcilers' view of the run nobody publishes again what the broker lost.
    monkeypatch.setattr(chaos, "STALLED_SECONDS", 2.0)
    accept = Delivery.accept
    monkeypatch.setattr(Delivery, "accept", lambda *given: accept(*given, forgettable=True))
    cell = strike(targets, "messages-lost")
    assert (cell.verdict, cell.expected) == ("broken", "safe")
    assert cell.contradicts
    assert "stayed pending" in cell.reason


@pytest.mark.long
def test_a_strategy_that_hangs_is_named_with_the_place(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "STALLED_SECONDS", 2.5)
    cell = strike(targets, "messages-repeated", "hanging:HangsAtThree")
    assert cell.contradicts
    assert "hanging:HangsAtThree hangs: w1 stands in hanging.py, line 13, in guard" in cell.reason
    assert "w2 stands in hanging.py, line 13, in guard" in cell.reason
    assert strike(targets, "messages-repeated").pending == 0  # it holds up nobody else


def test_when_its_time_is_over_no_more_faults_begin_and_they_are_named(targets: Targets) -> None:
    load = replace(CHAOS_LOAD, transfers=60, accounts=8)
    plan = ChaosPlan(("messages-repeated", "terminate", "cut"), ("row-lock",), Topology(2, 4), load, SEED)
    result = begin_chaos(targets, plan)
    run_chaos(targets, plan, Steps(3), result, until=0.0)
    assert [cell.fault for cell in result.cells] == ["messages-repeated"]
    assert result.not_run == {"terminate": "the time was over", "cut": "the time was over"}


def test_a_transfer_that_failed_without_a_reason_to_would_be_found(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    awaited = chaos._await_pending

    def fail_one(given: Targets, most: int) -> int:
        pending = awaited(given, most)
        if most:
            return pending
        with given.database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO transfers (id, debit, credit, amount, strategy, status, reason, decided_at)"
                " VALUES (gen_random_uuid(), 1, 2, 1, 'row-lock', 'failed', 'who knows', now())"
            )
        return pending

    monkeypatch.setattr(chaos, "_await_pending", fail_one)
    cell = strike(targets, "terminate")
    assert cell.contradicts
    assert "1 transfers have failed instead of 0: who knows" in cell.reason


def test_a_failpoint_needs_the_key_that_its_instance_was_started_with(targets: Targets) -> None:
    name = min(targets.infos)
    targets.fleet.arm(targets.infos[name], "not the key", Failpoint("after-read", "kill"))
    with pytest.raises(BankError, match="needs the key"):
        targets.fleet.disarm(targets.infos[name], "not the key")
    assert strike(targets, "messages-repeated").verdict == "safe"
    assert targets.is_alive(name)


def test_an_instance_that_is_asked_to_end_finishes_what_it_has_in_hand(targets: Targets) -> None:
    names = sorted(targets.infos)
    orders = list(Workload(accounts=50, transfers=24).orders(1))
    open_bank(targets.database, accounts=50, opening=1_000)
    targets.delivery = Delivery(targets, Submission("orderly", "row-lock", "orderly", think_ms=300))
    targets.delivery.accept(orders)
    targets.delivery.publish(orders)
    for name in names:
        targets.join(name)
    targets.until(lambda: "idle in transaction" in _sessions(targets, names[0]), "it has begun")
    targets.keeper.stop(names[:1], grace_seconds=10)
    finished = targets.count_by(names[0])
    assert targets.keeper.returncode(names[0]) == 0
    assert not _sessions(targets, names[0])  # whatever it had begun, it has ended
    assert finished > 0
    targets.until(lambda: not targets.count("pending"), "the other one has done the rest", 20)
    assert audit(targets.database).passed
    targets.revive(names[0])
    targets.delivery.withdraw()
    targets.delivery = None


def test_jobs_are_published_to_the_end_though_their_broker_ends_meanwhile(targets: Targets) -> None:
    orders = list(Workload(accounts=50, transfers=1_500).orders(1))
    open_bank(targets.database, accounts=50, opening=1_000)
    reports: list[int] = []
    back = threading.Timer(1.0, targets.keeper.start_again, ("valkey",))

    def end_broker(published: int) -> None:
        reports.append(published)
        if len(reports) == 1:
            targets.keeper.signal("valkey", signal.SIGKILL)
            targets.keeper.wait("valkey", 10)
            back.start()

    with Delivery(targets, Submission("insisting", "row-lock", "insisting"), insist_seconds=60) as delivery:
        delivery.accept(orders)
        delivery.publish(orders, progress=end_broker)
        back.join()
        assert (reports[0], reports[-1]) == (500, 1_500)
        assert targets.fleet.queue_length("insisting") == 1_000  # it has forgotten the first 500


def test_the_matrix_is_printed_and_saved_with_what_it_takes_to_run_it_again(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        *("chaos", "--fault", "messages-repeated", "--strategy", "row-lock", "--transfers", "60", "--seed", "5"),
        *("--export-json", "c.json", "--export-markdown", "c.md"),
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "c.json").read_text())
    (cell,) = saved["cells"]
    assert saved["schema"] == 1
    assert saved["seed"] == 5
    assert "--fault messages-repeated" in saved["command"]
    names = ["fault", "strategy", "topology", "verdict", "applied", "lost_postings", "duplicates", "pending"]
    assert set(names) | {"extra_deliveries", "recovery_s"} <= set(cell)
    assert "| `messages-repeated` |" in (tmp_path / "c.md").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fault", "kil"], "there is no fault 'kil': did you mean kill?"),
        (["--rounds", "0"], "rounds=0"),
        (["--topology", "1x4"], "none is left to go on"),
        (["--transfers", "10"], "transfers=10: at least 50"),
        (["--strategy", "single-writer"], "routed to one instance"),
        (["--seed", "-1"], "seed=-1"),
        (["--quick", "--fault", "kill"], "kill: no fault for --quick"),
        (["--topology", "64x512"], "connections, but Postgres gives"),
        (["--export-json", "/no/such/place.json"], "cannot write"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(bankrun: Bankrun, words: list[str], sentence: str) -> None:
    done = bankrun("chaos", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kills": 0, "pauses": 0, "postgres_restarts": 0, "redis_restarts": 0}, "at least one fault"),
        ({"kills": -1}, "0 or more"),
        ({"transfers": 100}, "60 faults need 1200"),
        ({"accounts": 1}, "accounts=1"),
        ({"strategy": "thread-lock"}, "does not claim to hold"),
        ({"strategy": "single-writer"}, "does not claim to hold"),
        ({"strategy": "redis-lock"}, "does not survive a paused holder"),
    ],
)
def test_a_soak_that_makes_no_sense_is_refused_before_anything_starts(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CannotStart, match=sentence):
        SoakPlan(**given).check_strategy()


def test_a_wait_that_is_set_and_does_not_go_with_the_short_ones_is_named() -> None:
    given = Settings.model_validate({"lock_timeout_ms": 5_000})
    with (
        pytest.raises(CannotStart, match="BANKRUN_LOCK_TIMEOUT_MS=5000 must be less"),
        open_targets(given, instances=2, threads=1),
    ):
        pass


def test_all_strategies_are_those_that_another_instance_can_go_on_with() -> None:
    chosen = choose_survivors(["all"])
    assert set(STRATEGIES) - set(chosen) == {"single-writer"}
    assert choose_survivors(["single-writer"]) == ("single-writer",)


def test_servers_of_somebody_else_are_not_broken() -> None:
    given = Settings.model_validate({"database_url": "postgresql://u@h/d", "broker_url": "redis://h"})
    with (
        pytest.raises(CannotStart, match="faults need servers that may be broken"),
        open_targets(given, instances=2, threads=1),
    ):
        pass


@pytest.mark.long
def test_an_interrupted_chaos_tells_what_it_has_and_leaves_no_process_not_even_a_stopped_one(tmp_path: Path) -> None:
    import signal
    import subprocess

    from tests.acceptance.conftest import command, environment

    state = make_place("chaos")
    process = subprocess.Popen(
        command(
            *("chaos", "--fault", "messages-repeated", "--fault", "postgres-frozen", "--strategy", "row-lock"),
            *("--seed", "1", "--export-json", "c.json"),
        ),
        env=environment(state),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or any(_is_stopped(pid) for pid in _pids_of(state)), 90)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=15)
        assert process.returncode == 130
        assert err.startswith("messages-repeated, row-lock: ")
        assert "cut short after 1 cell" in out
        saved = store.read_as(Chaos, tmp_path / "c.json")
        assert [cell.fault for cell in saved.cells] == ["messages-repeated"]
        assert saved.provenance.cut_short
        assert wait_until(lambda: not processes_of(state), 5), processes_of(state)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(state, ignore_errors=True)


@pytest.mark.long
def test_a_soak_that_is_cut_short_tells_what_it_has_and_exports_it(
    targets: Targets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = SoakPlan(transfers=3_000, accounts=50, kills=0, pauses=4, postgres_restarts=0, redis_restarts=0)
    result = begin_soak(targets, plan, Topology(2, 4))

    def end_after_two(decided: int, what: str) -> None:
        if len(result.struck) == 2:
            raise KeyboardInterrupt

    exports = str(tmp_path / "s.json"), str(tmp_path / "s.md")
    with (
        pytest.raises(KeyboardInterrupt),
        told_if_cut(result, lambda: tell_soak(Terminal(width=200), result, *exports)),
    ):
        run_soak(targets, plan, result, end_after_two)
    targets.restore()
    assert "cut short after 2 of 4 faults; the audit found nothing wrong" in capsys.readouterr().out
    saved = store.read_as(Soak, tmp_path / "s.json")
    assert saved.provenance.cut_short
    assert all(struck.pending for struck in saved.struck)
    assert [struck.kind for struck in saved.struck] == ["pause", "pause"]
    assert saved.transfers["pending"] > 0
    assert sum(saved.transfers.values()) == 3_000
    assert "Cut short. `bankrun soak" in (tmp_path / "s.md").read_text()


def _sessions(targets: Targets, instance: str) -> list[str]:
    """Return what each of an instance's sessions in Postgres does: 'idle in transaction', for example."""
    with targets.database.transaction() as transaction:
        rows = transaction.execute(
            "SELECT state FROM pg_stat_activity WHERE application_name = %(name)s", {"name": f"bankrun {instance}"}
        ).fetchall()
    return [state for (state,) in rows]


def _pids_of(state: Path) -> list[int]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if str(state) in (directory / "cmdline").read_bytes().decode(errors="replace") or str(state) in str(
                (directory / "cwd").readlink()
            ):
                found.append(int(directory.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def _is_stopped(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
