"""Which transfers a run consists of: a pure function of its parameters and its seed."""

from __future__ import annotations

import itertools
import random
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_type_hints
from uuid import UUID

from bank.errors import CannotStart
from bank.orders import AMOUNT_MAX, Order
from workers.broker.messages import ORDERS_MAX, THINK_MS_MAX

Skew = Literal["uniform", "zipf"]
ACCOUNTS_MAX = 1_000_000
TRANSFERS_MAX = 10_000_000
BALANCE_MAX = 2**62
VERSION_8 = 8 << 76 | 2 << 62
"""A UUID whose layout is its maker's own (RFC 9562, section 5.8): here a number of 32 bits, and 90 that are random."""
RANDOM_BITS = ~(15 << 76 | 3 << 62) & (2**96 - 1)


@dataclass(frozen=True, slots=True)
class Option:
    """What there is to know about one parameter of a workload besides its name, type and default.

    Command line, saved command and page ask here; ``docs/results.md`` has the same words. ``why`` says what is wrong
    with a value that is not between ``least`` and ``most``.
    """

    help: str
    least: float | None = None
    most: float | None = None
    why: str = ""
    on_page: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A bank, and the transfers that it gets. Amounts in minor units; ``opening`` is each account's.

    ``think_ms`` is the time between the read and the write of a transfer; ``chunk`` the orders in one message. Raises
    CannotStart for what makes no workload.
    """

    transfers: Annotated[
        int,
        Option("Transfers in each cell.", 1, TRANSFERS_MAX, "there is nothing to compare without one", on_page=True),
    ] = 2_000
    accounts: Annotated[
        int,
        Option("Accounts in the bank: fewer, more contention.", 2, ACCOUNTS_MAX, "a transfer needs two", on_page=True),
    ] = 8
    opening: Annotated[
        int, Option("Minor units in each account at opening.", 0, AMOUNT_MAX, "balances are whole minor units")
    ] = 100_000
    skew: Annotated[Skew, Option("How often each account is wanted.")] = "uniform"
    amount_max: Annotated[
        int,
        Option("The largest transfer, in minor units.", 1, AMOUNT_MAX, "amounts are whole minor units above zero"),
    ] = 100
    think_ms: Annotated[
        float, Option("Time between the read and the write.", 0, THINK_MS_MAX, "it is a time", on_page=True)
    ] = 0.0
    chunk: Annotated[int, Option("Transfers in one message.", 1, ORDERS_MAX, "a message carries at least one")] = 1
    constraint: Annotated[bool, Option("Add CHECK (balance >= 0).")] = False

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if option.least is not None and option.most is not None and not option.least <= value <= option.most:
                raise CannotStart(
                    f"{name.replace('_', '-')}={value}: it must be between {option.least} and {option.most:,};"
                    f" {option.why}"
                )
        if self.skew not in get_args(Skew):
            raise CannotStart(f"skew={self.skew!r} is not one of {', '.join(get_args(Skew))}")
        if self.accounts * self.opening + self.transfers * self.amount_max > BALANCE_MAX:
            raise CannotStart("so much money does not fit a bigint: use a smaller opening, or smaller amounts")

    def check_idle_timeout(self, idle_timeout_ms: int) -> None:
        """Raise CannotStart if Postgres ends a transaction while it thinks."""
        if self.think_ms >= idle_timeout_ms:
            raise CannotStart(
                f"think-ms={self.think_ms} is as long as Postgres lets a transaction idle: {idle_timeout_ms}"
            )

    def options(self) -> dict[str, Any]:
        """Return the value of each parameter, by its name."""
        return {name: getattr(self, name) for name in OPTIONS}

    def orders(self, seed: int, *, salt: int = 0) -> Iterator[Order]:
        """Yield the transfers. The same seed gives the same ones, ids included; with another ``salt``, under other ids.

        An id begins with the transfer's number, so ids are in order, as version 7's are by time: whatever Postgres
        keeps by id then grows at one end. Written for millions: what ``Random.choices`` does is inlined.
        """
        chooser = random.Random(seed)
        draw, accounts = chooser.random, self.accounts
        # Zipf's law with exponent 1: the n-th account is wanted 1/n as often as the first.
        weights = [1.0 if self.skew == "uniform" else 1.0 / account for account in range(1, accounts + 1)]
        cumulative = list(itertools.accumulate(weights))
        total, last = cumulative[-1], accounts - 1
        for number in range(1, self.transfers + 1):
            debit = credit = 1 + bisect(cumulative, draw() * total, 0, last)
            while credit == debit:
                credit = 1 + bisect(cumulative, draw() * total, 0, last)
            rest = (chooser.getrandbits(128) ^ salt) & RANDOM_BITS
            yield Order(UUID(int=number << 96 | VERSION_8 | rest), debit, credit, chooser.randint(1, self.amount_max))


OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Workload, include_extras=True).items()
}
"""Each parameter of a workload, in the order of `bankrun compare --help`."""
