"""How a few transfers meet: who pays whom, from which accounts, and what an honest bank would do one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from uuid import UUID

from bank.orders import Order
from bank.strategies import STRATEGIES
from bank.strategies.base import Strategy, takes_chunks
from bankrun.results.models.proof import SUMMARIES

A, B, C, D = ACCOUNTS = (101, 102, 103, 104)
OPENING = 100
INSTANCES = ("same", "two")
PARTICIPANTS = "ABC"

Leg = tuple[int, int, int]
"""Debit account, credit account, amount."""


@dataclass(frozen=True, slots=True)
class Case:
    """A few transfers that are about to meet.

    The same number twice is the same transfer, delivered twice. ``then`` is what each moves besides, in the same
    message: for strategies that apply a whole one in one transaction. ``of_others`` are asked only of strategies that
    are not ours.
    """

    name: str
    legs: tuple[Leg, ...]
    numbers: tuple[int, ...]
    leases_expire: bool = False
    then: tuple[Leg, ...] = ()
    of_others: bool = False

    @property
    def summary(self) -> str:
        """How they meet, in words."""
        return SUMMARIES[self.name]

    def messages(self) -> dict[str, tuple[Order, ...]]:
        """Return what is delivered, by the name of the participant that applies it."""
        first = [Order(UUID(int=number), *leg) for number, leg in zip(self.numbers, self.legs, strict=True)]
        second = [Order(UUID(int=number), *leg) for number, leg in enumerate(self.then, start=len(self.legs) + 1)]
        return {
            name: (order, *second[position : position + 1])
            for position, (name, order) in enumerate(zip(PARTICIPANTS, first, strict=False))
        }

    def orders(self) -> list[Order]:
        """Return every order that is accepted, once."""
        return list({order.id: order for message in self.messages().values() for order in message}.values())

    def lawful_outcomes(self) -> set[frozenset[UUID]]:
        """Return which transfers a bank applies that takes them one by one: one set for each order of the messages."""
        return {_apply_one_by_one(order) for order in permutations(self.messages().values())}


def _apply_one_by_one(messages: Sequence[Sequence[Order]]) -> frozenset[UUID]:
    balances = dict.fromkeys(ACCOUNTS, OPENING)
    applied: set[UUID] = set()
    for order in (order for message in messages for order in message):
        if order.id not in applied and balances[order.debit] >= order.amount:
            balances[order.debit] -= order.amount
            balances[order.credit] += order.amount
            applied.add(order.id)
    return frozenset(applied)


def applies(strategy: type[Strategy], case: Case) -> bool:
    """Return whether a case says anything about a strategy: only a lease can run out, only some take two at once.

    Ours remember nothing between transfers, and treat payer and payee alike (`make soundness` looks); those of others
    may differ.
    """
    if case.of_others and strategy in STRATEGIES.values():
        return False
    if case.then and not takes_chunks(strategy):
        return False
    return strategy.survives_pause is not None or not case.leases_expire


CASES = {
    case.name: case
    for case in (
        Case("same-pair", ((A, B, 10), (A, B, 5)), (1, 2)),
        Case("one-common", ((A, B, 10), (B, C, 5)), (1, 2)),
        Case("opposite", ((A, B, 10), (B, A, 5)), (1, 2)),
        Case("duplicate", ((A, B, 10), (A, B, 10)), (1, 1)),
        Case("drain", ((A, B, 60), (A, C, 60)), (1, 2)),
        Case("drain-higher", ((C, A, 60), (C, B, 60)), (1, 2)),
        Case("one-payee", ((A, B, 10), (C, B, 10)), (1, 2), of_others=True),
        Case("apart", ((A, B, 10), (C, D, 5)), (1, 2), of_others=True),
        Case("paused-holder", ((A, B, 10), (A, B, 5)), (1, 2), leases_expire=True),
    )
}
THREE = Case("three", ((A, B, 10), (A, B, 5), (A, B, 3)), (1, 2, 3))
CHUNKS = Case("chunks", ((A, B, 60), (B, A, 5)), (1, 2), then=((B, C, 5), (A, C, 60)))
ALL_CASES = {**CASES, CHUNKS.name: CHUNKS}
