"""Strategies from outside: which classes fit, who may load them, and how each fault is named."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest

from bank import outside
from bank.errors import CannotStart, DoesNotFit, StrategyFault
from bank.outside import calling, load_strategies, loading, strategy_named, user_strategy
from bank.postgres.database import Database, psql_url
from bank.settings import Settings
from bank.strategies import STRATEGIES, Claim
from bankrun.proof.cases import CASES
from bankrun.proof.prover import Prover
from bankrun.runs.rehearsal import rehearse

PAIR = CASES["same-pair"]
HEAD = """
    import threading
    import time

    import psycopg

    from bank.strategies import Claim, Strategy, ThreadGuard

    LOCK = threading.Lock()

    class Right(Strategy):
        claim = Claim.EVERYWHERE
        READ = Strategy.READ + " FOR UPDATE"
"""
Write = Callable[..., str]
NUMBERS = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Write]:
    """Return a function that writes a user's module into the current folder, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def make(code: str, name: str = "") -> str:
        # A name of its own: an import that hangs, in another test, holds the lock of its module for ever.
        name = name or f"theirs_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(dedent(HEAD) + dedent(code))
        importlib.invalidate_caches()
        return name

    yield make
    for module in set(sys.modules) - before:
        del sys.modules[module]


def test_a_class_is_known_by_module_and_name_everywhere(write: Write) -> None:
    name = write("")
    found = user_strategy(f"{name}:Right")
    assert (found.name, found.claim) == (f"{name}:Right", Claim.EVERYWHERE)
    assert strategy_named(f"{name}:Right") is found
    assert user_strategy(sys.modules[name].Right) is found
    assert user_strategy(STRATEGIES["row-lock"]) is STRATEGIES["row-lock"]


def test_several_are_loaded_in_one_call_each_once_or_the_first_that_does_not_do_is_named(write: Write) -> None:
    reference = f"{write('')}:Right"
    found = load_strategies([reference, "none", STRATEGIES["none"], reference])
    assert [one.name for one in found] == [reference, "none"]
    with pytest.raises(CannotStart, match="did you mean row-lock"):
        load_strategies([reference, "rowlock"])


