"""Two transfers that read the same balance each write their own sum, and the later one wipes out the earlier.

Of the six orders of two reads and two writes, four do that; but a thread is seldom interrupted between its own two
steps, and so tests rarely see one of them.
"""

from functools import partial

from stage import Outcome, Stage
from telling import Lesson, perform
from three_accounts import Accounts, open_accounts, transfer_money


def walk_through(stage: Stage, accounts: Accounts) -> Outcome:
    """Jane has 30; John (A) and Alice (B) send her 100 each. Both read before one writes."""
    accounts.fill(100, 30, 100)
    transfer = partial(transfer_money, accounts.engine, say=stage.say)
    stage.play("ABAB", A=lambda: transfer(1, 2, 100), B=lambda: transfer(3, 2, 100))
    return accounts.outcome(expected=230)


def four_at_once(stage: Stage, accounts: Accounts) -> Outcome:
    """The talk's four in a pool: John to Jane (A), Jane to Alice (B), John to Alice (C), Alice to John (D)."""
    return in_a_pool(stage, accounts, order="ABABCCDD")


def in_luck(stage: Stage, accounts: Accounts) -> Outcome:
    """The same pool, the same code, in an order in which each writes before the next reads."""
    return in_a_pool(stage, accounts, order="AABBCCDD")


def in_a_pool(stage: Stage, accounts: Accounts, order: str) -> Outcome:
    accounts.fill(100, 100, 100)
    transfer = partial(transfer_money, accounts.engine, say=stage.say)
    stage.play(  # a ThreadPoolExecutor with a thread for each
        order,  # without a stage it is the operating system's choice
        A=lambda: transfer(1, 2, 10),
        B=lambda: transfer(2, 3, 10),
        C=lambda: transfer(1, 3, 10),
        D=lambda: transfer(3, 1, 10),
    )
    return accounts.outcome(expected=300)


LESSON = Lesson(
    name="bank-race",
    idea=__doc__,
    unsafe=(walk_through, four_at_once),
    safe=(in_luck,),
    props=open_accounts,
    question="In the second case the bank lost 10. Who lost it: is Jane's balance wrong, or Alice's?",
    in_earnest="bank/strategies/none.py is this transfer; `bankrun prove --strategy none` runs all orders of two of "
    "them, and `bankrun replay none/two/same-pair/AAAAABBABBBB` tells one. docs/try.md puts the function on trial.",
)

if __name__ == "__main__":
    perform(LESSON)
