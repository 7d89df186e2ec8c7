"""Let Postgres find out, one level below SERIALIZABLE."""

from bank.strategies.base import Claim, Strategy


class RepeatableRead(Strategy):
    """The naive transfer under ``ISOLATION LEVEL REPEATABLE READ``; the teller runs it again after a 40001.

    Claims everywhere. An UPDATE of a row that was changed after the snapshot was taken fails: the first updater
    wins (manual, section 13.2.2). That is enough here because a transfer writes every row that it read. A rule over
    rows that are only read, as "these two accounts together may not fall below zero", would slip through (write skew):
    ``serializable`` is for those.
    """

    name = "repeatable-read"
    summary = "REPEATABLE READ, all of it retried"
    claim = Claim.EVERYWHERE
    isolation = "REPEATABLE READ"
