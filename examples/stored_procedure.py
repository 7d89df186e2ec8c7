"""Put it into a stored procedure, people say, then it is atomic.

It is one statement, and two of them still overwrite each other.

    bankrun prove --strategy stored_procedure:StoredProcedure --strategy stored_procedure:LockingProcedure

A function may only be made in the bank's own schema, and workers may not make anything: the lab runs ``install`` as the
owner of that schema, before the first transfer. The function runs with the rights of its caller.
"""

from __future__ import annotations

from bankrun import Attempt, Claim, InsufficientFunds, Posting, Strategy, Transaction, UnknownAccount


class StoredProcedure(Strategy):
    """Read, compute and write in one call of a PL/pgSQL function.

    Claims everywhere, as people do, and is refuted. A transaction is atomic; it is not alone. Under READ COMMITTED each
    statement *inside* the function takes a snapshot of its own (manual, "Function Volatility Categories"). Between its
    SELECT and its UPDATE another transfer can commit: a lost update, without a round trip in which to see it.
    """

    summary = "one call, no lock"
    claim = Claim.EVERYWHERE

    FUNCTION = """
        CREATE OR REPLACE FUNCTION their_move (
            debit int, credit int, amount bigint, debit_entry bigint, credit_entry bigint
        )
        RETURNS TABLE (account int, delta bigint, before bigint, previous bigint, entry bigint, read_at timestamptz)
        LANGUAGE plpgsql AS $$
        DECLARE
            first accounts;
            second accounts;
        BEGIN
            SELECT * INTO first FROM accounts WHERE id = least(debit, credit) /* lock */;
            SELECT * INTO second FROM accounts WHERE id = greatest(debit, credit) /* lock */;
            read_at := clock_timestamp();
            FOR account, delta, before, previous, entry IN
                SELECT a.id, CASE WHEN a.id = debit THEN -amount ELSE amount END, a.balance, a.last_entry,
                       CASE WHEN a.id = debit THEN debit_entry ELSE credit_entry END
                FROM (VALUES (first.id, first.balance, first.last_entry),
                             (second.id, second.balance, second.last_entry)) AS a (id, balance, last_entry)
            LOOP
                IF account = debit AND before < amount THEN
                    RETURN;
                END IF;
                RETURN NEXT;
            END LOOP;
            UPDATE accounts SET balance = first.balance + CASE WHEN first.id = debit THEN -amount ELSE amount END,
                   last_entry = CASE WHEN first.id = debit THEN debit_entry ELSE credit_entry END WHERE id = first.id;
            UPDATE accounts SET balance = second.balance + CASE WHEN second.id = debit THEN -amount ELSE amount END,
                   last_entry = CASE WHEN second.id = debit THEN debit_entry ELSE credit_entry END WHERE id = second.id;
        END $$
    """
    CALL = "SELECT * FROM their_move(%(debit)s, %(credit)s, %(amount)s, %(entry)s, %(other_entry)s)"

    @classmethod
    def install(cls, transaction: Transaction) -> None:
        """Make the function, in the schema that is first on the path: the bank's."""
        transaction.execute(cls.FUNCTION)

    def move(self, transaction: Transaction, attempt: Attempt) -> None:
        """Call it, and write the journal from what it says it read."""
        attempt.think()
        order, (debit_entry, credit_entry) = attempt.order, attempt.entry_ids
        rows = transaction.execute(
            self.CALL,
            {
                "debit": order.debit,
                "credit": order.credit,
                "amount": order.amount,
                "entry": debit_entry,
                "other_entry": credit_entry,
            },
        ).fetchall()
        if any(account is None for account, *_ in rows):
            raise UnknownAccount(f"there is no account {order.debit}, or no account {order.credit}")
        if len(rows) < 2:
            raise InsufficientFunds(f"account {order.debit} holds less than {order.amount}")
        one, other = (
            Posting(entry, account, delta, before, before + delta, previous, read_at)
            for account, delta, before, previous, entry, read_at in rows
        )
        transaction.record((one, other), order.id)


class LockingProcedure(StoredProcedure):
    """The same function with FOR UPDATE in it, in id order.

    Claims everywhere, and holds: it never was the procedure that did it.
    """

    summary = "one call, FOR UPDATE inside"
    FUNCTION = StoredProcedure.FUNCTION.replace("their_move", "their_locking_move").replace("/* lock */", "FOR UPDATE")
    CALL = StoredProcedure.CALL.replace("their_move", "their_locking_move")
