"""Two workers take the next job from a table."""

import os

import psycopg

NEXT = "SELECT id FROM job WHERE state = 'ready' ORDER BY id LIMIT 1"


def take(worker: str) -> int | None:
    """Both see the same job as ready, and both do it."""
    return take_by(NEXT, worker)


def take_for_update(worker: str) -> int | None:
    """The second waits until the first has committed, and takes the next job then: right, and one at a time."""
    return take_by(NEXT + " FOR UPDATE", worker)


def take_skip_locked(worker: str) -> int | None:
    """The second leaves out what the first has locked."""
    return take_by(NEXT + " FOR UPDATE SKIP LOCKED", worker)


def take_by(query: str, worker: str) -> int | None:
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        row = connection.execute(query).fetchone()
        if row is None:
            return None
        connection.execute("UPDATE job SET state = 'taken', taken_by = %s WHERE id = %s", [worker, row[0]])
        return row[0]
