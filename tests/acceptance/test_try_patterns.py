"""The patterns of docs/try.md, each in its wrong and its right form, on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bankrun.trials.scratch import Place
from bankrun.trials.trial import Trial, ask, open_server, put_on_trial

FOLDER = Path(__file__).parents[2] / "examples" / "trials"


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_server() as place:
        yield place


def put(server: Place, *programs: str, instances: str = "two", **options: object) -> Trial:
    texts = [str(FOLDER / one) for one in programs]
    return put_on_trial(ask(texts, setup=str(FOLDER / "schema.sql"), instances=instances, **options), place=server)


TRANSFERS = ("(1, 2, 10)", "(1, 3, 10)")
PATTERNS = [
    ("safe", "two", ["transfer.py:transfer_for_update" + one for one in TRANSFERS]),
    ("broken", "two", ["transfer.py:transfer_money" + one for one in TRANSFERS]),
    ("broken", "two", ["transfer.py:transfer_with_lock" + one for one in TRANSFERS]),
    ("broken", "two", ["get_or_create.py:get_or_create('red')"]),
    ("error", "two", ["get_or_create.py:get_or_create_unique('red')"]),
    ("safe", "two", ["get_or_create.py:get_or_create_on_conflict('red')"]),
    ("broken", "two", ["on_call.py:leave('ann')", "on_call.py:leave('bob')"]),
    ("broken", "two", ["on_call.py:leave('ann', 'REPEATABLE_READ')", "on_call.py:leave('bob', 'REPEATABLE_READ')"]),
    ("needs retry", "two", ["on_call.py:leave('ann', 'SERIALIZABLE')", "on_call.py:leave('bob', 'SERIALIZABLE')"]),
    ("safe", "two", ["on_call.py:leave_locked('ann')", "on_call.py:leave_locked('bob')"]),
    ("broken", "two", ["jobs.py:take('ann')", "jobs.py:take('bob')"]),
    ("safe", "two", ["jobs.py:take_for_update('ann')", "jobs.py:take_for_update('bob')"]),
    ("safe", "two", ["jobs.py:take_skip_locked('ann')", "jobs.py:take_skip_locked('bob')"]),
    ("broken", "two", ["booking.py:book(7, 'ann', 1, 4)", "booking.py:book(7, 'bob', 3, 5)"]),
    ("safe", "two", ["booking.py:book_locked(7, 'ann', 1, 4)", "booking.py:book_locked(7, 'bob', 3, 5)"]),
    ("safe", "two", ["sign_up.py:sign_up('ann@x')", "sign_up.py:sign_up('bob@x')"]),
    ("broken", "two", ["report.py:transfer(10)", "report.py:total()"]),
    ("safe", "two", ["report.py:transfer(10)", "report.py:total('REPEATABLE_READ')"]),
]


@pytest.mark.parametrize(("verdict", "instances", "programs"), PATTERNS)
def test_each_pattern_gets_its_verdict(server: Place, verdict: str, instances: str, programs: list[str]) -> None:
    found = put(server, *programs, instances=instances)
    print(found.sentences, found.executions, round(sum(case.seconds for case in found.cases), 1))
    assert found.verdict == verdict, "\n".join([*found.sentences, found.story])
    assert found.complete
