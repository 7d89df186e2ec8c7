"""`bankrun prove` and `bankrun replay`, as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest

from bankrun.results import store
from bankrun.results.models.proof import ProofResult
from bankrun.servers.embedded import private_postgres
from tests.acceptance.conftest import Bankrun, command, environment, processes_of
from tests.waiting import wait_until

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
    assert "bankrun page p.json\n" in done.stdout
    case = next(case for case in cases if case["broken"] and case["case"] == "same-pair")
    seen, steps = case["background"], case["steps"]
    assert "".join(step["participant"] for step in steps) == case["shortest_broken"].rpartition("/")[2]
    balances = [step["tables"]["accounts"]["rows"][0][1] for step in steps if step["tables"]]
    serial = [one["tables"]["accounts"]["rows"][0][1] for one in seen["serial"]]
    assert seen["tables"]["accounts"]["rows"][0][:2] == ["101", "100"]
    assert len(set(serial)) == 1
    assert balances[-1] not in serial
    assert any("lost posting" in line for line in seen["ended"])
    assert "class ThreadLock(Strategy):" in seen["sources"]["A"]["lines"]
    assert all(not one["steps"] for one in cases if not one["broken"])
    assert "| row-lock | two | 0/6 | 0/6 |" in (tmp_path / "p.md").read_text()


def test_one_that_is_interrupted_tells_and_exports_what_it_has(cli_state: Path, tmp_path: Path) -> None:
    words = ("prove", "--strategy", "row-lock", "--strategy", "share-lock", "--export-json", "p.json")
    process = subprocess.Popen(
        command(*words),
        cwd=tmp_path,
        env=environment(cli_state),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()  # without a terminal, a line for each strategy that is done
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert first.startswith("row-lock: 0 of "), first + err
    assert process.returncode == 143
    assert err == ""
    assert "cut short after " in out
    saved = store.read_as(ProofResult, tmp_path / "p.json")
    assert saved.provenance.cut_short
    assert {case.verdict for case in saved.cases if case.strategy == "row-lock"} == {"safe"}
    assert wait_until(lambda: not processes_of(cli_state), 5), processes_of(cli_state)


def test_a_replay_tells_it_step_by_step_and_writes_a_script(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun("replay", "none/two/same-pair/AAAAABBABBBB", "--export-sql", "r.sql")
    assert done.returncode == 0
    assert "in the end: 2 applied; 400 at opening, 400 now" in done.stdout
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
        ("page", "none.json"),
        ("page", "--strategy", "none_such:Mine"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(typed: Bankrun, words: tuple[str, ...]) -> None:
    done = typed(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bankrun: ")
    assert len(done.stderr.splitlines()) == 1


# Without a superuser's rights the database is copied anew for each interleaving: one strategy, of few steps, will do.
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("owner", {"single-statement": "safe", "check-then-debit": "broken"}),
        pytest.param("plain", {"single-statement": "safe"}, marks=pytest.mark.long),
    ],
    ids=["owner", "plain"],
)
def test_on_a_given_server_a_proof_comes_to_the_same_and_leaves_nothing(
    bankrun: Bankrun, cli_state: Path, tmp_path: Path, user: str, expected: dict[str, str]
) -> None:
    with private_postgres(cli_state, {}) as server:
        address = {"host": str(server.host), "port": server.port, "user": server.user, "dbname": "postgres"}
        with psycopg.connect(**address, autocommit=True) as connection:
            connection.execute("CREATE ROLE plain LOGIN CREATEDB")
            connection.execute("CREATE ROLE owner LOGIN SUPERUSER")
            before = connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall()
        given = ("--database-url", f"postgresql://{user}@/postgres?host={server.host}&port={server.port}")
        strategies = [word for name in expected for word in ("--strategy", name)]
        done = bankrun("prove", *strategies, "--case", "drain", "--instances", "two", "--export-json", "p.json", *given)
        assert done.returncode == 0, done.stderr
        found = store.read_as(ProofResult, tmp_path / "p.json")
        assert found.provenance.environment["servers"] == "given"
        assert {case.strategy: case.verdict for case in found.cases} == expected
        for case in found.cases:
            if case.shortest_broken is not None:
                again = bankrun("replay", case.shortest_broken, *given)
                assert again.returncode == 0, again.stderr
                assert "overdraft" in again.stdout
        with psycopg.connect(**address, autocommit=True) as connection:
            assert connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall() == before
            roles = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'bankrun_%'").fetchall()
    assert roles == []
