"""What is raised where a server is lost: the bank's own errors, and those of the drivers that it does not see."""

from __future__ import annotations

import psycopg
from amqp.exceptions import AMQPError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from bank.errors import BankError

LOST_SERVER = (BankError, DBAPIError, psycopg.Error, KombuError, RedisError, AMQPError, OSError)
