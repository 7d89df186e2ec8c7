"""The lessons on a real Postgres, the two that take two processes included: 100 runs of each half."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import make_url

from bank.postgres.database import Database
from bankrun.runs.lessons import LESSONS

RUNS = 100


@pytest.fixture(scope="module")
def accounts(lessons_importable: None, database: Database) -> Iterator[Any]:
    """John, Jane and Alice, in a bank that does not wait for its disk: hundreds of lessons would."""
    url = make_url(database.url).update_query_dict({"options": "-c synchronous_commit=off"})
    with importlib.import_module("three_accounts").table_in(url.render_as_string(hide_password=False)) as accounts:
        yield accounts


@pytest.fixture(scope="module")
def stage(lessons_importable: None) -> ModuleType:
    """The module that all lessons stand on."""
    return importlib.import_module("stage")


def load(name: str) -> Any:
    """Import a lesson."""
    return importlib.import_module(LESSONS[name].file.removesuffix(".py"))


@pytest.mark.parametrize("name", ["bank", "bank-race", "bank-lock"])
def test_in_one_process_the_unsafe_halves_lose_money_each_time_and_the_safe_ones_never(
    stage: Any, accounts: Any, name: str
) -> None:
    lesson = load(name).LESSON
    for half in lesson.unsafe:
        assert [half(stage.Stage(), accounts).broken for _ in range(RUNS)] == [True] * RUNS
    for half in lesson.safe:
        assert [half(stage.Stage(seed=seed), accounts).broken for seed in range(RUNS)] == [False] * RUNS


@pytest.mark.parametrize("name", ["bank-instances", "bank-row-lock"])
def test_in_two_processes_too(stage: Any, accounts: Any, name: str) -> None:
    module = load(name)
    with importlib.import_module("two_instances").instances_of(accounts, module.transfer) as both:
        for half in module.LESSON.unsafe:
            assert [half(stage.Stage(), both).broken for _ in range(RUNS)] == [True] * RUNS
        for half in module.LESSON.safe:
            assert [half(stage.Stage(), both).broken for _ in range(RUNS)] == [False] * RUNS


@pytest.mark.parametrize(
    ("name", "half", "text"),
    [
        ("bank", "one_after_another", "John 90, Jane 100, Alice 110: 300 in the bank"),
        ("bank-race", "four_at_once", "John 90, Jane 90, Alice 110: 290 in the bank, not 300"),
        ("bank-race", "walk_through", "John 0, Jane 130, Alice 0: 130 in the bank, not 230"),
    ],
)
def test_the_talks_numbers_come_out(stage: Any, accounts: Any, name: str, half: str, text: str) -> None:
    assert getattr(load(name), half)(stage.Stage(), accounts).text == text
