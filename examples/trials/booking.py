"""A room is booked if nobody has it for those nights."""

import os

import psycopg

TAKEN = "SELECT FROM booking WHERE room = %s AND nights && int4range(%s, %s)"


def book(room: int, guest: str, first: int, last: int) -> str:
    """No row is there to be locked, so both find the room free."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        return insert_if_free(connection, room, guest, first, last)


def book_locked(room: int, guest: str, first: int, last: int) -> str:
    """The room itself is a row: who books locks it first."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("SELECT FROM room WHERE id = %s FOR UPDATE", [room])
        return insert_if_free(connection, room, guest, first, last)


def insert_if_free(connection: psycopg.Connection, room: int, guest: str, first: int, last: int) -> str:
    if connection.execute(TAKEN, [room, first, last]).rowcount:
        return "taken"
    connection.execute(
        "INSERT INTO booking (room, guest, nights) VALUES (%s, %s, int4range(%s, %s))", [room, guest, first, last]
    )
    return "booked"
