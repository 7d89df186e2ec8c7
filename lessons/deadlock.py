"""A Lock does not know who holds it: a thread that takes it twice waits for itself, and all others wait for it.

No error is raised and no CPU is used, so no sign tells you; look at where the threads stand.
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


class MendedAccount(BankAccount):
    def _update_balance(self, amount: int) -> None:  # for callers that have the lock
        self.balance += amount
        self.stage.say(f"has made it {self.balance}")


def taken_twice(stage: Stage) -> Outcome:
    """deposit() takes the lock and calls _update_balance(), which takes it again. Three threads deposit 100."""
    return three_deposits(stage, BankAccount(stage, stage.lock()))


def taken_once(stage: Stage) -> Outcome:
    """Only deposit() takes it; _update_balance() is for those who have it."""
    return three_deposits(stage, MendedAccount(stage, stage.lock()))


def three_deposits(stage: Stage, account: BankAccount) -> Outcome:
    deposit = account.deposit
    try:
        stage.play(A=lambda: deposit(100), B=lambda: deposit(100), C=lambda: deposit(100))
    except Deadlock as found:
        for waiting in found.waiting:
            inner = waiting.frames[-1]
            stage.say(
                f"{waiting.who} waits for the {waiting.what} in {inner.name}(), line {inner.lineno}: {inner.line}"
            )
            for outer in waiting.frames[:-1]:
                if outer.name == "deposit":
                    stage.say(f"and has it since {outer.name}(), whose line {outer.lineno} waits: {outer.line}")
    return Outcome(account.balance != 300, f"the balance is {account.balance} of 300")


LESSON = Lesson(
    name="deadlock",
    idea=__doc__,
    unsafe=(taken_twice,),
    safe=(taken_once,),
    question="Two threads take two locks in opposite order: what could notice that, and how?",
    in_earnest="bank/strategies/row_lock_unordered.py: Postgres looks for circles and ends one of those in it. "
    "In a hung process of your own, faulthandler.dump_traceback_later() shows these frames.",
)

if __name__ == "__main__":
    perform(LESSON)
