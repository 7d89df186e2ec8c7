"""Where each strategy's lock lives: what the picture draws, and what it says under it. The one place that knows."""

from __future__ import annotations

from enum import StrEnum

from bank.strategies import STRATEGIES, Claim, Strategy


class Place(StrEnum):
    """Where what keeps others out lives."""

    NOWHERE = "nowhere"
    PROCESS = "process"
    HOST = "host"
    REDIS = "redis"
    ROW = "row"
    DATABASE = "database"
    CHECK = "check"
    QUEUE = "queue"


PLACES = {
    "none": Place.NOWHERE,
    "thread-lock-early": Place.PROCESS,
    "row-lock": Place.ROW,
    "row-lock-orm": Place.ROW,
    "row-lock-unordered": Place.ROW,
    "row-lock-nowait": Place.ROW,
    "no-key-lock": Place.ROW,
    "single-statement": Place.ROW,
    "batch": Place.ROW,
    "share-lock": Place.ROW,
    "atomic-update": Place.ROW,
    "check-then-debit": Place.ROW,
    "version-check": Place.CHECK,
    "repeatable-read": Place.CHECK,
    "serializable": Place.CHECK,
    "retry-without-reread": Place.CHECK,
    "advisory-lock": Place.DATABASE,
    "advisory-lock-early": Place.DATABASE,
    "table-lock": Place.DATABASE,
    "redis-lock": Place.REDIS,
    "redis-lock-fenced": Place.REDIS,
    "redis-lock-fenced-late": Place.REDIS,
}
"""Those of which the claim does not say it."""
FLAWS = {
    "thread-lock-early": "It is given back before COMMIT.",
    "advisory-lock-early": "It is given back before COMMIT.",
    "redis-lock-fenced-late": "The fence is checked when a balance is written, and not when it is read.",
    "check-then-debit": "The balance is checked before the row is locked.",
    "retry-without-reread": "After a conflict only the write is done again.",
}
OF_CLAIM = {
    Claim.NOTHING: Place.NOWHERE,
    Claim.PROCESS: Place.PROCESS,
    Claim.HOST: Place.HOST,
    Claim.EVERYWHERE: Place.DATABASE,
}
HAS_GUARD = (Place.PROCESS, Place.HOST, Place.REDIS)
"""There a thread waits before its transaction begins."""


def place_of(strategy: type[Strategy]) -> Place:
    """Return where a strategy's lock lives. Of one from outside only its claim is known."""
    if strategy.routed_to_one:
        return Place.QUEUE
    return PLACES.get(strategy.name) or OF_CLAIM[strategy.claim]


def describe(strategy: type[Strategy], instances: int) -> str:
    """Return, in one or two sentences, where the lock is on so many instances, and what that means there."""
    place = place_of(strategy)
    several = instances > 1
    sentence = {
        Place.NOWHERE: "No lock. Threads read the same balance, and the last to write wins.",
        Place.PROCESS: f"{_count(instances)} workers, {_count(instances).lower()} locks: two threads can each hold one."
        if several
        else "One lock inside the one worker: one thread at a time.",
        Place.HOST: "One lock file on this host, for all of its workers.",
        Place.REDIS: "One lock in Redis, for all workers, with a time to live.",
        Place.ROW: "The lock is on the account's row, where all workers meet.",
        Place.DATABASE: "The lock is in Postgres, where all workers meet.",
        Place.CHECK: "No one waits: Postgres notices a conflict, and the transfer begins again.",
        Place.QUEUE: "No lock: all transfers go to one thread.",
    }[place]
    if strategy not in STRATEGIES.values():
        return _describe_own(strategy, instances)
    flaw = FLAWS.get(strategy.name)
    return f"{sentence} {flaw}" if flaw else sentence


def _describe_own(strategy: type[Strategy], instances: int) -> str:
    """Return what is known of a strategy from outside: what it claims."""
    if strategy.routed_to_one:
        return "Your own: all transfers go to one thread."
    each = f": {_count(instances).lower()} workers, {_count(instances).lower()} locks" if instances > 1 else ""
    return {
        Claim.NOTHING: "Your own, and it claims nothing.",
        Claim.PROCESS: f"Your own. By its claim the lock is inside each worker{each}.",
        Claim.HOST: "Your own. By its claim the lock is on this host, for all of its workers.",
        Claim.EVERYWHERE: "Your own. By its claim the lock is where all workers meet.",
    }[strategy.claim]


def _count(number: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    return words[number] if number < len(words) else str(number)
