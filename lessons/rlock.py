"""An RLock knows its owner and counts: the thread that holds it may take it again, and the last release frees it.

So a function that locks may call another that locks, or itself; other threads wait as before.
"""

from stage import Deadlock, Outcome, Stage, ToldLock
from telling import Lesson, perform


class BankAccount:
    def __init__(self, stage: Stage, lock: ToldLock) -> None:
        self.stage, self.lock = stage, lock
        self.balance = 0

    def deposit(self, amount: int) -> None:
        with self.lock:
            self._update_balance(amount)

    def _update_balance(self, amount: int) -> None:
        with self.lock:
            self.balance += amount
            self.stage.say(f"has made it {self.balance}")


def with_lock(stage: Stage) -> Outcome:
    """With a Lock, the second acquire is the last thing that happens."""
    return three_deposits(stage, stage.lock())


def with_rlock(stage: Stage) -> Outcome:
    """With an RLock, three threads deposit 100 each."""
    return three_deposits(stage, stage.rlock())


def three_deposits(stage: Stage, lock: ToldLock) -> Outcome:
    account = BankAccount(stage, lock)
    deposit = account.deposit
    try:
        stage.play(A=lambda: deposit(100), B=lambda: deposit(100), C=lambda: deposit(100))
    except Deadlock as found:
        stage.say(str(found))
    return Outcome(account.balance != 300, f"the balance is {account.balance} of 300")


LESSON = Lesson(
    name="rlock",
    idea=__doc__,
    unsafe=(with_lock,),
    safe=(with_rlock,),
    question="When you hold an RLock, is the data under it always consistent? Which function may have called you?",
    in_earnest="bank/strategies/file_lock.py: a FileLock is re-entrant too, and a shared one would let all threads in; "
    "each transfer opens its own.",
)

if __name__ == "__main__":
    perform(LESSON)
