"""What a message says: which orders to apply, with which strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from bank.errors import Rejected, one_line
from bank.orders import ACCOUNT_MAX, AMOUNT_MAX, Order

TASK = "bankrun.apply"
NOOP_TASK = "bankrun.noop"
"""Does nothing: what is left when it is measured is the price of a message."""
QUEUE = "transfers"
"""The queue that every instance consumes: for jobs that scripts trigger."""
ORDERS_MAX = 10_000
THINK_MS_MAX = 60_000.0
REASON_MAX = 500

AccountId = Annotated[int, Strict(), Field(gt=0, le=ACCOUNT_MAX)]
Amount = Annotated[int, Strict(), Field(gt=0, le=AMOUNT_MAX)]


class Job(BaseModel):
    """A chunk of orders. ``run`` is what their cost is booked under; ``threads`` bounds who works at a time.

    ``again`` says that they were delivered before, and that it did not end well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")]
    strategy: Annotated[str, Field(min_length=1, max_length=200)]
    orders: Annotated[list[tuple[UUID, AccountId, AccountId, Amount]], Field(min_length=1, max_length=ORDERS_MAX)]
    think_ms: Annotated[float, Strict(), Field(ge=0, le=THINK_MS_MAX)] = 0.0
    threads: Annotated[int, Strict(), Field(gt=0)] | None = None
    again: Annotated[bool, Strict()] = False

    @classmethod
    def parse(cls, message: object) -> Job:
        """Check a message that came from the broker. Raises Rejected, with the first thing that is wrong with it."""
        try:
            return cls.model_validate(message)
        except ValidationError as error:
            raise Rejected(f"not a job: {first_fault(error)}") from None

    def parsed_orders(self) -> list[Order]:
        """Return the orders. Raises Rejected if one of them cannot be an order."""
        try:
            return [Order(*order) for order in self.orders]
        except ValueError as error:
            raise Rejected(str(error)) from None


def first_fault(error: ValidationError) -> str:
    """Return the first thing that is wrong, in one line. What was found is not told: it may be a secret, or endless."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = "it should be an object" if first["type"] == "model_type" else first["msg"]
    return one_line(f"{where or 'message'}: {what}", REASON_MAX)


def message(
    orders: Sequence[Order],
    *,
    run: str,
    strategy: str,
    think_ms: float = 0.0,
    threads: int | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Return the message for a chunk of orders: what ``Job.parse`` reads."""
    return {
        "run": run,
        "strategy": strategy,
        "orders": [(str(order.id), order.debit, order.credit, order.amount) for order in orders],
        "think_ms": think_ms,
        "threads": threads,
        "again": again,
    }
