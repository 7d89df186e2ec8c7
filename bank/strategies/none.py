"""No protection at all: the control of every experiment."""

from bank.strategies.base import Claim, Strategy


class NoLock(Strategy):
    """Read, compute, write, as in the talk's first bank.

    Claims nothing. Two transfers that read the same balance both write their own sum, and the later one takes the
    earlier off the books. A cell of another strategy proves something only where this one loses money.
    """

    name = "none"
    summary = "read, compute, write: the control"
    claim = Claim.NOTHING
