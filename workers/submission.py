"""Accept transfers into Postgres, then tell the workers that there is work.

In this order: from the acceptance on Postgres holds the truth, and a message is only a hint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from celery import Celery

from bank.errors import CannotStart
from bank.orders import Order
from bank.outside import known_strategy
from bank.postgres.database import Database
from workers.app import QUEUE, TASK
from workers.broker.messages import message

PUBLISH_MESSAGES = 500
PUBLISH_ORDERS = 20_000
"""A round trip to the broker carries so many messages, or as few as hold so many orders."""
COPY_ROWS = 1_000
COPY_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
"""What COPY's text format takes for something else (manual, COPY, "Text Format")."""


@dataclass(frozen=True, slots=True)
class Submission:
    """How the transfers of a run are published: to which queue, ``chunk`` in a message, and what the messages say.

    It is kept beside the transfers, so that a reconciler that finds them forgotten can publish them in the same way.
    Raises CannotStart if the strategy's claim rests on routing, and the queue goes to every instance.
    """

    run: str
    strategy: str
    queue: str = QUEUE
    chunk: int = 1
    think_ms: float = 0.0
    threads: int | None = None

    def __post_init__(self) -> None:
        strategy = known_strategy(self.strategy)
        if self.queue == QUEUE and strategy is not None and strategy.routed_to_one:
            raise CannotStart(
                f"{self.strategy} holds only where one instance gets all of its transfers, and every instance takes "
                f"from the queue {self.queue!r}: use `bankrun compare --strategy {self.strategy}`, or another strategy"
            )


class NoResult:
    """In place of Celery's result, which has a ``__del__``: an interruption that comes in there is lost."""

    ignored = True

    def __init__(self, task_id: str) -> None:
        self.id = task_id


def accept(database: Database, orders: Iterable[Order], submission: Submission, *, forgettable: bool = False) -> None:
    """Write the orders into the bank as pending transfers, all or none of them, in one COPY.

    A run may be accepted in parts. ``forgettable`` ones are not published again where they stay pending.
    """
    with database.transaction() as transaction:
        row = transaction.execute(
            """
            INSERT INTO runs (name, strategy, queue, chunk, think_ms, threads, closed)
            VALUES (%(run)s, %(strategy)s, %(queue)s, %(chunk)s, %(think_ms)s, %(threads)s, %(closed)s)
            ON CONFLICT (name) DO UPDATE SET closed = excluded.closed RETURNING id
            """,
            {**asdict(submission), "closed": forgettable},
        ).fetchone()
        assert row is not None
        # In COPY's text format, many rows at a time: the driver's own way calls Python for each value of each row.
        statement = "COPY transfers (id, debit, credit, amount, strategy, run) FROM STDIN"
        rest = f"{submission.strategy.translate(COPY_ESCAPES)}\t{row[0]}\n"
        left = iter(orders)
        with transaction.raw.cursor().copy(statement) as copy:
            while rows := [
                f"{order.id.hex}\t{order.debit}\t{order.credit}\t{order.amount}\t{rest}"
                for order in islice(left, COPY_ROWS)
            ]:
                copy.write("".join(rows))


def abandon(database: Database, run: str) -> None:
    """Have no reconciler publish a run's transfers again."""
    with database.transaction() as transaction:
        transaction.execute("UPDATE runs SET closed = true WHERE name = %(run)s", {"run": run})


def publish(
    app: Celery,
    orders: Sequence[Order],
    submission: Submission,
    *,
    again: bool = False,
    task: str = TASK,
    progress: Callable[[int], None] = lambda published: None,
) -> None:
    """Publish accepted orders, many messages in a round trip.

    ``again`` says that the orders were delivered before, in vain. ``progress`` is called with the number of orders
    published so far.
    """
    chunk = submission.chunk
    queue = app.amqp.queues[submission.queue]
    messages = max(1, min(PUBLISH_MESSAGES, PUBLISH_ORDERS // chunk))
    with app.producer_or_acquire() as producer:
        producer.maybe_declare(queue)  # once, and not for each message
        options = {"queue": queue, "declare": [], "producer": producer, "retry": False, "result_cls": NoResult}
        for begin in range(0, len(orders), messages * chunk):
            end = min(begin + messages * chunk, len(orders))
            with producer.batch(max_size=messages):
                for first in range(begin, end, chunk):
                    body = message(
                        orders[first : min(first + chunk, end)],
                        run=submission.run,
                        strategy=submission.strategy,
                        think_ms=submission.think_ms,
                        threads=submission.threads,
                        again=again,
                    )
                    app.send_task(task, args=(body,), **options)
            progress(end)
