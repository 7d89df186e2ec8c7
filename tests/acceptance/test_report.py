"""The report and the difference, as a user types them: no server is needed for either."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.acceptance.conftest import Bankrun
from tests.results import cell, comparison, run


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two saved comparisons, the second with a strategy that broke."""
    for name, lost in (("a.json", 0), ("b.json", 40)):
        (tmp_path / name).write_text(json.dumps(comparison(cell(run("row-lock", lost=lost))).as_json()))
    return "a.json", "b.json"


def test_a_report_is_one_file_and_its_pictures_are_more(
    bankrun: Bankrun, files: tuple[str, str], tmp_path: Path
) -> None:
    done = bankrun("report", files[1], "-o", "b.html", "--pictures", ".")
    assert done.returncode == 0
    assert re.fullmatch(r"b\.html: (1,9|2,0)\d\d kB\n", done.stdout), done.stdout
    assert (tmp_path / "b.html").read_text().startswith("<!doctype html>")
    assert "<style>" in (tmp_path / "lost-row-lock-3x8.svg").read_text()


def test_a_difference_says_what_is_certain_and_where_there_are_too_few_runs(
    bankrun: Bankrun, files: tuple[str, str]
) -> None:
    done = bankrun("diff", *files)
    assert done.returncode == 0
    assert "changed for certain" in done.stdout
    assert "Too few runs to tell: compare with --repeat 4 or more, both times." in done.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("report", "nothing.json"), "cannot read nothing.json: No such file or directory"),
        (("report", "a.json", "-o", "no/where.html"), "cannot write 'no/where.html'"),
        (("report", "a.json", "--pictures", "nowhere"), "nowhere is no directory"),
        (("diff", "a.json", "/dev/null"), "cannot read /dev/null"),
    ],
)
def test_what_cannot_be_read_or_written_ends_in_one_sentence(
    bankrun: Bankrun, files: tuple[str, str], words: tuple[str, ...], why: str
) -> None:
    done = bankrun(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert why in done.stderr
