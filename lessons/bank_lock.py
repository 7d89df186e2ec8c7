"""A `threading.Lock` around the whole transfer, COMMIT included, lets only one thread at a time read and write.

It repairs this process, and only this one: the lock is a variable in its memory.
"""

from contextlib import AbstractContextManager, nullcontext

from stage import Outcome, Stage
from telling import Lesson, perform
from three_accounts import Accounts, open_accounts, transfer_money


def without(stage: Stage, accounts: Accounts) -> Outcome:
    """The talk's first two transfers, John to Jane (A) and Jane to Alice (B), without a lock."""
    return transfers(stage, accounts, nullcontext())


def with_lock(stage: Stage, accounts: Accounts) -> Outcome:
    """The same with one lock for all accounts; both try the same unlucky steps."""
    return transfers(stage, accounts, stage.lock())


def transfers(stage: Stage, accounts: Accounts, account_lock: AbstractContextManager[None]) -> Outcome:
    accounts.fill(100, 100, 100)

    def transfer(from_id: int, to_id: int) -> None:
        with account_lock:
            transfer_money(accounts.engine, from_id, to_id, 10, say=stage.say)

    stage.play(A=lambda: transfer(1, 2), B=lambda: transfer(2, 3))
    return accounts.outcome(expected=300)


LESSON = Lesson(
    name="bank-lock",
    idea=__doc__,
    unsafe=(without,),
    safe=(with_lock,),
    props=open_accounts,
    question="What happens if the lock is given back just before session.commit()?",
    in_earnest="bank/strategies/thread_lock.py; the question is bank/strategies/thread_lock_early.py. "
    "`bankrun compare --strategy thread-lock --topology 1x8` holds.",
)

if __name__ == "__main__":
    perform(LESSON)
