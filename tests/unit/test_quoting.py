"""Text from outside, where it is shown: on a terminal, in HTML, in XML."""

from __future__ import annotations

import io
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from bankrun.quoting import legal, one_line, printable
from bankrun.render.report import report
from bankrun.render.tables import comparison_junit, comparison_svg
from bankrun.render.terminal import Terminal
from bankrun.results import store
from tests.results import cell, comparison, run

EVIL = "a\x1b[31m\x00\x9b\u202e\u2066\ud800\x07b"
SHOWN = "a?[31m?????b"
"""As Rich shows it: a bell it leaves out by itself."""
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def show(*things: object, colours: bool = False) -> str:
    """Return what a terminal of ours shows."""
    terminal = Terminal(
        file=io.StringIO(), width=60, force_terminal=colours, color_system="standard" if colours else None
    )
    terminal.print(*things)
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


@given(st.text())
def test_a_terminal_gets_letters_line_breaks_and_tabs_and_every_letter_as_it_is(text: str) -> None:
    quoted = printable(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in quoted)
    assert [new for new, old in zip(quoted, text, strict=True) if new != old] == ["?"] * sum(
        not (letter.isprintable() or letter in "\n\t") for letter in text
    )
    assert one_line(text, 10).isprintable()
    assert len(one_line(text, 10)) <= 10


@given(st.text())
def test_a_document_keeps_all_but_what_none_may_hold(text: str) -> None:
    made = legal(f"<x>{text.replace('&', '').replace('<', '')}</x>")
    ET.fromstring(made)
    made.encode()
    assert not any(unicodedata.bidirectional(letter) in ("RLO", "LRO", "RLE", "LRE", "RLI", "LRI") for letter in made)


@pytest.mark.parametrize("thing", [EVIL, Text(EVIL), f"x {EVIL} y"])
@pytest.mark.parametrize("in_table", [False, True])
def test_no_text_acts_on_a_terminal_however_it_is_printed(thing: str | Text, in_table: bool) -> None:
    if in_table:
        table = Table("name", title=EVIL.replace("\ud800", ""))
        table.add_row(thing)
        table.add_column(EVIL)
    shown = show(table if in_table else thing)
    assert not CONTROLS.search(shown)
    assert "[31m" in shown


def test_brackets_and_colons_in_a_name_are_letters() -> None:
    assert show("[/] [red]x[/red] :boom:") == "[/] [red]x[/red] :boom:\n"


def test_a_style_of_ours_is_still_a_colour() -> None:
    assert show(Text(EVIL, "red"), colours=True) == f"\x1b[31m{SHOWN}\x1b[0m\n"


def test_columns_are_as_wide_as_what_is_shown_in_them() -> None:
    table = Table("n", "m", box=None, pad_edge=False)
    table.add_row("\x1b\x1b\x1b", "1")
    assert show(table).splitlines()[1].rstrip() == "???  1"


def test_a_terminal_is_spared_an_export_too_and_a_pipe_gets_it_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("-", "a\x1bb\n")
    assert capsys.readouterr().out == "a\x1bb\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    store.write("-", "a\x1bb\n")
    assert capsys.readouterr().out == "a?b\n"


def test_documents_with_such_names_are_documents() -> None:
    result = comparison(cell(run(EVIL, lost=3)))
    result.provenance = replace(result.provenance, command=EVIL)
    ET.fromstring(comparison_junit(result))
    ET.fromstring(comparison_svg(result))
    page = report(result)
    assert not CONTROLS.search(page)
    page.encode()
