"""Postgres' wire protocol: its bytes, what a client asks for, one connection, and the sockets of all."""
