"""Look whether it is there, and make it if not: between the two, another one makes it."""

import os

import psycopg


def get_or_create(name: str) -> str:
    """Without a constraint there are two rows in the end."""
    return look_then_insert("tag", name)


def get_or_create_unique(name: str) -> str:
    """With a constraint the data is right, and one of the callers gets an error that nobody expects."""
    return look_then_insert("unique_tag", name)


def get_or_create_on_conflict(name: str) -> str:
    """One statement, which waits for the other and then finds the row."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        made = connection.execute(
            "INSERT INTO unique_tag (name) VALUES (%s) ON CONFLICT (name) DO NOTHING RETURNING id", [name]
        ).fetchone()
        return "created" if made else "found"


def look_then_insert(table: str, name: str) -> str:
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        if connection.execute(f"SELECT id FROM {table} WHERE name = %s", [name]).fetchone():
            return "found"
        connection.execute(f"INSERT INTO {table} (name) VALUES (%s)", [name])
        return "created"
