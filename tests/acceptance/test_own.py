"""A transfer of one's own, from an empty folder to a verdict: as a user types it, and as a test of theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from bank.errors import CannotStart
from bank.outside.template import write_starter
from tests.acceptance.conftest import SECONDS_MAX, Bankrun, environment

PAIR = ("--case", "same-pair")
CODE = """
    import os
    import subprocess
    import threading

    from bank.strategies import Claim, Strategy


    class Right(Strategy):
        claim = Claim.EVERYWHERE
        READ = Strategy.READ + " FOR UPDATE"


    class Wrong(Strategy):
        claim = Claim.EVERYWHERE


    class FailsAtThree(Right):
        def move(self, transaction, attempt):
            if attempt.order.debit == 3:
                raise KeyError("three")
            super().move(transaction, attempt)


    class HangsAtThree(Right):
        def guard(self, order):
            if order.debit == 3:
                threading.Event().wait()


    class ExitsAtThree(Right):
        def move(self, transaction, attempt):
            if attempt.order.debit == 3:
                raise SystemExit(0)
            super().move(transaction, attempt)


    class EndsItsWorkerAtThree(Right):
        def move(self, transaction, attempt):
            if attempt.order.debit == 3:
                os._exit(5)
            super().move(transaction, attempt)


    class KillsItsWorkerAtThree(Right):
        def move(self, transaction, attempt):
            if attempt.order.debit == 3:
                os.kill(os.getpid(), 9)
            super().move(transaction, attempt)


    class Prints(Right):
        def move(self, transaction, attempt):
            print("from move")
            os.write(1, b"past Python\\n")
            subprocess.run(["echo", "from a child"], check=True)
            super().move(transaction, attempt)


    print("at import")
    """


def edit(file: Path, old: str, new: str) -> None:
    """Change the last place where a text ends a line."""
    lines = file.read_text().splitlines()
    at = max(number for number, line in enumerate(lines) if line.endswith(old))
    lines[at] = lines[at].removesuffix(old) + new
    file.write_text("\n".join(lines) + "\n")


def test_from_an_empty_folder_to_a_verdict(bankrun: Bankrun, tmp_path: Path) -> None:
    made = bankrun("new", "my_lock")
    assert (made.returncode, made.stderr) == (0, "")
    assert "bankrun prove --strategy my_lock:MyLock" in made.stdout
    edit(tmp_path / "my_lock.py", "= Claim.NOTHING", "= Claim.EVERYWHERE")
    refuted = bankrun("prove", "--strategy", "my_lock:MyLock", *PAIR, "--show", "1")
    assert refuted.returncode == 3
    assert "my_lock:MyLock is broken in one instance and in two instances: 8 of 12\n" in refuted.stdout
    assert "\nbankrun replay my_lock:MyLock/two/same-pair/AAAAABBABBBB\n" in refuted.stdout
    assert "is off the books" in refuted.stdout
    edit(tmp_path / "my_lock.py", "ORDER BY id", "ORDER BY id FOR UPDATE")
    safe = bankrun("prove", "--strategy", "my_lock:MyLock", *PAIR)
    assert safe.returncode == 0
    assert "my_lock:MyLock is safe: none of" in safe.stdout


def test_a_start_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("mine")
    with pytest.raises(CannotStart, match=r"test_mine\.py is there already"):
        write_starter("mine", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["test_mine.py"]


@pytest.mark.parametrize(
    "name",
    ["class", "match", "list", "json", "bank", "bankrun", "redis", "My", "my-lock", "test_x", "../x", "", "_x", "x.y"],
)
def test_a_name_that_would_not_do_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotStart, match=r"choose another name|is no name for a module"):
        write_starter(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_under_load_each_fault_is_named_and_the_next_strategy_is_measured(bankrun: Bankrun, tmp_path: Path) -> None:
    """In a folder that also holds a stranger's own bank, workers and lab: ours are the ones that run."""
    (tmp_path / "mine.py").write_text(dedent(CODE))
    for package in ("bank", "workers", "bankrun"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    ending = ("mine:EndsItsWorkerAtThree", "mine:KillsItsWorkerAtThree")
    names = ("mine:FailsAtThree", "mine:ExitsAtThree", "mine:HangsAtThree", *ending, "mine:Right")
    done = bankrun(
        *("compare", *(word for name in names for word in ("--strategy", name)), "--topology", "2x2"),
        *("--transfers", "150", "--warmup", "0", "--cell-timeout", "4", "--seed", "1", "--export-json", "r.json"),
    )
    assert done.returncode == 1, done.stderr
    cells = {cell["strategy"]: cell for cell in json.loads((tmp_path / "r.json").read_text())["cells"]}
    fails, exits, hangs, ends, kills, right = (cells[name] for name in names)
    assert fails["failed"] > 0
    assert fails["reason"] == "fault: mine:FailsAtThree raises KeyError: 'three' (mine.py, line 21, in move)"
    assert exits["reason"] == "fault: mine:ExitsAtThree raises SystemExit: 0 (mine.py, line 34, in move)"
    assert hangs["pending"] > 0
    assert hangs["reason"].startswith("fault: mine:HangsAtThree hangs: w")
    assert hangs["reason"].endswith("stands in mine.py, line 28, in guard")
    assert ends["reason"] == "fault: mine:EndsItsWorkerAtThree calls os._exit(5) (mine.py, line 41, in move)"
    assert kills["reason"].startswith("fault: mine:KillsItsWorkerAtThree ends its worker: w")
    assert "was ended by signal 9" in kills["reason"]
    assert (right["applied"], right["lost_postings"], right["failed"]) == (150, 0, 0)


def test_what_a_strategy_prints_is_not_in_an_export_to_stdout(bankrun: Bankrun, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(dedent(CODE))
    words = ("compare", "--topology", "1x1", "--transfers", "20", "--warmup", "0")
    done = bankrun(*words, "--strategy", "mine:Prints", "--export-json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "comparison"
    for said in ("at import", "from move", "past Python", "from a child"):
        assert said in done.stderr


PLUGIN = """
    import mine


    def test_right_is_safe(bankrun):
        assert bankrun.prove("mine:Right", cases=["same-pair"]).broken == 0


    def test_wrong_is_safe(bankrun):
        bankrun.prove(mine.Wrong, cases=["same-pair"])


    def test_what_does_not_exist(bankrun):
        bankrun.prove("mine:Missing")


    def test_right_is_safe_under_load(bankrun):
        bankrun.stress(mine.Right, topology="2x2", transfers=200, accounts=4)
    """


def test_a_users_own_tests_pass_and_fail_with_the_shortest_story(cli_state: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(dedent(CODE))
    (tmp_path / "test_mine.py").write_text(dedent(PLUGIN))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        cwd=tmp_path,
        env=environment(cli_state),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "2 failed, 2 passed" in done.stdout, done.stdout
    assert "mine:Wrong is not safe on two instances: 4 of 6 interleavings of two transfers are broken" in done.stdout
    assert "see it again: bankrun replay mine:Wrong/two/same-pair/AAAAABBABBBB" in done.stdout
    columns = next(line for line in done.stdout.splitlines() if line.split() == ["A", "B"])
    claims = [line.index("claims") for line in done.stdout.splitlines() if "claims its transfer" in line]
    assert claims == [columns.index("A"), columns.index("B")]
    assert "mine:Missing cannot be loaded: mine.py has no Missing" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_plugin_costs_other_suites_one_small_import() -> None:
    code = (
        "import sys, pytest; known = set(sys.modules); import bankrun.pytest_plugin;"
        " print(*sorted(set(sys.modules) - known))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["bankrun", "bankrun.pytest_plugin"]


def test_one_that_needs_a_newer_postgres_is_left_out_in_words(bankrun: Bankrun, tmp_path: Path) -> None:
    (tmp_path / "newer.py").write_text(
        "from bankrun import RowLock\n\n\nclass Newer(RowLock):\n    postgres_min = 99\n"
    )
    sentence = "newer:Newer is left out: it needs Postgres 99, and this is 18."
    alone = bankrun("compare", "--strategy", "newer:Newer", "--dry-run")
    assert (alone.returncode, alone.stderr.count(sentence)) == (2, 1), alone.stderr
    beside = bankrun("compare", "--strategy", "newer:Newer", "--strategy", "row-lock", "--dry-run")
    assert (beside.returncode, beside.stderr.count(sentence)) == (0, 1), beside.stderr
    assert "newer:Newer" not in beside.stdout
    proved = bankrun("prove", "--strategy", "newer:Newer", "--case", "drain")
    assert (proved.returncode, proved.stderr.count(sentence)) == (2, 1), proved.stderr
