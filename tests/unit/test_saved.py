"""What is saved of a schedule to be looked at, and what the page makes of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bankrun.errors import CannotStart
from bankrun.page.index import render_saved
from bankrun.page.saved import OLD, Saved, read_saved, tell_saved
from bankrun.results import store
from bankrun.results.models.proof import CaseResult, ProofResult
from bankrun.results.models.schedule import SourceTold, StepTold, TableTold
from bankrun.results.models.trial import TrialResult
from bankrun.results.provenance import Provenance
from bankrun.results.telling import LINES_MAX, ROWS_MAX, TEXT_MAX, tell_source, tell_states
from tests.results import comparison, trial


def rows(**left: int) -> list[str]:
    return [json.dumps({"id": int(name[1:]), "left": value}) for name, value in left.items()]


def test_of_states_the_tables_are_told_that_differ_in_the_order_of_their_keys() -> None:
    before = {"public.stock": rows(i10=1, i9=2), "public.other": ['{"id": 1}'], "bankrun.new": []}
    after = {**before, "public.stock": rows(i9=2, i10=0), "bankrun.new": ['{"name": null, "price": 1.50}']}
    assert tell_states([before, after]) == [
        {"stock": TableTold(["id", "left"], [["9", "2"], ["10", "1"]]), "new": TableTold(["name", "price"])},
        {
            "stock": TableTold(["id", "left"], [["9", "2"], ["10", "0"]]),
            "new": TableTold(["name", "price"], [[None, "1.50"]]),
        },
    ]
    assert tell_states([before, before]) == [{}, {}]


def test_of_a_large_table_what_changes_is_told_and_the_rest_is_counted() -> None:
    before = rows(**{f"i{number}": 0 for number in range(1000)})
    after = [*before[:-1], json.dumps({"id": 999, "left": "x" * 1000})]
    (one, other) = (state["stock"] for state in tell_states([{"stock": before}, {"stock": after}]))
    assert [len(one.rows), one.left_out, len(other.rows), other.left_out] == [ROWS_MAX, 980, ROWS_MAX, 980]
    assert one.rows[-1] == ["999", "0"]
    assert other.rows[-1][1] == "x" * (TEXT_MAX - 1) + "…"


def test_only_these_columns_of_the_bank_are_told() -> None:
    states = [{"bankrun.accounts": ['{"id": 1, "balance": 2, "version": 3}']}, {"bankrun.accounts": []}]
    told = tell_states(states, {"bankrun.accounts": ("id", "balance")})
    assert told[0] == {"accounts": TableTold(["id", "balance"], [["1", "2"]])}


def test_a_short_file_is_told_whole_and_of_a_long_one_the_function_with_its_decorators(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    text = "import os\n\n@os.fspath\ndef buy(n):\n    return n\n"
    file.write_text(text)
    assert tell_source(file, "buy") == SourceTold("shop.py", 1, text.splitlines())
    file.write_text(text + "\n" * LINES_MAX)
    assert tell_source(file, "buy") == SourceTold("shop.py", 3, ["@os.fspath", "def buy(n):", "    return n"])
    assert tell_source(file, "gone") is None
    assert tell_source(tmp_path / "none.py", "buy") is None
    script = tmp_path / "buy.sql"
    script.write_text("BEGIN;\nCOMMIT;\n")
    assert tell_source(script) == SourceTold("buy.sql", 1, ["BEGIN;", "COMMIT;"])


def test_the_page_tells_of_a_trial_its_schedules_and_in_a_line_the_rest() -> None:
    told = tell_saved(Saved("trial.json", trial()))
    (walk,) = told["walks"]
    assert (told["title"], told["shortest"]) == ("shop.py:buy(1) against itself", "two")
    assert (walk["names"], walk["replay"]) == ({"A": "buy(1)", "B": "buy(1)"}, "bankrun replay trial.json two/AABB")
    assert walk["background"]["serial"][0]["order"] == "AB"
    assert [line.partition(":")[0] for line in told["others"]] == ["in two threads of one process"]


def test_of_several_schedules_the_shortest_that_breaks_is_found() -> None:
    step = StepTold("A", "statement", ["SELECT 1"])
    long = CaseResult("none", "two", "drain", 2, "nothing", "unsafe", 6, 4, verdict="broken", steps=[step] * 9)
    short = CaseResult("none", "same", "same-pair", 2, "nothing", "unsafe", 6, 4, verdict="broken", steps=[step] * 5)
    safe = CaseResult("row-lock", "two", "drain", 2, "everywhere", "safe", 6, 0)
    told = tell_saved(Saved("proof.json", ProofResult(Provenance(), [safe, long, short])))
    assert told["shortest"] == "none/same/same-pair"
    assert told["walks"][1]["names"] == {"A": "10 from 101 to 102", "B": "5 from 101 to 102"}
    assert [walk["verdict"] for walk in told["walks"]] == ["broken", "broken"]
    assert told["others"] == ["row-lock, in two instances: each fits, both together do not: safe: none of 6"]


def test_a_file_of_an_older_bankrun_is_read_and_the_page_says_what_it_lacks(tmp_path: Path) -> None:
    plain = trial().as_json()
    for case in plain["cases"]:
        del case["background"]
        for step in case["steps"]:
            del step["text"], step["then"], step["tables"]
    file = tmp_path / "trial.json"
    file.write_text(json.dumps(plain))
    (saved,) = read_saved([file])
    assert isinstance(saved.result, TrialResult)
    (walk,) = tell_saved(saved)["walks"]
    assert walk["note"] == OLD
    assert len(walk["steps"]) == 1


def test_only_trials_and_proofs_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "comparison.json"
    store.save(str(file), comparison())
    with pytest.raises(CannotStart, match="kind comparison: the page shows trials and proofs; `bankrun report"):
        read_saved([file])
    with pytest.raises(CannotStart, match="cannot read"):
        read_saved([tmp_path / "none.json"])


def test_a_name_in_a_file_cannot_become_markup() -> None:
    hostile = trial()
    hostile.programs = ["<script>alert(1)</script>", "b"]
    hostile.cases[0].steps[0].statements = ["<img src=x onerror=alert(1)>"]
    page = render_saved(tell_saved(Saved("<b>.json", hostile)), 1, ["<b>.json"])
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "<b>" not in page
