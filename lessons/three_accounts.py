"""The talk's bank: John, Jane and Alice in a table of Postgres, and the transfer that every bank lesson uses.

The table lives in bankrun's own schema for as long as the lesson runs; the accounts of `bankrun compare` are others.
Balances are whole numbers: `float_money.py` shows why.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stage import Outcome

try:
    from sqlalchemy import Engine
    from sqlalchemy.exc import DBAPIError
    from sqlmodel import Field, Session, SQLModel, col, create_engine, delete, select
except ModuleNotFoundError as missing:
    sys.exit(
        f"this lesson needs Postgres, and {missing.name} for it: run it with .venv/bin/python, or `bankrun lesson`"
    )


class Account(SQLModel, table=True):
    __tablename__ = "lesson_accounts"
    __table_args__ = {"schema": "bankrun"}

    id: int = Field(primary_key=True)
    name: str
    balance: int


NAMES = ("John", "Jane", "Alice")
Read = Callable[[Session, int, int], tuple[Account, Account]]


def read_plainly(session: Session, from_id: int, to_id: int) -> tuple[Account, Account]:
    """Read both accounts, as in the talk's first bank."""
    from_user = session.exec(select(Account).where(Account.id == from_id)).one()
    to_user = session.exec(select(Account).where(Account.id == to_id)).one()
    return from_user, to_user


def transfer_money(
    engine: Engine,
    from_id: int,
    to_id: int,
    amount: int,
    *,
    say: Callable[[str], None],
    read: Read = read_plainly,
    meet: Callable[[Session], object] = lambda session: None,
) -> None:
    """Read, compute, write. ``meet`` is called at the unlucky moment between the read and the write."""
    with Session(engine) as session:
        from_user, to_user = read(session, from_id, to_id)
        say(f"has read {from_user.name} {from_user.balance}, {to_user.name} {to_user.balance}")
        meet(session)
        from_user.balance -= amount
        to_user.balance += amount
        written = f"has written {from_user.name} {from_user.balance}, {to_user.name} {to_user.balance}"
        session.add(from_user)
        session.add(to_user)
        session.commit()
    say(written)


@dataclass(frozen=True)
class Accounts:
    """The three accounts, and what is in them."""

    engine: Engine

    def fill(self, *balances: int) -> None:
        """Begin anew, as the talk's setup_db() does."""
        with Session(self.engine) as session:
            session.exec(delete(Account))
            numbered = enumerate(zip(NAMES, balances, strict=True), start=1)
            session.add_all(Account(id=number, name=name, balance=balance) for number, (name, balance) in numbered)
            session.commit()

    def outcome(self, expected: int) -> Outcome:
        """Return who has what, and whether it adds up."""
        with Session(self.engine) as session:
            found = session.exec(select(Account).order_by(col(Account.id))).all()
        total = sum(account.balance for account in found)
        who = ", ".join(f"{account.name} {account.balance}" for account in found)
        return Outcome(total != expected, f"{who}: {total} in the bank" + (f", not {expected}" * (total != expected)))


@contextmanager
def open_accounts() -> Iterator[Accounts]:
    """Start or reach bankrun's Postgres for the block, with our table in it. Ends the process if that is impossible."""
    from bankrun import BankError, BankrunError, CannotStart, running_bank  # takes a second: not in a second instance

    try:
        with running_bank() as database, table_in(database.url) as accounts:
            yield accounts
    except CannotStart as problem:
        print(f"bankrun: {problem}", file=sys.stderr)
        sys.exit(2)
    except (BankError, BankrunError, DBAPIError) as problem:
        sys.exit(f"bankrun: failed while running: {str(problem).splitlines()[0]}")


@contextmanager
def table_in(url: str) -> Iterator[Accounts]:
    """Make the table, and drop it after the block."""
    engine = create_engine(url)
    table = [SQLModel.metadata.tables["bankrun.lesson_accounts"]]
    SQLModel.metadata.drop_all(engine, table)
    SQLModel.metadata.create_all(engine, table)
    try:
        yield Accounts(engine)
    finally:
        SQLModel.metadata.drop_all(engine, table)
        engine.dispose()
