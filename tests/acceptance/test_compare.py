"""`bankrun compare`: the verdicts, the files, the words."""

from __future__ import annotations

import csv
import json
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Bankrun

SMALL = (
    "--topology",
    "1x4",
    "--topology",
    "2x4",
    "--transfers",
    "600",
    "--accounts",
    "4",
    "--warmup",
    "40",
    "--seed",
    "7",
)
CONTRACT = {
    *("strategy", "topology", "instances", "threads", "applied", "refused", "failed", "pending", "duplicates"),
    *("opening_total", "closing_total", "drift", "lost_postings", "unexplained", "overdrawn"),
    *("retries", "deadlocks", "serialization_failures", "seconds", "transfers_per_s", "latency_ms", "lock_wait_ms"),
    *("claim", "expected", "verdict", "reason"),
}


@pytest.fixture(scope="module")
def comparison(
    cli_state: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, subprocess.CompletedProcess[str]]:
    """One small comparison, with every export; several tests look at it."""
    from tests.acceptance.conftest import command, environment

    folder = tmp_path_factory.mktemp("comparison")
    exports = [
        "--export-json",
        "r.json",
        "--export-csv",
        "r.csv",
        "--export-markdown",
        "r.md",
        "--export-svg",
        "r.svg",
        "--junitxml",
        "r.xml",
    ]
    done = subprocess.run(
        command("compare", *SMALL, *exports),
        cwd=folder,
        env=environment(cli_state),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "r.json").read_text()), folder, done


def cells(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(cell["strategy"], cell["topology"]): cell for cell in result["cells"]}


def test_the_headline_a_thread_lock_holds_in_one_instance_and_not_in_two(comparison: Any) -> None:
    verdicts = {name: (cell["expected"], cell["verdict"]) for name, cell in cells(comparison[0]).items()}
    assert verdicts == {
        ("none", "1x4"): ("unsafe", "broken"),
        ("thread-lock", "1x4"): ("safe", "safe"),
        ("row-lock", "1x4"): ("safe", "safe"),
        ("none", "2x4"): ("unsafe", "broken"),
        ("thread-lock", "2x4"): ("unsafe", "broken"),
        ("row-lock", "2x4"): ("safe", "safe"),
    }


def test_the_file_keeps_the_contract(comparison: Any) -> None:
    result = comparison[0]
    assert result["schema"] == 1
    assert {"bankrun", "seed", "started", "environment", "workload", "cells"} <= set(result)
    assert (result["seed"], result["workload"]["transfers"], result["workload"]["accounts"]) == (7, 600, 4)
    for cell in result["cells"]:
        assert set(cell) >= CONTRACT
        assert cell["applied"] + cell["refused"] == 600
        assert (cell["failed"], cell["pending"], cell["duplicates"]) == (0, 0, 0)
        assert cell["latency_ms"]["p50"] <= cell["latency_ms"]["p99"] <= cell["latency_ms"]["max"]
        assert cell["seconds"] > 0
        assert len(cell["runs"]) == 1


def test_every_drift_is_explained_to_the_cent(comparison: Any) -> None:
    for cell in comparison[0]["cells"]:
        assert cell["unexplained"] == 0
        assert cell["drift"] == cell["closing_total"] - cell["opening_total"] == -cell["lost_delta"]


def test_as_many_threads_work_at_a_time_as_the_topology_says(comparison: Any) -> None:
    found = cells(comparison[0])
    assert found["row-lock", "1x4"]["working_max"] == {"w1": 4}
    assert set(found["row-lock", "2x4"]["working_max"]) == {"w1", "w2"}


def test_piped_the_table_fits_80_columns_and_the_words_tell_one_lost_posting(comparison: Any) -> None:
    lines = comparison[2].stdout.splitlines()
    table = lines[1 : next(number for number, line in enumerate(lines) if line.startswith("none on"))]
    assert sum(line.strip().startswith(("none ", "thread-lock ", "row-lock ")) for line in table) == 6
    assert all(len(line) <= 80 for line in table)
    assert "\x1b" not in comparison[2].stdout
    text = comparison[2].stdout
    assert "thread-lock on 2x4:" in text
    assert "two instances: no thread lock reaches from one to the other" in text
    assert "is gone: entry" in text


