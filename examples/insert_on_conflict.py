"""Locks as rows: INSERT … ON CONFLICT is atomic, people say, so the transfer that inserts the row has the lock.

    bankrun prove --strategy insert_on_conflict:DoNothing                  two transfers: nothing is found
    bankrun prove --strategy insert_on_conflict:DoNothing --transfers 3    three: it is broken
    bankrun prove --strategy insert_on_conflict:DoUpdate --transfers 3

People reach for it because it also locks what does not exist yet, as no SELECT … FOR UPDATE can.
"""

from __future__ import annotations

from bankrun import Attempt, Claim, Snapshot, Strategy, Transaction


class DoUpdate(Strategy):
    """One row for each account, inserted or updated before the read, in id order; COMMIT frees it.

    Claims everywhere, and holds: ``DO UPDATE`` locks the row that it finds, also one that another is just
    inserting (manual, INSERT, "ON CONFLICT Clause"). The price is a dead row version for each lock taken.
    """

    summary = "ON CONFLICT DO UPDATE, in id order"
    claim = Claim.EVERYWHERE

    LOCK = """
        INSERT INTO fences (name, fence) VALUES ('account ' || %(account)s::int, 1)
        ON CONFLICT (name) DO UPDATE SET fence = fences.fence + 1
    """

    def read(self, transaction: Transaction, attempt: Attempt) -> tuple[Snapshot, Snapshot]:
        """Take both rows, then read."""
        for account in attempt.order.accounts:
            transaction.execute(self.LOCK, {"account": account})
        return super().read(transaction, attempt)


class DoNothing(DoUpdate):
    """The same with DO NOTHING, which looks the more careful of the two.

    Claims everywhere, and is refuted. It holds the *first* time: the second transfer waits until the first has
    committed its new row. From then on the row is there, DO NOTHING does nothing to it, and that includes locking it.
    So two transfers in an empty bank never go wrong, and the proof of two finds nothing. It takes a third, or load.
    """

    summary = "ON CONFLICT DO NOTHING, in id order"

    LOCK = """
        INSERT INTO fences (name, fence) VALUES ('account ' || %(account)s::int, 1) ON CONFLICT (name) DO NOTHING
    """
