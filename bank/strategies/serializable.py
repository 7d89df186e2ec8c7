"""Let Postgres find out: SERIALIZABLE, and try again."""

from bank.strategies.base import Claim, Strategy


class Serializable(Strategy):
    """The naive transfer under ``ISOLATION LEVEL SERIALIZABLE``; the teller runs it again after a 40001.

    Claims everywhere: Postgres aborts one of two transactions that could not have run one after the other (manual,
    sections 13.2.3 and 13.5: the application must be ready to retry the whole transaction). Where many want the same
    row, most attempts are thrown away.
    """

    name = "serializable"
    summary = "SERIALIZABLE, all of it retried"
    claim = Claim.EVERYWHERE
    isolation = "SERIALIZABLE"
