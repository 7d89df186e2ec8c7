"""Which worker stays on which core."""

from __future__ import annotations

import os
import threading

import pytest

from bank.errors import CannotStart
from workers.process import affinity
from workers.process.affinity import cores_for, stay_on, usable_cores

NAMES = ["w1", "w2", "w3"]


def cores(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Let this machine have these cores."""
    monkeypatch.setattr(affinity, "usable_cores", lambda: list(numbers))


def test_instances_take_the_cores_in_turn_where_there_are_no_more_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 4, 6)
    assert cores_for(NAMES) == {"w1": 4, "w2": 6, "w3": 4}


def test_where_cores_are_left_over_the_system_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 0, 1, 2, 3)
    assert cores_for(NAMES) == {}


def test_a_system_that_keeps_nothing_to_a_core_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch)
    assert cores_for(NAMES) == {}
    with pytest.raises(CannotStart, match="BANKRUN_CORE=0: this process may use no core by its number"):
        stay_on(0)


@pytest.mark.skipif(not usable_cores(), reason="this system keeps no process to a core")
def test_a_thread_stays_on_its_core_and_so_do_those_that_it_starts() -> None:
    last = usable_cores()[-1]
    found: list[set[int]] = []

    def stay_and_start_another() -> None:
        stay_on(last)
        inner = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        inner.start()
        inner.join()

    outer = threading.Thread(target=stay_and_start_another)
    outer.start()
    outer.join()
    assert found == [{last}]
    with pytest.raises(CannotStart, match="BANKRUN_CORE=65535"):
        stay_on(65_535)
