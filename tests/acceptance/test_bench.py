"""``bankrun bench`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.conftest import Bankrun


def test_a_quick_benchmark_measures_everybody_and_writes_its_page(bankrun: Bankrun, tmp_path: Path) -> None:
    exports = ("--export-json", "b.json", "--export-markdown", "b.md")
    done = bankrun("bench", "--quick", "--transfers", "64", "--topology", "1x2", *exports)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["schema"] == 1
    rows = {(row["name"], row["chunk"]): row for row in result["rows"]}
    assert set(rows) == {
        *(("pgbench", 1), ("pgbench-accepted", 1), ("celery-noop", 1)),
        *(("row-lock", 1), ("row-lock", 10), ("batch", 1_000)),
    }
    assert all(row["transfers_per_s"]["median"] > 0 for row in rows.values())
    assert rows["pgbench", 1]["ratio_to_pgbench"] == 1.0
    assert rows["row-lock", 1]["ratio_to_bound"] > 0
    assert "`row-lock`" in (tmp_path / "b.md").read_text()
    assert (tmp_path / "b-rates.svg").read_text().startswith("<svg")


WRONG = """
from bank.strategies import Claim, Strategy

class NoLock(Strategy):
    claim = Claim.EVERYWHERE
"""


@pytest.mark.long
def test_who_loses_money_has_no_rate_and_the_others_have_theirs(bankrun: Bankrun, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WRONG)
    load = ("--quick", "--topology", "1x4", "--accounts", "2", "--transfers", "200")
    done = bankrun("bench", "--strategy", "mine:NoLock", *load, "--export-json", "b.json")
    assert done.returncode == 1, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    (fault,) = result["faults"]
    assert "mine:NoLock on 1x4" in fault
    assert "a rate of wrong transfers is no rate" in fault
    assert fault.split(":")[0] in done.stdout
    names = {row["name"] for row in result["rows"]}
    assert names >= {"pgbench", "celery-noop", "row-lock", "batch"}
    assert "mine:NoLock" not in names


@pytest.mark.long
def test_a_benchmark_refuses_what_cannot_be_measured_before_it_starts_anything(bankrun: Bankrun) -> None:
    for words, why in (
        (("--quick", "--full"), "opposites"),
        (("--rounds", "0"), "rounds=0"),
        (("--transfers", "3"), "each of the 8 clients needs one"),
        (("--export-markdown", "-"), "pictures"),
    ):
        done = bankrun("bench", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr
