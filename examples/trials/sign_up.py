"""Two people sign up: nothing is wrong with that, although no two runs leave the same ids, tokens and times."""

import os
import uuid
from datetime import UTC, datetime

import psycopg


def sign_up(email: str) -> int:
    """A person, and a post that belongs to that person."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        (person,) = connection.execute("INSERT INTO person (email) VALUES (%s) RETURNING id", [email]).fetchone()
        connection.execute(
            "INSERT INTO post (person, body, key, written) VALUES (%s, %s, %s, %s)",
            [person, f"hello from {email}", uuid.uuid4(), datetime.now(UTC)],
        )
        return person
