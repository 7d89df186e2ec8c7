"""A plan is a value, and a configuration is one too: making one changes nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
from kombu.transport import TRANSPORT_ALIASES

from bank.errors import CannotStart
from bank.settings import Settings
from bankrun.chaos.cells import CHAOS_LOAD, ChaosPlan
from bankrun.chaos.soak import SoakPlan
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Plan
from workers.app import configuration, create_app

THEIRS = "no_such_module:TheirLock"
SETTINGS = Settings.model_validate({"broker_url": "redis://ours:1/0"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plan((THEIRS,), (Topology(1, 2),), Workload(), seed=1),
        lambda: ChaosPlan(("kill",), (THEIRS,), Topology(2, 2), CHAOS_LOAD, seed=1),
        lambda: SoakPlan(strategy=THEIRS),
    ],
    ids=["comparison", "chaos", "soak"],
)
def test_making_a_plan_imports_nothing_and_leaves_the_import_path_alone(make: Callable[[], object]) -> None:
    path, modules = list(sys.path), set(sys.modules)
    make()
    assert sys.path == path
    assert set(sys.modules) == modules


def test_a_strategy_that_is_not_there_is_found_out_when_it_is_looked_up() -> None:
    with pytest.raises(CannotStart, match="no_such_module"):
        ChaosPlan(("kill",), (THEIRS,), Topology(2, 2), CHAOS_LOAD, seed=1).check_strategies()
    with pytest.raises(CannotStart, match="no_such_module"):
        SoakPlan(strategy=THEIRS).check_strategy()


def test_a_configuration_changes_neither_the_environment_nor_the_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://theirs:1/0")
    environment, transports = dict(os.environ), dict(TRANSPORT_ALIASES)
    configuration(SETTINGS)
    assert (dict(os.environ), TRANSPORT_ALIASES) == (environment, transports)


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"])
def test_the_broker_is_ours_whatever_the_environment_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "redis://theirs:1/0")
    with create_app(SETTINGS) as app:
        assert app.connection_for_read().hostname == "ours"
        assert app.connection_for_write().hostname == "ours"
