"""The one name to import: what is public, what it costs, and a project that has packages of our names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bankrun
from bankrun.environ import check_packages
from bankrun.errors import CannotStart

ROOT = Path(bankrun.__file__).parent.parent
HEAVY = {"bank", "workers", "celery", "kombu", "plotly", "sqlalchemy", "psycopg", "rich", "typer"}


def run_python(code: str, *, cwd: Path, safe: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder that comes first on the path, as it does for a project's own scripts and tests."""
    command = [sys.executable, *(["-P"] if safe else []), "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def run_pytest(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a project's tests, with its folder first on the path as pytest puts it there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def own_bank(tmp_path: Path) -> Path:
    """A project that has a ``bank`` and a ``workers`` of its own."""
    for name in ("bank", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("IT_IS = 'theirs'\n")
    return tmp_path


@pytest.mark.parametrize("name", bankrun.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(bankrun, name) is not None


def test_type_checkers_see_the_same_names_as_everyone_else() -> None:
    tree = ast.parse((ROOT / "bankrun" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (node.module, name.asname) for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert seen == {(home, name) for name, home in bankrun._HOME_OF.items()}


def test_every_public_name_is_on_the_page_and_nothing_else() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    listed = [
        name.strip(" `")
        for line in page.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    ]
    assert sorted(listed) == sorted(bankrun.__all__)


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'api'"):
        _ = bankrun.api


def test_importing_it_loads_nothing_else() -> None:
    done = run_python("import sys, bankrun; print(*{m.partition('.')[0] for m in sys.modules})", cwd=ROOT, safe=True)
    assert not HEAVY & set(done.stdout.split()), done.stdout


def test_in_a_project_with_a_bank_of_its_own_what_needs_ours_says_so(own_bank: Path) -> None:
    code = "import bankrun, bank; print(bank.IT_IS, bankrun.CannotStart.__name__); bankrun.Strategy"
    done = run_python(code, cwd=own_bank)
    assert done.stdout == "theirs CannotStart\n"
    assert f"this needs bankrun's own package 'bank', and {own_bank / 'bank'} comes first on the path" in done.stderr


def test_the_packages_beside_bankrun_are_ours() -> None:
    check_packages()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bankrun.environ._find", lambda name: None)
    with pytest.raises(CannotStart, match="'bank' is missing beside bankrun itself"):
        check_packages()


def test_the_fixture_says_so_too_and_other_tests_of_that_project_pass(own_bank: Path) -> None:
    (own_bank / "conftest.py").touch()
    (own_bank / "test_theirs.py").write_text(
        "import bank\n\ndef test_of_theirs():\n    assert bank.IT_IS == 'theirs'\n\n"
        "def test_of_ours(bankrun):\n    bankrun.prove('row-lock')\n"
    )
    done = run_pytest(own_bank)
    assert "1 failed, 1 passed" in done.stdout
    assert "this needs bankrun's own package 'bank'" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("theirs", [("bank",), ("workers",), ("bank", "workers")], ids=" and ".join)
@pytest.mark.parametrize("command", ["prove", "compare --seed 1", "doctor", "strategies"])
def test_a_command_that_needs_ours_says_so_with_exit_code_2(
    tmp_path: Path, theirs: tuple[str, ...], command: str
) -> None:
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    words = [sys.executable, "-m", "bankrun", *command.split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"bankrun: this needs bankrun's own package '{theirs[0]}', and ")
    assert len(done.stderr.splitlines()) == 1


def test_the_help_lists_every_command_there_too(own_bank: Path) -> None:
    words = [sys.executable, "-m", "bankrun", "--help"]
    done = subprocess.run(words, cwd=own_bank, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "try" in done.stdout
    assert "Not here: another package stands in" in done.stdout
