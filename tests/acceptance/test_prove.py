"""`bankrun prove` and `bankrun replay`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.conftest import Bankrun

CONTRACT = {
    *("strategy", "instances", "case", "transfers", "interleavings", "broken", "truncated"),
    *("deadlocks", "conflicts", "shortest_broken", "seconds"),
}


def test_a_proof_says_what_is_broken_and_how_to_see_it(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        *("prove", "--strategy", "thread-lock", "--strategy", "row-lock", "--case", "same-pair", "--case", "drain"),
        *("--show", "1", "--export-json", "p.json", "--export-markdown", "p.md"),
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "p.json").read_text())["cases"]
    assert all(set(case) >= CONTRACT for case in cases)
    broken = {(case["strategy"], case["instances"]) for case in cases if case["broken"]}
    assert broken == {("thread-lock", "two")}
    assert any(f"bankrun replay {case['shortest_broken']}\n" in done.stdout for case in cases if case["broken"])
    assert "is off the books" in done.stdout
    assert "| row-lock | two | 0/6 | 0/6 |" in (tmp_path / "p.md").read_text()


def test_a_replay_tells_it_step_by_step_and_writes_a_script(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun("replay", "none/two/same-pair/AAAAABBABBBB", "--export-sql", "r.sql")
    assert done.returncode == 0
    assert "in the end: 2 applied; 300 at opening, 300 now" in done.stdout
    script = (tmp_path / "r.sql").read_text()
    assert script.count("\nBEGIN;") == 2
    assert "\\bind" in script


@pytest.mark.parametrize(
    "words",
    [
        ("prove", "--case", "sideways"),
        ("prove", "--strategy", "rowlock"),
        ("prove", "--transfers", "4"),
        ("prove", "--show", "-1"),
        ("prove", "--strategy", "single-writer"),
        ("replay", "nonsense"),
        ("replay", "none/two/same-pair/XYZ"),
        ("replay", "none/two/same-pair/AAAAAAAAAAAA"),
        ("strategies", "--proof", "p.json"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(typed: Bankrun, words: tuple[str, ...]) -> None:
    done = typed(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bankrun: ")
    assert len(done.stderr.splitlines()) == 1
