"""The one wait: when it ends, what it bears, and how little it asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from bank.errors import BankError, OutcomeUnknown
from bank.settings import Settings
from bankrun.runs.boundary import name_lost_server
from bankrun.runs.delivery import Patience, Stalled, follow, insist, wait
from workers.app import create_app

QUICK = Patience(seconds_max=60, poll_seconds=0.001)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass only while something sleeps; the list holds each sleep."""
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def answer(answers: Iterable[int | Exception]) -> Callable[[], int]:
    """Return a question that is answered so, and at the end always like the last time."""
    left = list(answers)

    def ask() -> int:
        said = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(said, Exception):
            raise said
        return said

    return ask


def test_it_ends_when_nothing_is_left_and_says_how_far_it_is() -> None:
    seen: list[int] = []
    assert wait(answer([3, 1, 0]), QUICK, progress=seen.append) == 0
    assert seen == [3, 1, 0]


def test_it_ends_as_soon_as_few_enough_are_left() -> None:
    assert wait(answer([9, 4, 0]), QUICK, most=5) == 4


def test_past_its_limit_it_says_what_is_still_so() -> None:
    with pytest.raises(Stalled, match=r"after 2 s, messages are in the queue still") as stalled:
        wait(answer([7]), Patience(seconds_max=2), what="messages are in the queue")
    assert stalled.value.left == 7


def test_it_is_stalled_when_nothing_moves_and_not_while_something_does(clock: list[float]) -> None:
    slow = [left for left in range(9, 2, -1) for _ in range(15)]  # each for 0.75 s
    with pytest.raises(Stalled, match=r"3 transfers are pending, and nothing has moved for 1 s") as stalled:
        wait(answer(slow), Patience(stalled_seconds=1))
    assert stalled.value.left == 3
    assert sum(clock) > 5


def test_servers_may_be_away_for_a_while_and_not_for_longer() -> None:
    away = OutcomeUnknown("no connection")
    patience = Patience(outage_seconds=1)
    assert wait(answer([2, *[away] * 15, 1, *[away] * 15, 0]), patience) == 0
    with pytest.raises(OutcomeUnknown):
        wait(answer([2, away]), patience)
    with pytest.raises(OutcomeUnknown):
        wait(answer([2, away, 0]), Patience())


def test_processes_are_checked_once_a_second() -> None:
    checks: list[float] = []
    with pytest.raises(Stalled):
        wait(answer([1]), Patience(seconds_max=5), check=lambda: checks.append(time.monotonic()))
    assert 4 <= len(checks) <= 6

    def fail() -> None:
        raise BankError("w1 was ended by signal 9")

    with pytest.raises(BankError, match="w1 was ended"):
        wait(answer([1]), QUICK, check=fail)


def test_a_question_that_costs_much_is_asked_seldom(clock: list[float]) -> None:
    def ask() -> int:
        clock.append(0.1)
        return 1

    with pytest.raises(Stalled):
        wait(ask, Patience(seconds_max=60))
    asked = sum(1 for seconds in clock if seconds == 0.1)
    assert asked * 0.1 <= 0.06 * sum(clock)


def test_one_answer_that_a_server_held_up_does_not_make_the_next_one_late(clock: list[float]) -> None:
    costs = iter([0.0, 30.0, 0.0, 0.0])
    answers = iter([3, 2, 1, 0])

    def ask() -> int:
        clock.append(next(costs))
        return next(answers)

    assert wait(ask, QUICK) == 0
    assert sum(clock) < 31


def test_what_is_insisted_on_is_tried_until_it_works_and_not_for_ever() -> None:
    tries: list[int] = []

    def act() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("away")
        return 7

    assert insist(act, 10, lambda: tries.append(2)) == 7
    assert tries == [1, 2, 1]
    with pytest.raises(OSError, match="gone"):
        insist(answer([OSError("gone")]), 1)


def test_nothing_is_asked_before_the_first_look_is_wanted() -> None:
    asked: list[int] = []
    looks = follow(lambda: asked.append(1) or 0, QUICK)
    assert not asked
    assert list(looks) == [0]


def test_a_server_that_stays_away_is_named_in_one_sentence() -> None:
    @name_lost_server()
    def ask(error: Exception) -> None:
        raise error

    with pytest.raises(BankError, match=r"^a server is away: refused$"):
        ask(OperationalError("refused\nby somebody"))
    with pytest.raises(OutcomeUnknown, match=r"^already named$"):
        ask(OutcomeUnknown("already named"))
    with pytest.raises(KeyError):
        ask(KeyError("a fault of ours"))


def test_a_lab_gives_up_a_broker_that_ends_while_it_publishes() -> None:
    class Channel:
        def revive(self, _: object) -> None:
            pass

    def publish() -> None:
        raise ConnectionResetError("it ended")

    app = create_app(Settings(broker_url=SecretStr("redis://127.0.0.1:1/0")))  # nobody listens there
    with app.connection_for_write() as connection, pytest.raises(OperationalError, match="refused"):
        connection.ensure(Channel(), publish)()
