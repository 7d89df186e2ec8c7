"""A submitter that can be killed: publishes a run's pending transfers, one message after another.

python -P -m bankrun.chaos.submitter RUN COUNT
"""

from __future__ import annotations

import os
import signal
import sys

from bank.orders import Order
from bank.postgres.database import Database
from bank.settings import read_settings
from workers.app import create_app
from workers.submission import Submission, publish


def main(run: str, count: int) -> None:
    """Publish ``count`` of what was accepted in a run, one message after another, and end by SIGKILL."""
    settings = read_settings()
    assert settings.database_url is not None
    database = Database(
        settings.database_url.get_secret_value(), connections_max=1, application_name="bankrun submitter", options={}
    )
    with database.transaction() as transaction:
        sent = transaction.execute(
            "SELECT name, strategy, queue, chunk, think_ms, threads FROM runs WHERE name = %(run)s", {"run": run}
        ).fetchone()
        pending = transaction.execute(
            """
            SELECT t.id, debit, credit, amount FROM transfers t JOIN runs r ON t.run = r.id
            WHERE r.name = %(run)s AND status = 'pending' ORDER BY t.id
            """,
            {"run": run},
        ).fetchall()
    assert sent is not None
    submission = Submission(*sent)
    app = create_app(settings)
    for row in pending[:count]:
        publish(app, [Order(*row)], submission)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
