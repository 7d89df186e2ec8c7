"""The row lock in one round trip: the whole transfer is one statement."""

from __future__ import annotations

from collections.abc import Mapping

from bank.ledger import Statement
from bank.postgres.database import Transaction
from bank.strategies.base import Think
from bank.strategies.row_lock import RowLock


class SingleStatement(RowLock):
    """Claim, ``SELECT … FOR UPDATE``, both balances and both entries in one statement, which commits itself.

    Claims everywhere, as ``row-lock`` does: the same rows are locked in the same order, and what is written is computed
    from the rows as they were when the lock was granted (manual, section 13.2.1: READ COMMITTED). A worker waits for
    Postgres once for each transfer, and no lock is held while an answer travels. It works as long as the rule can be
    said in SQL; whatever an application does between reading and writing, it does before. What the statement does not
    do — a transfer that is decided, or has to be refused — goes the way of ``row-lock``, which finds out why.
    """

    name = "single-statement"
    summary = "all of a transfer in one round trip"

    # Each part needs what the one before it returns, so they run in this order: the claim when both rows are locked,
    # the accounts when it is claimed, an entry when its account was written (manual, section 7.8.4).
    AT_ONCE = Statement(
        "apply at once",
        """
        WITH locked AS (
            SELECT id, balance, last_entry FROM accounts
            WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR UPDATE
        ), claimed AS (
            UPDATE transfers SET status = 'applied', reason = NULL, instance = %(instance)s, thread = %(thread)s,
                   attempts = %(attempts)s, decided_at = clock_timestamp()
            WHERE id = %(id)s AND status = 'pending' AND strategy = %(strategy)s
              AND (debit, credit, amount) = (%(debit)s, %(credit)s, %(amount)s)
              AND (SELECT count(*) = 2 AND min(balance) FILTER (WHERE id = %(debit)s) >= %(amount)s FROM locked)
            RETURNING id
        ), leg AS (
            SELECT nextval('entry_ids') AS id, claimed.id AS transfer_id, locked.id AS account_id,
                   (CASE locked.id WHEN %(debit)s THEN -%(amount)s ELSE %(amount)s END)::bigint AS delta,
                   balance, last_entry, clock_timestamp() AS read_at
            FROM claimed, locked
        ), written AS (
            UPDATE accounts SET balance = leg.balance + delta, last_entry = leg.id
            FROM leg WHERE accounts.id = account_id RETURNING leg.*
        )
        INSERT INTO entries (id, transfer_id, account_id, delta, before, after, previous_entry, read_at)
        SELECT id, transfer_id, account_id, delta, balance, balance + delta, last_entry, read_at FROM written
        """,
    )

    def apply_at_once(self, transaction: Transaction, parameters: Mapping[str, object], think: Think) -> bool:
        """Run the one statement; nothing is read before it that could be thought about."""
        think()
        return transaction.execute_alone(self.AT_ONCE, parameters).rowcount > 0