def test_each_export_says_the_same(comparison: Any) -> None:
    result, folder, _ = comparison
    rows = list(csv.DictReader((folder / "r.csv").read_text().splitlines()))
    assert [(row["strategy"], int(row["lost_postings"]), row["verdict"]) for row in rows] == [
        (cell["strategy"], cell["lost_postings"], cell["verdict"]) for cell in result["cells"]
    ]
    assert (folder / "r.md").read_text().count("| broken |") == 3
    assert "thread-lock" in (folder / "r.svg").read_text()
    suite = ET.parse(folder / "r.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("6", "0")
    assert sorted(path.name for path in folder.iterdir()) == ["r.csv", "r.json", "r.md", "r.svg", "r.xml"]


def test_the_control_runs_also_where_nobody_asked_for_it_and_json_on_stdout_is_alone_there(bankrun: Bankrun) -> None:
    done = bankrun(
        *("compare", "--strategy", "atomic-update", "--topology", "2x4", "--transfers", "500", "--accounts", "4"),
        *("--export-json", "-", "--warmup", "0", "--seed", "3"),
    )
    assert done.returncode == 0, done.stderr
    found = cells(json.loads(done.stdout))
    assert found["none", "2x4"]["verdict"] == "broken"
    assert found["atomic-update", "2x4"]["verdict"] == "safe"
    assert "atomic-update" in done.stderr


def test_strategies_keep_their_claims_on_topologies_smaller_than_the_fleet(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        *("compare", "--strategy", "striped-lock", "--strategy", "version-check"),
        *("--topology", "2x2", "--topology", "1x3", "--transfers", "400", "--accounts", "3"),
        *("--think-ms", "1", "--export-json", "r.json", "--warmup", "20", "--seed", "5"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for (strategy, topology), cell in cells(json.loads((tmp_path / "r.json").read_text())).items():
        assert (cell["verdict"] == "broken") == (cell["expected"] == "unsafe"), (strategy, topology, cell["reason"])
        # The pools have three threads; no more of them work than the topology says, and no fewer.
        assert set(cell["working_max"].values()) == {int(topology[-1])}


def test_a_cell_that_times_out_is_unfinished_and_never_broken(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        *("compare", "--strategy", "thread-lock", "--topology", "2x2", "--transfers", "300", "--think-ms", "100"),
        *("--cell-timeout", "1.5", "--warmup", "0", "--export-json", "r.json"),
    )
    assert done.returncode == 0, done.stderr
    for cell in json.loads((tmp_path / "r.json").read_text())["cells"]:
        assert cell["pending"] > 0
        assert cell["verdict"] == "inconclusive"
        assert cell["reason"].startswith("unfinished")
    assert "warning: thread-lock on 2x2 is inconclusive: unfinished" in done.stdout


@pytest.mark.long
def test_far_away_a_lock_is_held_for_round_trips_and_a_cell_ends_in_time(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        *("compare", "--strategy", "table-lock", "--strategy", "single-statement", "--topology", "2x2"),
        *("--distance-ms", "w1=0,w2=30", "--transfers", "1500", "--warmup", "0", "--seconds", "2", "--seed", "3"),
        *("--accounts", "3", "--export-json", "r.json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "were withdrawn, and rates are of the others" in done.stdout
    found = cells(json.loads((tmp_path / "r.json").read_text()))
    assert {topology for _, topology in found} == {"2x2@w1=0,w2=30ms"}
    for cell in found.values():
        assert cell["pending"] == 0
        assert cell["applied"] + cell["refused"] + cell["withdrawn"] == 1500
        assert cell["distance_ms"]["w1"] < 29 <= cell["distance_ms"]["w2"]
    slow, fast = (found[name, "2x2@w1=0,w2=30ms"] for name in ("table-lock", "single-statement"))
    assert slow["withdrawn"] > fast["withdrawn"]
    assert (slow["lost_postings"], fast["lost_postings"]) == (0, 0)


@pytest.mark.long
def test_the_same_strategies_lose_money_at_every_distance(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        *("compare", "--topology", "1x4", "--topology", "2x4", "--distance-ms", "0", "--distance-ms", "10"),
        *("--transfers", "600", "--seconds", "4", "--accounts", "4", "--seed", "5", "--export-json", "r.json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lost: dict[str, dict[tuple[str, str], bool]] = {"": {}, "10ms": {}}
    for (strategy, topology), cell in cells(json.loads((tmp_path / "r.json").read_text())).items():
        shape, _, distance = topology.partition("@")
        lost[distance][strategy, shape] = cell["lost_postings"] > 0
    assert lost[""] == lost["10ms"]
    assert {cell for cell, loses in lost[""].items() if loses} == {
        ("none", "1x4"),
        ("none", "2x4"),
        ("thread-lock", "2x4"),
    }


@pytest.mark.long
def test_what_an_unfinished_cell_left_behind_does_not_touch_the_next_one(bankrun: Bankrun, tmp_path: Path) -> None:
    # A thread still works on its chunk of thread-lock's transfers when row-lock's turn comes.
    done = bankrun(
        *("compare", "--strategy", "thread-lock", "--strategy", "row-lock", "--topology", "2x4", "--transfers", "800"),
        *(
            "--chunk",
            "100",
            "--think-ms",
            "15",
            "--accounts",
            "20",
            "--cell-timeout",
            "3",
            "--warmup",
            "0",
            "--seed",
            "3",
        ),
        *("--export-json", "r.json"),
    )
    assert done.returncode == 0, done.stdout
    found = cells(json.loads((tmp_path / "r.json").read_text()))
    assert found["thread-lock", "2x4"]["verdict"] == "inconclusive"
    assert found["row-lock", "2x4"]["lost_postings"] == 0


def test_an_inconclusive_cell_fails_a_strict_comparison_and_the_bank_can_be_audited_later(bankrun: Bankrun) -> None:
    # Ten transfers cannot make the control lose twenty postings.
    done = bankrun(
        *("compare", "--strategy", "row-lock", "--topology", "1x2", "--transfers", "10", "--warmup", "0", "--strict")
    )
    assert done.returncode == 3
    assert "row-lock on 1x2 is inconclusive: control held" in done.stdout.replace("\n", " ")
    sound = bankrun("audit")
    assert (sound.returncode, "all five invariants hold" in sound.stdout) == (0, True)


def test_with_one_thread_in_all_even_no_lock_is_safe(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        "compare", "--strategy", "none", "--topology", "1x1", "--transfers", "100", "--export-json", "r.json"
    )
    assert done.returncode == 0
    assert [(cell["expected"], cell["verdict"]) for cell in json.loads((tmp_path / "r.json").read_text())["cells"]] == [
        ("safe", "safe")
    ]


def test_with_repeat_every_run_is_in_the_file(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        *("compare", "--strategy", "row-lock", "--topology", "1x4", "--transfers", "300", "--accounts", "2"),
        *("--repeat", "2", "--export-json", "r.json", "--warmup", "0"),
    )
    assert done.returncode == 0
    assert [
        [run["repeat"] for run in cell["runs"]] for cell in json.loads((tmp_path / "r.json").read_text())["cells"]
    ] == [[1, 2]] * 2


def test_with_the_constraint_nothing_is_overdrawn_but_postings_are_lost_as_before(
    bankrun: Bankrun, tmp_path: Path
) -> None:
    done = bankrun(
        *(
            "compare",
            "--strategy",
            "none",
            "--topology",
            "1x4",
            "--transfers",
            "400",
            "--accounts",
            "2",
            "--opening",
            "100",
        ),
        *("--constraint", "--export-json", "r.json", "--warmup", "0"),
    )
    assert done.returncode == 0, done.stderr
    cell = json.loads((tmp_path / "r.json").read_text())["cells"][0]
    assert cell["overdrawn"] == 0
    assert cell["refused"] > 0
    broken = bankrun("audit", "--export-json", "-")
    assert broken.returncode == 3
    assert json.loads(broken.stdout)["lost_postings"] == cell["lost_postings"] > 0
    assert "lost posting" in broken.stderr


def test_a_dry_run_shows_the_plan_and_the_arithmetic_and_writes_nothing(bankrun: Bankrun, tmp_path: Path) -> None:
    done = bankrun(
        "compare", "--dry-run", "--topology", "3x8", "--seed", "1", "--transfers", "9", "--export-csv", "r.csv"
    )
    assert done.returncode == 0
    assert "would write r.csv" in done.stdout
    assert "9 messages for the 24 threads of 3x8" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "3 instances x (8 threads + 1 reconciler) + 8 for the lab = 35 connections" in done.stdout


def test_the_doctor_finds_the_embedded_servers_sound(bankrun: Bankrun) -> None:
    done = bankrun("doctor")
    assert done.returncode == 0, done.stdout
    assert "maxmemory-policy: noeviction" in done.stdout
    assert "lease_ttl 2 s < lock_timeout 5 s" in done.stdout


def test_the_strategies_are_listed_with_their_claims(typed: Bankrun) -> None:
    done = typed("strategies")
    assert done.returncode == 0
    assert any(line.split()[:2] == ["thread-lock", "process"] for line in done.stdout.splitlines())
