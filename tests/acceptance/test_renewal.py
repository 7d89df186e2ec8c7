"""Each strategy is compared in a bank and in sessions that nobody used before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.acceptance.conftest import Bankrun, environment

pytestmark = pytest.mark.long


THEIRS = """
    from bankrun import Claim, RowLock, Strategy


    class Doubles(Strategy):
        '''Leaves a trigger that takes everybody's money, and a constraint.'''

        claim = Claim.NOTHING

        @classmethod
        def install(cls, transaction):
            transaction.execute(
                "CREATE OR REPLACE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN NEW.balance := NEW.balance - 1; RETURN NEW; END $$"
            )
            transaction.execute("CREATE TRIGGER steal BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION steal()")


    class Dedup(RowLock):
        '''A table of its own, by the order's id, which nobody granted to anybody.'''

        claim = Claim.EVERYWHERE

        @classmethod
        def install(cls, transaction):
            transaction.execute("CREATE TABLE IF NOT EXISTS handled (id uuid PRIMARY KEY)")

        def move(self, transaction, attempt):
            handled = transaction.execute(
                "INSERT INTO handled VALUES (%(id)s) ON CONFLICT DO NOTHING", {"id": attempt.order.id}
            )
            if handled.rowcount:
                super().move(transaction, attempt)


    class Sets(RowLock):
        '''Leaves a database in which every session is read only.'''

        claim = Claim.EVERYWHERE

        @classmethod
        def install(cls, transaction):
            transaction.execute("ALTER DATABASE bankrun SET idle_session_timeout = '1h'")
"""
UNDO = """
    from bankrun import running_bank

    with running_bank() as bank, bank.transaction() as transaction:
        transaction.execute("ALTER DATABASE bankrun RESET idle_session_timeout")
"""
LOAD = ("--topology", "1x4", "--topology", "2x4", "--transfers", "400", "--accounts", "4", "--warmup", "20")


def verdicts(done_in: Path) -> dict[tuple[str, str], tuple[str, str]]:
    cells = json.loads((done_in / "r.json").read_text())["cells"]
    return {(cell["strategy"], cell["topology"]): (cell["verdict"], cell["reason"]) for cell in cells}


def test_nothing_that_a_strategy_leaves_behind_reaches_the_next_one(bankrun: Bankrun, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(dedent(THEIRS))
    both = ("--strategy", "theirs:Doubles", "--strategy", "row-lock", "--strategy", "theirs:Dedup")
    first = bankrun("compare", *both, *LOAD, "--seed", "5", "--export-json", "r.json")
    found = verdicts(tmp_path)
    assert found["theirs:Doubles", "1x4"][0] == "broken"
    for name in ("row-lock", "theirs:Dedup"):
        assert {found[name, "1x4"][0], found[name, "2x4"][0]} == {"safe"}, (found, first.stderr)
    # The same transfers again: what the one before kept of them is gone.
    again = bankrun("compare", *both[2:], *LOAD, "--seed", "5", "--export-json", "r.json")
    assert again.returncode == 0, again.stderr
    assert verdicts(tmp_path)["theirs:Dedup", "2x4"][0] == "safe"


def test_what_is_changed_outside_of_the_bank_is_named_and_no_verdict_is_given(
    bankrun: Bankrun, cli_state: Path, tmp_path: Path
) -> None:
    (tmp_path / "theirs.py").write_text(dedent(THEIRS))
    try:
        bankrun("compare", "--strategy", "theirs:Sets", *LOAD, "--export-json", "r.json")
        verdict, reason = verdicts(tmp_path)["theirs:Sets", "1x4"]
    finally:
        (tmp_path / "undo.py").write_text(dedent(UNDO))
        subprocess.run([sys.executable, "-P", "undo.py"], cwd=tmp_path, env=environment(cli_state), check=True)
    assert verdict == "inconclusive"
    assert "changes what lies outside of the bank: the setting idle_session_timeout=1h" in reason