def test_a_class_with_nothing_but_a_move_is_a_strategy(write: Write) -> None:
    found = user_strategy(write("class Duck:\n    def move(self, transaction, attempt): ...\n") + ":Duck")
    assert (found.claim, found.isolation) == (Claim.NOTHING, "READ COMMITTED")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("claim = 'everywhere'", "claim is 'everywhere', and not one of Claim.NOTHING"),
        ("isolation = 'SERIALISABLE'", "isolation is 'SERIALISABLE', and not one of READ COMMITTED"),
        ("routed_to_one = 1", "routed_to_one is 1, and neither True nor False"),
        ("survives_pause = 1", "survives_pause is 1, and neither True nor False nor None"),
        ("READ = None", "READ is a NoneType, and no text"),
        ("guard = None", "guard is a NoneType, and no method"),
        ("def move(self, transaction, order, ids): ...", r"ids\) is called as move\(self, transaction, attempt\)"),
        ("def close(self, how): ...", "missing a required argument: 'how'"),
        ("async def move(self, transaction, attempt): ...", "move is async"),
        ("def move(self, transaction, attempt): yield", "move has a yield in it"),
        ("def open(self, settings): ...", "open is no classmethod"),
        ("def __init__(self, pool): ...", "missing a required argument: 'pool'"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(write: Write, body: str, why: str) -> None:
    name = write(f"class Wrong(Right):\n    {body}\n")
    with pytest.raises(DoesNotFit, match=rf"^theirs_\d+:Wrong does not fit: .*{why}"):
        user_strategy(f"{name}:Wrong")


@pytest.mark.parametrize(
    ("code", "name", "why"),
    [
        ("", "no_such_module:X", "there is no module 'no_such_module' here"),
        ("", "{}:X", r"theirs_\d+.py has no X"),
        ("", "{}:LOCK", "is no class"),
        ("", "{}:threading.Thread", "is no strategy"),
        ("", "bank.strategies:Strategy", "is the base of all strategies"),
        ("", "{}:", "is written package.module:Class"),
        ("", "rowlock", "did you mean row-lock.*is written package.module:Class"),
        (
            "import no_such",
            "{}:X",
            r"raises ModuleNotFoundError: .* \(theirs_\d+.py, line 14, in <module>\)",
        ),
        ("raise SystemExit(3)", "{}:X", r"its import raises SystemExit: 3 \(theirs_\d+.py, line 14"),
        ("import os; os._exit(3)", "{}:X", r"its import calls os._exit\(3\) \(theirs_\d+.py, line 14"),
        ("def f(:", "{}:X", r"theirs_\d+.py, line 14: invalid syntax"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_sentence(write: Write, code: str, name: str, why: str) -> None:
    name = name.format(write(code))
    with pytest.raises(CannotStart, match=why):
        user_strategy(name)


def test_an_import_that_never_ends_is_given_up_with_its_place(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "CALL_SECONDS_MAX", 0.3)
    with pytest.raises(DoesNotFit, match=r"hangs: for 0.3 s it has stood in theirs_\d+.py, line 14, in <module>"):
        user_strategy(write("threading.Event().wait()") + ":X")


WRONG = """
    class Raises(Right):
        def move(self, transaction, attempt):
            raise KeyError(attempt.order.debit)

    class SaysNonsense(Right):
        READ = "SELECT nothing FROM accounts"

    class ReturnsALock(Right):
        def guard(self, order):
            return LOCK

    class HangsInItsGuard(Right):
        def guard(self, order):
            threading.Event().wait()

    class HidesItsLock(Right):
        def move(self, *about):
            with LOCK:
                super().move(*about)

    class LeavesATransactionOpen(Right):
        def prepare(self, database, order):
            connection = database.engine.raw_connection()
            connection.cursor().execute("SELECT 1")

    class CannotClose(Right):
        def close(self):
            raise OSError("no")

    class MakesANumber(Right):
        @classmethod
        def open(cls, settings):
            return 5

    class NeverLeaves(Right):
        def guard(self, order):
            guard = ThreadGuard(LOCK)
            guard.leave = lambda: None
            return guard

    class EndsTheProcess(Right):
        def move(self, *about):
            raise SystemExit(0)

    class ForgotItsTable(Right):
        READ = "SELECT id, balance FROM forgotten"

    class RefusesEverything(Right):
        def move(self, *about):
            from bank.errors import Refused

            raise Refused("no")

    class EndsTheProcessAtOnce(Right):
        def move(self, *about):
            import os

            os._exit(0)
"""
FAULTS = {
    "Raises": r"raises KeyError: 101 \(theirs_\d+.py, line 17, in move\)",
    "SaysNonsense": r"raises UndefinedColumn: .*base.py, line \d+, in read\)",
    "ReturnsALock": "returns a lock as its guard, without enter and try_enter and leave: wrap it",
    "HangsInItsGuard": r"hangs: for 0.5 s it has stood in theirs_\d+.py, line 28, in guard",
    "HidesItsLock": r"hangs \(it stands in .*theirs_\d+.py, line 32, in move\): .*into guard\(\)",
    "LeavesATransactionOpen": r"gives a connection back with its transaction open \(.*, line 37, in prepare\)",
    "CannotClose": r"raises OSError: no \(theirs_\d+.py, line 42, in close\)",
    "MakesANumber": r"makes an int in open\(\)",
    "NeverLeaves": r"leaves its guard held: nobody is in it any more, and try_enter\(\) still returns False",
    "EndsTheProcess": r"raises SystemExit: 0 \(theirs_\d+.py, line 57, in move\)",
    "EndsTheProcessAtOnce": r"calls os._exit\(0\) \(theirs_\d+.py, line 72, in move\)",
    "ForgotItsTable": "does not apply two transfers that could both be: .* FROM forgotten fails with 42P01",
    "RefusesEverything": "does not apply two transfers that could both be: they are refused, or left pending",
}


@pytest.mark.parametrize(("wrong", "fault"), FAULTS.items(), ids=FAULTS)
def test_a_fault_is_named_and_the_next_strategy_is_proved_as_ever(
    write: Write, prover: Prover, monkeypatch: pytest.MonkeyPatch, wrong: str, fault: str
) -> None:
    monkeypatch.setattr(calling, "CALL_SECONDS_MAX", 0.5)
    monkeypatch.setattr("bankrun.schedule.settling.SETTLE_SECONDS_MAX", 2.0)
    strategy = user_strategy(f"{write(WRONG)}:{wrong}")

    def prove() -> None:
        prover.rehearse(strategy)
        prover.prove(strategy, "same", PAIR)

    with pytest.raises(StrategyFault, match=rf"^{strategy.name} .*{fault}"):
        prove()
    monkeypatch.undo()
    assert prover.prove(STRATEGIES["row-lock"], "two", PAIR).broken == 0


def test_connections_that_are_not_given_back_are_named(
    write: Write, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        class Ours(Right):
            def prepare(self, database, order):
                self.kept = database.transaction()
                self.kept.__enter__()

        class Theirs(Right):
            def prepare(self, database, order):
                from bank.postgres.database import psql_url
                KEPT.append(psycopg.connect(psql_url(database.url)))

        KEPT = []
        """
    name = write(code)
    ours, theirs = user_strategy(f"{name}:Ours"), user_strategy(f"{name}:Theirs")
    monkeypatch.setattr("bank.postgres.database.POOL_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(StrategyFault, match=r"leaks a connection of its own: 5 are open after its close\(\)"):
        rehearse(database, settings, [theirs.name])
    for connection in sys.modules[name].KEPT:
        connection.close()
    with pytest.raises(StrategyFault, match=r"leaks a connection: .* never given back \(.*, line 18, in prepare\)"):
        rehearse(database, settings, [ours.name])


def test_a_connection_that_another_left_open_is_not_blamed_on_a_strategy(
    write: Write, database: Database, settings: Settings
) -> None:
    kept = [psycopg.connect(psql_url(database.url)) for _ in range(2)]
    rehearse(database, settings, [user_strategy(f"{write('')}:Right").name])
    for connection in kept:
        connection.close()


def test_a_lock_in_a_module_is_proved_to_hold_in_one_instance_and_not_in_two(write: Write, prover: Prover) -> None:
    """Each instance is a process, and imports the module for itself, with all that lies beside it."""
    code = """
        from beside import SHARED

        class Global(Strategy):
            claim = Claim.EVERYWHERE

            def guard(self, order):
                return ThreadGuard(SHARED)
        """
    Path("beside.py").write_text("import threading\n\nSHARED = threading.Lock()\n")
    strategy = user_strategy(f"{write(code)}:Global")
    assert prover.prove(strategy, "same", PAIR).broken == 0
    two = prover.prove(strategy, "two", PAIR)
    assert two.contradicts
    judged = prover.replay(strategy, "two", PAIR, two.broken_ids[0].rpartition("/")[2])
    assert judged.is_broken


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # 3.12 warns of it beside threads
def test_what_a_strategy_forks_may_end_as_it_likes(write: Write, database: Database, settings: Settings) -> None:
    code = """
    class Forks(Right):
        def move(self, transaction, attempt):
            import os

            if not (child := os.fork()):
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            super().move(transaction, attempt)
    """
    strategy = user_strategy(f"{write(code)}:Forks")
    rehearse(database, settings, [strategy.name])


def test_only_what_was_announced_is_loaded(write: Write, tmp_path: Path) -> None:
    write("", "announced")
    write("raise SystemExit('imported')", "silent")
    told = Settings(strategies="announced:Right", strategies_path=str(tmp_path))
    assert outside.is_announced("announced:Right", told)
    for name in ("silent:X", "announced:Other", "os:system", "announced", "silent:X,announced:Right"):
        assert not outside.is_announced(name, told)
    assert not outside.is_announced("announced:Right", Settings())
    # All that is in the folders, and nothing that is not.
    everything = Settings(strategies="*", strategies_path=str(tmp_path))
    outside.make_importable([tmp_path])
    assert outside.is_announced("silent:X", everything)
    for name in ("os:system", "bank.strategies:Strategy", "no_such:X", "../silent:X", "silent"):
        assert not outside.is_announced(name, everything)
    assert "silent" not in sys.modules


def test_a_folder_of_the_user_comes_last_on_the_path(write: Write) -> None:
    name = write("")
    for ours in ("bank", "workers", "bankrun", "json"):
        Path(ours).mkdir()
        (Path(ours) / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    user_strategy(f"{name}:Right")
    assert sys.path[-1] == str(Path.cwd())


def test_what_a_lab_has_loaded_is_what_its_workers_are_told(write: Write, tmp_path: Path) -> None:
    assert outside.announce() == {}
    name = user_strategy(f"{write('')}:Right").name
    assert outside.announce() == {
        "BANKRUN_STRATEGIES": name,
        "BANKRUN_STRATEGIES_PATH": str(tmp_path),
    }


def test_an_installed_package_offers_a_strategy_by_name(write: Write, tmp_path: Path) -> None:
    write("", "their_package")
    information = tmp_path / "their_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[bankrun.strategies]\ntheirs = their_package:Right\n")
    sys.path.append(str(tmp_path))
    assert strategy_named("theirs").name == "theirs"
    with pytest.raises(CannotStart, match="did you mean theirs"):
        strategy_named("their")
