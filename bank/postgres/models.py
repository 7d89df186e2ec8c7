"""The tables. All of them live in the Postgres schema ``bankrun``, which belongs to bankrun alone.

There are no foreign keys from entries to accounts, on purpose: Postgres checks one by taking ``FOR KEY SHARE`` on the
referenced row (manual, section 13.3.2), and a lock that no strategy asked for would be part of every measurement. The
audit checks these references instead.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    UniqueConstraint,
    func,
)
from sqlmodel import Field, SQLModel

SCHEMA = "bankrun"
PENDING, APPLIED, REFUSED, FAILED = STATUSES = ("pending", "applied", "refused", "failed")

metadata = MetaData(schema=SCHEMA)

entry_ids = Sequence("entry_ids", metadata=metadata, data_type=BigInteger)
"""Names entries. Drawn with the claim, because an account's row must name its last entry before that is written."""

entry_seq = Sequence("entry_seq", metadata=metadata, data_type=BigInteger)
"""Orders entries. Drawn when an entry is inserted, when its account's row is already locked by having been written:
the next writer of that row draws later, so within one account ``seq`` is the physical order of the writes."""

fence_tokens = Sequence("fence_tokens", metadata=metadata, data_type=BigInteger)
"""Numbers the holders of a lease, so that a later one is told from an earlier one."""


class Bank(SQLModel):
    """The base of all tables: they share one metadata, in a schema of their own."""

    metadata = metadata


class Account(Bank, table=True):
    """A balance in integer minor units, and the entry that made it so."""

    __tablename__ = "accounts"
    # Room on the page for new row versions: an update then touches no index (manual, section 66.7, "HOT").
    __table_args__ = ({"postgresql_with": {"fillfactor": 40}},)

    id: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    opening: int = Field(sa_type=BigInteger)
    balance: int = Field(sa_type=BigInteger)
    last_entry: int | None = Field(None, sa_type=BigInteger)
    version: int = Field(0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})


class Run(Bank, table=True):
    """What was accepted together, and where its messages go: all that is needed to publish one of them again.

    The last five columns are the reconciler's notes: when to look again, what it saw, and how often it had to publish.
    """

    __tablename__ = "runs"

    id: int | None = Field(None, sa_column=Column(Integer, Identity(), primary_key=True))
    name: str = Field(unique=True)
    strategy: str
    queue: str
    chunk: int
    think_ms: float
    threads: int | None = None
    look_at: datetime | None = Field(
        None, sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
    pending: int | None = None
    idle_looks: int = Field(0, sa_column_kwargs={"server_default": "0"})
    republished: int = Field(0, sa_column_kwargs={"server_default": "0"})
    closed: bool = Field(False, sa_column_kwargs={"server_default": "false"})


class Transfer(Bank, table=True):
    """An accepted order. Its ``id`` is its idempotency key; ``status`` is the only word on whether it took effect.

    ``redeliveries`` counts the deliveries after the first that never came to an end: the instance died, or the strategy
    raised what is no outcome.

    Its status carries no index: a changed index entry would end HOT updates, and under SERIALIZABLE two claims on one
    index page would conflict although they share nothing (manual, section 13.2.3).
    """

    __tablename__ = "transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount_is_positive"),
        CheckConstraint("debit <> credit", name="accounts_differ"),
        CheckConstraint(f"status IN {STATUSES}", name="status_is_known"),
        {"postgresql_with": {"fillfactor": 50}},
    )

    id: UUID = Field(primary_key=True)
    debit: int
    credit: int
    amount: int = Field(sa_type=BigInteger)
    strategy: str
    run: int | None = None
    status: str = Field(PENDING, sa_column_kwargs={"server_default": PENDING})
    reason: str | None = None
    instance: str | None = None
    thread: str | None = None
    attempts: int = Field(0, sa_column_kwargs={"server_default": "0"})
    redeliveries: int = Field(0, sa_column_kwargs={"server_default": "0"})
    accepted_at: datetime | None = Field(
        None, sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": func.now()}
    )
    decided_at: datetime | None = Field(None, sa_type=DateTime(timezone=True))


class Entry(Bank, table=True):
    """One leg of an applied transfer, written in the transaction that changed the balance.

    ``previous_entry`` is the account's ``last_entry`` in the very read that computed ``after``. Where it is not the
    entry physically before this one (by ``seq``), this entry wrote over something that it had not read.
    """

    __tablename__ = "entries"
    __table_args__ = (
        UniqueConstraint("transfer_id", "account_id", name="one_entry_per_leg"),
        Index("entries_by_account", "account_id", "seq"),
    )

    id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    transfer_id: UUID
    account_id: int
    delta: int = Field(sa_type=BigInteger)
    before: int = Field(sa_type=BigInteger)
    after: int = Field(sa_type=BigInteger)
    previous_entry: int | None = Field(None, sa_type=BigInteger)
    seq: int = Field(sa_column=Column(BigInteger, entry_seq, server_default=entry_seq.next_value(), nullable=False))
    read_at: datetime = Field(sa_type=DateTime(timezone=True))
    written_at: datetime | None = Field(
        None, sa_type=DateTime(timezone=True), sa_column_kwargs={"server_default": func.clock_timestamp()}
    )


class Fence(Bank, table=True):
    """The highest token that a holder of a lease has shown, for each strategy that uses tokens."""

    __tablename__ = "fences"

    name: str = Field(primary_key=True)
    fence: int = Field(sa_type=BigInteger)
