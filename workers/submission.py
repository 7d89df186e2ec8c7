"""Accept transfers into Postgres, then tell the workers that there is work.

In this order: from the acceptance on Postgres holds the truth, and a message is only a hint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from celery import Celery

from bank.database import Database
from bank.errors import CannotStart
from bank.orders import Order
from bank.strategies import STRATEGIES
from workers.app import QUEUE, TASK
from workers.jobs import message

PUBLISH_BATCH = 500


def accept(database: Database, orders: Iterable[Order], *, strategy: str) -> None:
    """Write the orders into the bank as pending transfers, all or none of them, in one COPY."""
    database.copy(
        "COPY transfers (id, debit, credit, amount, strategy) FROM STDIN",
        ((order.id, order.debit, order.credit, order.amount, strategy) for order in orders),
    )


def check_queue(queue: str, strategy: str) -> None:
    """Raise CannotStart if a strategy's claim rests on routing, and this queue goes to every instance."""
    if queue == QUEUE and strategy in STRATEGIES and STRATEGIES[strategy].routed_to_one:
        raise CannotStart(
            f"{strategy} holds only where one instance gets all of its transfers, and every instance takes from the "
            f"queue {queue!r}: use `bankrun compare --strategy {strategy}`, or another strategy"
        )


def publish(
    app: Celery,
    orders: Sequence[Order],
    *,
    queue: str,
    run: str,
    strategy: str,
    chunk: int = 1,
    think_ms: float = 0.0,
    threads: int | None = None,
    task: str = TASK,
    progress: Callable[[int], None] = lambda published: None,
) -> None:
    """Publish accepted orders to a queue, ``chunk`` of them in a message, many messages in a round trip.

    ``progress`` is called with the number of orders published so far. Raises CannotStart as ``check_queue`` does.
    """
    check_queue(queue, strategy)
    with app.producer_or_acquire() as producer:
        for begin in range(0, len(orders), PUBLISH_BATCH * chunk):
            end = min(begin + PUBLISH_BATCH * chunk, len(orders))
            with producer.batch(max_size=PUBLISH_BATCH):
                for first in range(begin, end, chunk):
                    body = message(
                        orders[first : min(first + chunk, end)],
                        run=run,
                        strategy=strategy,
                        think_ms=think_ms,
                        threads=threads,
                    )
                    app.send_task(task, args=(body,), queue=queue, producer=producer, retry=False)
            progress(end)
