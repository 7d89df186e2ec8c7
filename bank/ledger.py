"""The ledger: every statement that claims, refuses, records and posts a transfer, each with its name.

A failpoint, or the proof, asks for the name of what is executed: ``Statement.name`` where it sees the statement itself,
``name_of`` where only the text is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self
from uuid import UUID

from bank.errors import Rejected
from bank.orders import Order, Posting


class Statement(str):
    """SQL with a name. It is its own text, so whatever takes a query takes it."""

    __slots__ = ("name",)

    name: str

    def __new__(cls, name: str, sql: str) -> Self:
        """Name a statement."""
        made = super().__new__(cls, sql)
        made.name = name
        return made


# --- One transfer ---------------------------------------------------------------------------------------------------

CLAIM = Statement(
    "claim",
    """
    UPDATE transfers SET status = 'applied', reason = NULL, instance = %(instance)s, thread = %(thread)s,
           attempts = %(attempts)s, decided_at = clock_timestamp()
    WHERE id = %(id)s AND status = 'pending'
    RETURNING strategy, debit, credit, amount, nextval('entry_ids'), nextval('entry_ids')
    """,
)
REFUSE = Statement(
    "refuse",
    """
    UPDATE transfers SET status = 'refused', reason = %(reason)s, instance = %(instance)s, thread = %(thread)s,
           attempts = %(attempts)s, decided_at = clock_timestamp()
    WHERE id = %(id)s AND status = ANY(%(from)s)
    RETURNING id
    """,
)
FIND = Statement("find", "SELECT status FROM transfers WHERE id = %(id)s")

RECORD = Statement(
    "record",
    """
    INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)
    VALUES (%(id_1)s, %(transfer)s, %(account_1)s, %(delta_1)s, %(before_1)s, %(after_1)s, %(previous_1)s, %(read_1)s),
           (%(id_2)s, %(transfer)s, %(account_2)s, %(delta_2)s, %(before_2)s, %(after_2)s, %(previous_2)s, %(read_2)s)
    """,
)
POST = Statement(
    "post",
    """
    WITH posting (id, account_id, delta, before, after, previous_entry, read_at) AS (VALUES
        (%(id_1)s::bigint, %(account_1)s::int, %(delta_1)s::bigint, %(before_1)s::bigint, %(after_1)s::bigint,
         %(previous_1)s::bigint, %(read_1)s::timestamptz),
        (%(id_2)s, %(account_2)s, %(delta_2)s, %(before_2)s, %(after_2)s, %(previous_2)s, %(read_2)s)
    ), written AS (
        UPDATE accounts SET balance = posting.after, last_entry = posting.id
        FROM posting WHERE accounts.id = posting.account_id RETURNING posting.*
    )
    INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)
    SELECT id, %(transfer)s, account_id, delta, before, after, previous_entry, read_at FROM written
    """,
)

# --- A chunk --------------------------------------------------------------------------------------------------------

# A chunk is claimed before its accounts are locked, so that the next chunk can be claimed meanwhile; and as applied,
# since few are refused. In id order, so that two deliveries that overlap wait for each other in line. An order that
# disagrees with what was accepted is not claimed.
CLAIM_ALL = Statement(
    "claim all",
    """
    UPDATE transfers SET status = 'applied', reason = NULL, instance = %(instance)s, thread = %(thread)s,
           attempts = %(attempts)s, decided_at = clock_timestamp()
    FROM (
        SELECT * FROM unnest(%(ids)s::uuid[], %(debits)s::int[], %(credits)s::int[], %(amounts)s::bigint[])
            WITH ORDINALITY AS sent (id, debit, credit, amount, position)
        ORDER BY id
    ) AS sent
    WHERE transfers.id = sent.id AND status = 'pending' AND strategy = %(strategy)s
      AND (transfers.debit, transfers.credit, transfers.amount) = (sent.debit, sent.credit, sent.amount)
    RETURNING position
    """,
)
REFUSE_ALL = Statement(
    "refuse all",
    """
    UPDATE transfers SET status = 'refused', reason = refused.reason
    FROM unnest(%(ids)s::uuid[], %(reasons)s::text[]) AS refused (id, reason)
    WHERE transfers.id = refused.id
    """,
)
FIND_ALL = Statement(
    "find all",
    "SELECT id, status, strategy, debit, credit, amount FROM transfers WHERE id = ANY(%(ids)s::uuid[])",
)

# --- Deliveries after the first -------------------------------------------------------------------------------------

COUNT = Statement(
    "count",
    """
    UPDATE transfers SET redeliveries = redeliveries + 1
    WHERE id = %(id)s AND status = 'pending'
    RETURNING redeliveries, reason
    """,
)
FORGIVE = Statement(
    "forgive", "UPDATE transfers SET redeliveries = redeliveries - 1 WHERE id = %(id)s AND redeliveries > 0"
)
NOTE = Statement("note", "UPDATE transfers SET reason = %(reason)s WHERE id = %(id)s AND status = 'pending'")
FAIL = Statement(
    "fail",
    """
    UPDATE transfers SET status = 'failed', reason = %(reason)s, instance = %(instance)s, thread = %(thread)s,
           decided_at = clock_timestamp()
    WHERE id = %(id)s AND status = 'pending' AND (%(strategy)s::text IS NULL OR strategy = %(strategy)s)
    """,
)

STATEMENTS = (CLAIM, REFUSE, FIND, RECORD, POST, CLAIM_ALL, REFUSE_ALL, FIND_ALL, COUNT, FORGIVE, NOTE, FAIL)
_NAMES = {" ".join(statement.split()): statement.name for statement in STATEMENTS}


def name_of(text: str) -> str | None:
    """Return the name of the statement that has this text, white space apart; None if it is none of these."""
    return _NAMES.get(" ".join(text.split()))


# --- What is bound --------------------------------------------------------------------------------------------------


def array(values: Iterable[object]) -> str:
    """Return values as the text of a Postgres array, to be bound as one parameter: ``%(ids)s::bigint[]``.

    For numbers, ids and None. The driver's own way calls Python for every element, which a chunk of orders would feel.
    """
    return "{" + ",".join(map(str, values)).replace("None", "NULL") + "}"


def columns(orders: Sequence[Order]) -> dict[str, str]:
    """Return orders as four arrays to be bound: ``ids``, ``debits``, ``credits`` and ``amounts``."""
    return {
        "ids": array([order.id.hex for order in orders]),
        "debits": array([order.debit for order in orders]),
        "credits": array([order.credit for order in orders]),
        "amounts": array([order.amount for order in orders]),
    }


def legs(postings: tuple[Posting, Posting], transfer: UUID) -> dict[str, object]:
    """Return both postings of a transfer as what RECORD and POST bind."""
    parameters: dict[str, object] = {"transfer": transfer}
    for number, posting in enumerate(postings, start=1):
        parameters |= {
            f"id_{number}": posting.entry_id,
            f"account_{number}": posting.account_id,
            f"delta_{number}": posting.delta,
            f"before_{number}": posting.before,
            f"after_{number}": posting.after,
            f"previous_{number}": posting.previous_entry,
            f"read_{number}": posting.read_at,
        }
    return parameters


def find_disagreement(
    order: Order, strategy: str, accepted_for: str, debit: int, credit: int, amount: int
) -> Rejected | None:
    """Return what is wrong with an order or the strategy that a message names, beside what was accepted."""
    if accepted_for != strategy:
        return Rejected(f"transfer {order.id} was accepted for {accepted_for}, not for {strategy}")
    if (debit, credit, amount) != (order.debit, order.credit, order.amount):
        return Rejected(
            f"transfer {order.id}: the message says {order.amount} from {order.debit} to {order.credit}, "
            f"but {amount} from {debit} to {credit} was accepted"
        )
    return None
