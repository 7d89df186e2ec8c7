"""What an older Postgres is asked, asked of ours: it has to come to the same."""

from __future__ import annotations

import pytest

from bank.audit import audit
from bank.errors import CannotStart
from bank.outside import leave_out_too_new, lookup
from bank.postgres import versions
from bank.postgres.columns import _Column
from bank.postgres.database import Database
from bank.postgres.roles import WORKER_ROLE, excess
from bank.strategies import STRATEGIES, Attempt
from tests.integration.conftest import BranchMaker, balances, order
from tests.integration.test_strategies import Accepted, under_load
from workers.submission import Submission, accept

IN_PLACE = ("atomic-update", "check-then-debit")
# What Postgres writes of each type, what people write, and what is none.
TEXTS = {
    "bigint": [
        "7",
        "-7",
        " +7 ",
        "7.0",
        "7.5",
        "007",
        "9223372036854775807",
        "9223372036854775808",
        "",
        "x",
        "7x",
        "\u0661",
    ],
    "uuid": [
        *("00000000-0000-0000-0000-000000000001", "ABCDEF00-0000-0000-0000-000000000001"),
        *("00000000000000000000000000000001", "0000-0000", "", "g0000000-0000-0000-0000-000000000001"),
    ],
    "timestamp with time zone": [
        *("2026-11-26 07:00:00+00", "2026-11-26 07:00:00.123456+05:45", "2024-02-29 23:59:59", "2026-11-26T07:00:00"),
        *(
            "2026-02-29 00:00:00",
            "2026-13-01 00:00:00",
            "2026-11-31 00:00:00+00",
            "2026-11-26 24:00:01",
            "0000-01-01 00:00:00",
        ),
        *("infinity", "-infinity", "", "soon", "2026-11-26 07:00:61"),
    ],
    "character varying": ["", "applied"],
}


@pytest.fixture
def before_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let our server pass for an older one, as far as the choice of SQL goes."""
    monkeypatch.setattr(versions, "version_of", lambda _: versions.OLDEST)


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_update_that_adds_tells_what_it_found_in_its_older_form_too(
    name: str, branch: BranchMaker, bank: Database, accepted: Accepted, before_16: None
) -> None:
    one = branch(name)
    assert [one.apply(accepted(number, 1, 2, 30)).outcome for number in (1, 2, 3)] == ["applied"] * 3
    assert one.apply(accepted(4, 1, 2, 30)).outcome == "refused"
    assert one.apply(accepted(5, 1, 9, 5)).outcome == "refused"
    assert balances(bank) == [10, 190, 100]
    assert audit(bank).passed


def test_an_update_that_adds_keeps_the_money_in_its_older_form_too(
    branch: BranchMaker, database: Database, before_16: None
) -> None:
    found = under_load([branch("atomic-update"), branch("atomic-update")], database, 120)
    assert found.passed, found.findings


def test_the_older_form_is_what_is_sent(branch: BranchMaker, bank: Database, before_16: None) -> None:
    sent: list[str] = []
    one = branch("atomic-update")
    accept(bank, [order(1, 1, 2, 10)], Submission("test", "atomic-update", "test"), forgettable=True)
    with one.database.transaction() as transaction:
        run = transaction._run
        transaction._run = lambda query, parameters=None: sent.append(str(query)) or run(query, parameters)  # type: ignore[assignment,func-returns-value]
        entry_ids = (1, 2)
        one.strategy.move(transaction, Attempt(order(1, 1, 2, 10), entry_ids, lambda: None))
    assert sum("FOR NO KEY UPDATE" in text for text in sent) == 2
    assert not any("RETURNING old" in text for text in sent)


@pytest.mark.parametrize("meant", TEXTS)
def test_a_text_is_read_alike_whether_postgres_can_be_asked_or_not(meant: str, bank: Database) -> None:
    column = _Column("it", is_required=True, meant=meant, kind="text")
    with bank.transaction() as transaction:
        found = [
            transaction.execute(
                f"SELECT it::text FROM (SELECT {next(iter(column.read(asks=asks)))}, n"
                " FROM unnest(%s::text[]) WITH ORDINALITY AS t (it, n) OFFSET 0) AS found ORDER BY n",
                [TEXTS[meant]],
            ).fetchall()
            for asks in (True, False)
        ]
    assert found[0] == found[1]
    assert {row == (None,) for row in found[0]} == ({True, False} if meant != "character varying" else {False})


def test_the_doctor_asks_an_older_server_for_no_right_that_it_does_not_know(
    database: Database, bank: Database, before_16: None
) -> None:
    with database.engine.connect() as connection:
        assert excess(connection, WORKER_ROLE) == []


def test_a_strategy_that_needs_a_newer_server_is_left_out_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRATEGIES["atomic-update"], "postgres_min", 18)
    able, sentences = leave_out_too_new(["row-lock", "atomic-update"], 170_012)
    assert able == ("row-lock",)
    assert sentences == ["atomic-update is left out: it needs Postgres 18, and this is 17.12"]
    assert leave_out_too_new(["atomic-update"], 180_006) == (("atomic-update",), [])
    with pytest.raises(CannotStart, match="atomic-update is left out"):
        lookup.leave_out_too_new(["atomic-update"], 170_012)
