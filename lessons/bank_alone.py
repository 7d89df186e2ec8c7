"""One thread makes the talk's four transfers, one after the other: none reads while another writes.

The total is right, and the transfers wait for each other: while one waits for the disk, the others stand in line.
"""

from stage import Outcome, Stage
from telling import Lesson, perform
from three_accounts import Accounts, open_accounts, transfer_money

TO_TRANSFER = ((1, 2, 10), (2, 3, 10), (1, 3, 10), (3, 1, 10))


def one_after_another(stage: Stage, accounts: Accounts) -> Outcome:
    """Four transfers of 10 in one thread: John to Jane, Jane to Alice, John to Alice, Alice to John."""
    accounts.fill(100, 100, 100)

    def all_four() -> None:
        for from_id, to_id, amount in TO_TRANSFER:
            transfer_money(accounts.engine, from_id, to_id, amount, say=stage.say)

    stage.play(A=all_four)
    return accounts.outcome(expected=300)


LESSON = Lesson(
    name="bank",
    idea=__doc__,
    safe=(one_after_another,),
    props=open_accounts,
    question="Which of the four transfers could run at the same time without touching each other's accounts?",
    in_earnest="bank/strategies/single_writer.py sends all transfers of a bank to one thread: "
    "`bankrun compare --strategy single-writer`.",
)

if __name__ == "__main__":
    perform(LESSON)
