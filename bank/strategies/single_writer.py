"""No lock: one worker, and no other beside it."""

from bank.strategies.base import Claim, Strategy


class SingleWriter(Strategy):
    """The naive transfer, but all of them go to one instance, which applies them one at a time.

    Claims everywhere, because there is no elsewhere: nothing runs at the same time. It is what partitioned queues and
    actors do, with one partition. The protection is in the routing, not in this file: the lab gives a cell's queue to
    the first of its instances only, with one thread, and the queue that every instance consumes refuses such a job. A
    writer that goes past the routing meets no lock. More instances make it no faster, and when that one is down all
    wait: electing another safely needs the very lock that this avoids.
    """

    name = "single-writer"
    summary = "no lock: one instance, one at a time"
    claim = Claim.EVERYWHERE
    routed_to_one = True
