"""A row lock lives where the balances live, in Postgres: every instance that locks the row before it reads waits there.

It costs one call, with_for_update(), and the second transfer reads what the first one committed.
"""

from functools import partial

from sqlalchemy import Engine, text
from sqlmodel import Session, col, select
from stage import Outcome, Stage
from telling import Lesson, perform
from three_accounts import Account, read_plainly, transfer_money
from two_instances import Meeting, Order, Say, TwoInstances, open_instances

WHO_WAITS_FOR_ME = text(
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
)


def read_locked(session: Session, from_id: int, to_id: int) -> tuple[Account, Account]:
    """Lock both rows, in the order of their ids: in any order, two transfers could wait for each other."""
    both = select(Account).where(col(Account.id).in_((from_id, to_id))).order_by(col(Account.id)).with_for_update()
    found = {account.id: account for account in session.exec(both)}
    return found[from_id], found[to_id]


def transfer(engine: Engine, order: Order, meeting: Meeting, say: Say) -> None:
    def meet(session: Session) -> None:
        if not meeting.wait(order.who, lambda: session.execute(WHO_WAITS_FOR_ME).scalar_one() > 0):
            say("has the row; Postgres says that the other waits for it")

    read = read_locked if order.for_update else read_plainly
    transfer_money(engine, order.from_id, order.to_id, 10, say=say, read=read, meet=meet)


def plain_select(stage: Stage, both: TwoInstances) -> Outcome:
    """SELECT, in two instances: John to Jane in the first (A), Jane to Alice in the second (B)."""
    return transfers(stage, both, for_update=False)


def select_for_update(stage: Stage, both: TwoInstances) -> Outcome:
    """SELECT … FOR UPDATE, in the same two instances."""
    return transfers(stage, both, for_update=True)


def transfers(stage: Stage, both: TwoInstances, *, for_update: bool) -> Outcome:
    both.accounts.fill(100, 100, 100)
    both.make(stage, [Order("A", 1, 2, for_update)], [Order("B", 2, 3, for_update)])
    return both.accounts.outcome(expected=300)


LESSON = Lesson(
    name="bank-row-lock",
    idea=__doc__,
    unsafe=(plain_select,),
    safe=(select_for_update,),
    props=partial(open_instances, transfer),
    question="Which transfers wait for each other now, and which waited with the one lock of bank-lock?",
    in_earnest="bank/strategies/row_lock.py; `bankrun prove --strategy row-lock` runs all orders of two transfers, and "
    "`bankrun compare` puts it under load. docs/try.md puts a function with a row lock on trial.",
)

if __name__ == "__main__":
    perform(LESSON)
