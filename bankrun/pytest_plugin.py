"""The pytest plugin: a test says that a strategy or a program is safe, or fails with the shortest schedule.

    def test_my_lock_is_safe_on_two_instances(bankrun):
        bankrun.prove("my_lock:MyLock")

    def test_two_purchases_end_like_one_after_the_other(bankrun):
        bankrun.serializable("shop.py:buy(1)", setup="schema.sql")

It imports nothing else of bankrun until a test asks for the fixture: in suites that don't, it costs one small import,
and their packages may be called `bank` or `workers` as ours are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from bank.settings import Settings
    from bankrun.proof.prover import Prover
    from bankrun.proof.verdicts import Proof
    from bankrun.results.models.comparison import Cell
    from bankrun.runs.session import Servers
    from bankrun.servers.places import Place
    from bankrun.trials.trial import Given, Trial

__all__ = ["Bankrun", "bankrun", "bankrun_session"]

T = TypeVar("T")


class Bankrun:
    """What a test can ask for. The servers start at the first question, and serve all tests of the session."""

    def __init__(self, resources: ExitStack) -> None:
        self._resources = resources
        self._settings: Settings | None = None
        self._servers: Servers | None = None
        self._prover: Prover | None = None
        self._place: Place | None = None

    def serializable(self, *programs: Given, setup: Given | None = None, strict: bool = False, **options: Any) -> Trial:
        """Run every interleaving of some programs, and fail unless each ends like one after the other.

        A program is a function of a file, or text: "shop.py:buy(1)", "transfer.sql", a path from where pytest runs; one
        alone meets itself. The options are those of `bankrun.trial`. What `needs retry` passes, unless ``strict``.
        """
        __tracebackhide__ = True
        from bankrun.errors import BankrunError
        from bankrun.trials.trial import ask, open_server, put_on_trial

        try:
            question = ask(programs, setup=setup, **options)
            if question.database_url is None and self._place is None:
                self._place = self._resources.enter_context(open_server())
            found = put_on_trial(question, place=None if question.database_url else self._place)
        except BankrunError as error:
            why = str(error)
        else:
            if found.verdict == "safe" or (found.verdict == "needs retry" and not strict):
                return found
            why = "\n".join([*filter(None, [found.story]), *found.sentences])
        pytest.fail(why, pytrace=False)

    def prove(self, strategy: str | type, *, instances: str = "two", cases: Iterable[str] = ()) -> Proof:
        """Run every order in which two transfers can meet, and fail unless the verdict is `safe`.

        ``strategy`` is ``module:Class``, the class itself, or a name of bankrun's. ``instances`` is "same", "two" or
        "both"; ``cases`` some of `bankrun prove --case`, by default all that say anything about the strategy.
        Deterministic, and a matter of seconds.
        """
        __tracebackhide__ = True
        _check_packages()
        from bankrun.proof.verdicts import prove_with, why_not_proved

        proof = self._ask(lambda: prove_with(self._open_prover(), strategy, instances=instances, cases=cases))
        if proof.verdict != "safe":
            pytest.fail(why_not_proved(proof), pytrace=False)
        return proof

    def stress(
        self, strategy: str | type, *, topology: str = "2x4", transfers: int = 1_000, accounts: int = 8, seed: int = 1
    ) -> Cell:
        """Send transfers through real workers, and fail unless the verdict is `safe`.

        That takes a control that breaks under the same load, so it is no proof, and slower; it sees what a proof of
        two transfers cannot: many at once, and what happens in a broker and in a pool of threads.
        """
        __tracebackhide__ = True
        _check_packages()
        from bankrun.proof.verdicts import stress_on, why_not_safe
        from bankrun.results.workload import Workload

        workload = self._ask(lambda: Workload(accounts=accounts, transfers=transfers))
        cell = self._ask(lambda: stress_on(self._open(), strategy, topology=topology, workload=workload, seed=seed))
        if cell.verdict != "safe":
            pytest.fail(why_not_safe(cell), pytrace=False)
        return cell

    def _ask(self, ask: Callable[[], T]) -> T:
        __tracebackhide__ = True
        from bank.errors import BankError
        from bankrun.errors import BankrunError

        try:
            return ask()
        except (BankError, BankrunError) as error:
            # A fault of the strategy, or servers that do not start: a sentence, and no trace through our files.
            why = str(error)
        pytest.fail(why, pytrace=False)

    def _open(self) -> Servers:
        if self._servers is None:
            from bankrun.runs.session import open_servers

            self._servers = self._resources.enter_context(open_servers(self._read_settings()))
        return self._servers

    def _open_prover(self) -> Prover:
        if self._prover is None:
            from bank.settings import read_settings
            from bankrun.proof.prover import Prover

            self._prover = self._resources.enter_context(Prover(read_settings()))  # with private servers
        return self._prover

    def _read_settings(self) -> Settings:
        """Return the settings, with a state directory of this session's own.

        Another bankrun, or another process of this test run, may be using the user's.
        """
        if self._settings is None:
            from bank.settings import read_settings

            self._settings = read_settings()
            if self._settings.state_dir is None:
                directory = Path(tempfile.mkdtemp(prefix="bankrun-pytest-", dir=_public_directory()))
                self._resources.callback(shutil.rmtree, directory, ignore_errors=True)
                directory.chmod(0o755)
                self._settings = self._settings.model_copy(update={"state_dir": directory})
        return self._settings


def _check_packages() -> None:
    """Fail the test, in a sentence, where the project's own packages stand in for ours."""
    __tracebackhide__ = True
    from bankrun.environ import check_packages
    from bankrun.errors import CannotStart

    try:
        check_packages()
    except CannotStart as error:
        why = str(error)
    else:
        return
    pytest.fail(why, pytrace=False)


def _public_directory() -> str | None:
    """Return a directory that Postgres can enter also where root runs the tests: it runs as somebody else then."""
    return "/tmp" if os.name == "posix" and os.geteuid() == 0 else None  # noqa: S108


@pytest.fixture(scope="session")
def bankrun_session() -> Iterator[Bankrun]:
    """Keep the servers for the whole session."""
    with ExitStack() as resources:
        yield Bankrun(resources)


@pytest.fixture
def bankrun(bankrun_session: Bankrun) -> Bankrun:
    """Put a strategy or a program on trial: `bankrun.prove("my_lock:MyLock")`, `bankrun.serializable("shop.py:f")`."""
    return bankrun_session
