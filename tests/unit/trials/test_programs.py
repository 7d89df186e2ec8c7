"""What can be put on trial, and the sentence for what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from bankrun.errors import CannotStart
from bankrun.trials.running.programs import Call, Command, Script, describe_function, pair, read_command, read_program

SHOP = """
import pytest
from os.path import *
def buy(number, *, fast=False): ...
async def sell(): ...
@pytest.fixture
def customer(): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP.replace("from os.path import *", ""))
    (tmp_path / "transfer.sql").write_text("select 1")
    return tmp_path


def test_a_call_is_read_with_literal_arguments(folder: Path) -> None:
    program = read_program("shop.py:buy(1, fast=True)", folder)
    assert program == Call(folder / "shop.py", "buy", (1,), (("fast", True),), "shop.py")
    assert program.name == "shop.py:buy(1, fast=True)"
    assert program.short_name == "buy(1, fast=True)"
    assert read_program("shop.py:sell", folder).short_name == "sell()"


def test_scripts_and_commands_are_read(folder: Path) -> None:
    assert isinstance(read_program("transfer.sql", folder), Script)
    assert read_command("ls 'a b' $HOME") == Command(("ls", "a b", "$HOME"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("shop.py:buy(open('x'))", "arguments are literals"),
        ("shop.py:buy(**{})", "name each keyword"),
        ("shop.py:lambda: 1", "a lambda has no name"),
        ("shop.py:bye(1)", "has no function 'bye': it has buy, customer, sell"),
        ("shop.py:buy(", "is not a call such as"),
        ("shop.py:a.b()", "is not a call of a function of that file"),
        ("shop.py:customer()", "is a pytest fixture"),
        ("shop.py", "is neither FILE.py:function"),
        ("none.py:buy()", "there is no file"),
        ("node buy.js", "--command 'node buy.js'"),
    ],
)
def test_what_is_no_program_is_said_in_a_sentence(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(CannotStart, match=r"^[^\n]*$") as caught:
        read_program(text, folder)
    assert sentence in str(caught.value)


def top_level() -> None: ...


def needs(customer: object) -> None: ...


def test_functions_that_another_interpreter_cannot_import_are_refused() -> None:
    found = describe_function(top_level)
    assert isinstance(found, Call)
    assert found.function == "top_level"
    with pytest.raises(CannotStart, match="a lambda has no name"):
        describe_function(lambda: None)

    def closure() -> None: ...

    with pytest.raises(CannotStart, match="defined inside another function"):
        describe_function(closure)
    with pytest.raises(CannotStart, match="needs customer"):
        describe_function(needs)
    with pytest.raises(CannotStart, match="is no function of a file"):
        describe_function(print)


def test_one_program_alone_meets_itself() -> None:
    one = Command(("ls",))
    assert pair([one]) == (one, one)
    with pytest.raises(CannotStart, match="nothing to try"):
        pair([])
    with pytest.raises(CannotStart, match="at most 4"):
        pair([one] * 5)


@pytest.mark.parametrize("text", ["", "  ", "'open", "no-such-program-here x"])
def test_what_is_no_command_is_said(text: str) -> None:
    with pytest.raises(CannotStart):
        read_command(text)
