"""The ledger's statements are known by their names, whoever executes them, and by their whole text alone."""

from __future__ import annotations

import pytest

from bank import ledger
from bank.ledger import STATEMENTS, Statement, name_of


def test_no_two_statements_have_one_name() -> None:
    assert len({statement.name for statement in STATEMENTS}) == len(STATEMENTS)
    assert {id(one) for one in vars(ledger).values() if isinstance(one, Statement)} == {id(one) for one in STATEMENTS}


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.name)
def test_a_statement_is_its_text_and_is_found_by_it_however_it_is_spaced(statement: Statement) -> None:
    assert name_of(str(statement)) == name_of(" ".join(statement.split())) == statement.name
    assert name_of(f"{statement} -- and more") is None


def test_what_only_begins_like_a_claim_is_none() -> None:
    assert name_of("UPDATE transfers SET status = 'applied'") is None
    assert name_of("") is None
