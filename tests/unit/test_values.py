"""What may travel: orders, jobs, topologies, workloads and settings, and how each says no."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from uuid import RFC_4122, UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bank.errors import CannotStart, Rejected
from bank.orders import Order
from bank.outside import strategy_named
from bank.settings import read_settings, without_password
from bank.strategies import STRATEGIES, Claim
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from workers.broker.messages import Job, message

ID = UUID(int=7)


@pytest.mark.parametrize(
    ("debit", "credit", "amount"), [(1, 1, 5), (1, 2, 0), (1, 2, -5), (0, 2, 5), (1, 2**31, 5), (1, 2, 2**53)]
)
def test_an_order_that_makes_no_sense_cannot_be_made(debit: int, credit: int, amount: int) -> None:
    with pytest.raises(ValueError, match="transfer"):
        Order(ID, debit, credit, amount)


def test_accounts_are_named_in_id_order_whatever_the_direction() -> None:
    assert Order(ID, 5, 2, 1).accounts == Order(ID, 2, 5, 1).accounts == (2, 5)


def test_a_message_is_read_back_as_the_orders_it_was_made_of() -> None:
    orders = [Order(uuid4(), 1, 2, 3), Order(uuid4(), 2, 1, 4)]
    job = Job.parse(message(orders, run="r", strategy="none", think_ms=1.5, threads=4))
    assert (job.parsed_orders(), job.strategy, job.think_ms, job.threads) == (orders, "none", 1.5, 4)


GOOD = {"run": "r", "strategy": "none", "orders": [[str(ID), 1, 2, 3]], "think_ms": 0.0, "threads": None}


@pytest.mark.parametrize(
    "change",
    [
        {"orders": []},
        {"orders": [[str(ID), 1, 2]]},
        {"orders": [[str(ID), 1, 2, "3"]]},
        {"orders": [[str(ID), 1, 2, 3.5]]},
        {"orders": [[str(ID), 1, 2, True]]},
        {"orders": [["no uuid", 1, 2, 3]]},
        {"orders": [[str(ID), 1, 1, 3]]},
        {"orders": "all of them"},
        {"think_ms": -1},
        {"think_ms": float("inf")},
        {"threads": 0},
        {"run": "../etc"},
        {"strategy": ""},
        {"surprise": 1},
    ],
)
def test_a_message_that_is_no_job_is_rejected_with_a_reason(change: dict[str, object]) -> None:
    with pytest.raises(Rejected, match=r"\w"):
        Job.parse({**GOOD, **change}).parsed_orders()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(JSON)
def test_whatever_json_arrives_is_a_job_or_rejected(value: object) -> None:
    with pytest.raises(Rejected):
        Job.parse(value).parsed_orders()


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), JSON, min_size=1))
def test_a_job_with_any_fields_replaced_is_a_job_or_rejected(change: dict[str, object]) -> None:
    with suppress(Rejected):
        Job.parse({**GOOD, **change}).parsed_orders()


@pytest.mark.parametrize("text", ["3x8", " 3 x 8 ", "3X8", "3×8"])
def test_a_topology_is_instances_by_threads(text: str) -> None:
    assert Topology.parse(text) == Topology(3, 8)
    assert str(Topology.parse(text)) == "3x8"


@pytest.mark.parametrize(
    "text", ["0x8", "3x0", "banana", "", "3x", "x8", "-1x8", "3x8x2", "65x1", "1x513", "9999999999x1"]
)
def test_anything_else_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(CannotStart) as refusal:
        Topology.parse(text)
    assert "\n" not in str(refusal.value)


def test_the_same_seed_gives_the_same_transfers_and_another_seed_others() -> None:
    workload = Workload(transfers=50)
    assert list(workload.orders(7)) == list(workload.orders(7))
    assert list(workload.orders(7)) != list(workload.orders(8))


def test_ids_are_in_the_order_of_the_transfers_and_another_runs_are_others() -> None:
    workload = Workload(transfers=50)
    ids, others = ([order.id for order in workload.orders(7, salt=salt)] for salt in (0, 2**127 + 12_345))
    assert ids == sorted(ids)
    assert len({*ids, *others}) == 100
    assert {(one.version, one.variant) for one in (*ids, *others)} == {(8, RFC_4122)}


def test_a_skewed_load_wants_the_first_account_most() -> None:
    counts = dict.fromkeys(range(1, 9), 0)
    for order in Workload(transfers=4_000, skew="zipf").orders(1):
        counts[order.debit] += 1
        counts[order.credit] += 1
    assert counts[1] > counts[3] > counts[8]


@pytest.mark.parametrize(
    "wrong",
    [
        {"accounts": 1},
        {"transfers": 0},
        {"transfers": -1},
        {"amount_max": 0},
        {"opening": -1},
        {"think_ms": -1.0},
        {"think_ms": float("nan")},
        {"chunk": 0},
        {"skew": "banana"},
        {"opening": 2**53, "accounts": 8},
    ],
)
def test_a_workload_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(CannotStart):
        Workload(**wrong)  # type: ignore[arg-type]


def test_an_unknown_setting_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(CannotStart, match="BANKRUN_TREADS is not a setting of bankrun; did you mean BANKRUN_THREADS"):
        read_settings({"BANKRUN_TREADS": "9"})


def test_what_is_for_compose_alone_is_passed_over() -> None:
    text = (Path(__file__).parents[2] / "compose.yaml").read_text()
    exported = dict.fromkeys(re.findall(r"\$\{(BANKRUN_\w+)", text), "7")
    assert len(exported) > 5
    exported |= {"BANKRUN_STARTUP_WAIT_MS": "60000"}
    assert read_settings(exported).threads == 7


@pytest.mark.parametrize(
    "environ",
    [
        {"BANKRUN_THREADS": "0"},
        {"BANKRUN_THREADS": "many"},
        {"BANKRUN_DATABASE_URL": "mysql://u:secret@h/d"},
        {"BANKRUN_DATABASE_URL": "not an address, but secret"},
        {"BANKRUN_BROKER_URL": "amqp://u:secret@h/a/b"},
        {"BANKRUN_LOCK_TIMEOUT_MS": "99999999"},
        {"BANKRUN_INSTANCE": "a b"},
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_sentence_without_its_secret(environ: dict[str, str]) -> None:
    with pytest.raises(CannotStart) as refusal:
        read_settings(environ)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert "BANKRUN_" in str(refusal.value)


def test_both_spellings_of_a_postgres_address_are_accepted() -> None:
    for scheme in ("postgres", "postgresql"):
        settings = read_settings({"BANKRUN_DATABASE_URL": f"{scheme}://u:p@h:1/d"})
        assert settings.database_url is not None
        assert settings.database_url.get_secret_value() == "postgresql+psycopg://u:p@h:1/d"


def test_a_shown_address_has_no_password() -> None:
    assert without_password("postgresql+psycopg://me:hunter2@host/bank") == "postgresql://me:***@host/bank"
    assert "hunter2" not in without_password("postgresql://me@host/bank?password=hunter2")
    assert "hunter2" not in without_password("redis://:hunter2@host:6379/0")


def test_an_unknown_strategy_is_refused_with_the_nearest() -> None:
    with pytest.raises(CannotStart, match="did you mean row-lock"):
        strategy_named("rowlock")


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=str)
def test_every_strategy_says_what_it_is_and_claims(strategy: type) -> None:
    assert strategy.__doc__
    assert "laims" in strategy.__doc__
    assert strategy.summary  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("claim", "instances", "threads", "hosts", "covered"),
    [
        (Claim.NOTHING, 1, 1, 1, True),
        (Claim.NOTHING, 1, 2, 1, False),
        (Claim.PROCESS, 1, 8, 1, True),
        (Claim.PROCESS, 2, 1, 1, False),
        (Claim.HOST, 3, 8, 1, True),
        (Claim.HOST, 3, 8, 2, False),
        (Claim.EVERYWHERE, 3, 8, 3, True),
    ],
)
def test_a_claim_covers_what_it_reaches(claim: Claim, instances: int, threads: int, hosts: int, covered: bool) -> None:
    assert claim.covers(instances=instances, threads=threads, hosts=hosts) is covered
