"""Read, change, write back: what an ORM makes of `balance -= amount`, and what keeps two of them apart."""

import os
import threading

from sqlmodel import Field, Session, SQLModel, create_engine, select

engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1))
lock = threading.Lock()


class Account(SQLModel, table=True):
    id: int = Field(primary_key=True)
    name: str
    balance: int


def transfer_money(from_id: int, to_id: int, amount: int) -> None:
    """The talk's own: both read 100, and both write 90."""
    with Session(engine) as session:
        from_user = session.exec(select(Account).where(Account.id == from_id)).one()
        to_user = session.exec(select(Account).where(Account.id == to_id)).one()
        from_user.balance -= amount
        to_user.balance += amount
        session.add(from_user)
        session.add(to_user)
        session.commit()


def transfer_with_lock(from_id: int, to_id: int, amount: int) -> None:
    """A lock of this process: another process has a lock of its own."""
    with lock:
        transfer_money(from_id, to_id, amount)


def transfer_for_update(from_id: int, to_id: int, amount: int) -> None:
    """The rows are locked as they are read, in the order of their ids."""
    with Session(engine) as session:
        rows = select(Account).where(Account.id.in_([from_id, to_id])).order_by(Account.id).with_for_update()
        accounts = {account.id: account for account in session.exec(rows)}
        accounts[from_id].balance -= amount
        accounts[to_id].balance += amount
        session.commit()
