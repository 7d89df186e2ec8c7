"""Two instances of the same program each have a lock of their own: the same line of code, and two variables.

Each holds its lock, and both are in the critical section; nothing is wrong in either process.
"""

import threading
from functools import partial

from sqlalchemy import Engine
from stage import SECONDS_MAX, Outcome, Stage
from telling import Lesson, perform
from three_accounts import transfer_money
from two_instances import Meeting, Order, Say, TwoInstances, open_instances

account_lock = threading.Lock()  # every process that imports this file makes one
JOHN_TO_JANE, JANE_TO_ALICE = Order("A", 1, 2), Order("B", 2, 3)


def transfer(engine: Engine, order: Order, meeting: Meeting, say: Say) -> None:
    if not account_lock.acquire(blocking=False):
        say("waits for its instance's lock")
        meeting.arrive(order.who)
        account_lock.acquire(timeout=SECONDS_MAX)
    say("has its instance's lock")
    try:
        transfer_money(engine, order.from_id, order.to_id, 10, say=say, meet=lambda _: meeting.wait(order.who))
    finally:
        account_lock.release()


def two_instances(stage: Stage, both: TwoInstances) -> Outcome:
    """One transfer in each of two instances: John to Jane in the first (A), Jane to Alice in the second (B)."""
    both.accounts.fill(100, 100, 100)
    both.make(stage, [JOHN_TO_JANE], [JANE_TO_ALICE])
    return both.accounts.outcome(expected=300)


def one_instance(stage: Stage, both: TwoInstances) -> Outcome:
    """Both transfers in two threads of the first instance."""
    both.accounts.fill(100, 100, 100)
    both.make(stage, [JOHN_TO_JANE, JANE_TO_ALICE])
    return both.accounts.outcome(expected=300)


LESSON = Lesson(
    name="bank-instances",
    idea=__doc__,
    unsafe=(two_instances,),
    safe=(one_instance,),
    props=partial(open_instances, transfer),
    question="Your tests run one process. In which environment would they have found this?",
    in_earnest="bank/strategies/thread_lock.py: `bankrun compare --strategy thread-lock --topology 1x8 --topology 3x8` "
    "runs it in one worker process and in three. docs/try.md runs every interleaving of it, in one process and in two.",
)

if __name__ == "__main__":
    perform(LESSON)
