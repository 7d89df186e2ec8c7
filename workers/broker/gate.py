"""The transport of workers: what lies in the broker may be anything, and no worker ends of it.

Kombu lets the consumer's loop end with whatever is raised by a list item that is no message, and Celery then ends the
worker. Here it is dropped, with its reason in the log, and does not come back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.json import loads

from bank.errors import Rejected, one_line
from workers.broker import envelope, receiving
from workers.broker.messages import REASON_MAX
from workers.broker.receiver import Taken

logger = logging.getLogger("bankrun")


class Channel(receiving.Channel):
    """Drops what is no message, and goes on."""

    @contextmanager
    def _dropping(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Empty, *self.connection_errors):
            raise
        except Rejected as error:
            logger.warning("rejected: %s", error)
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises, it is the message's fault
            why = one_line(f"{type(error).__name__}: {error}", REASON_MAX)
            logger.warning("rejected: not a %s: %s", what, why)

    def _brpop_read(self, **options: Any) -> Any:
        with self._dropping("message"):
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]

    def deliver(self, taken: Taken) -> None:
        """Hand a message to its queue's consumer, if it is one."""
        with self._dropping("message"):
            self.connection.deliver_job(envelope.open_job(taken.raw, taken.queue, taken.tag), taken.queue)

    def put_back(self, noted: bytes, pipe: Any, leftmost: bool) -> None:  # noqa: FBT001 - Kombu's order
        """Put what was noted of a message back, if it is one: a receiver notes whatever it takes."""
        with self._dropping("message"):
            message = loads(noted)[0]  # type: ignore[no-untyped-call]
            envelope.check_marks(message)
            super().put_back(noted, pipe, leftmost)

    def _receive_one(self, c: Any) -> Any:
        with self._dropping("command"):
            return super()._receive_one(c)  # type: ignore[no-untyped-call]


class Transport(receiving.Transport):
    """Lets jobs and remote-control commands pass, and nothing else."""

    Channel = Channel
    received: Callable[[], None] | None = None
    """A failpoint: reached with each job that has just come, however it came."""

    def _deliver(self, message: Any, queue: str) -> None:
        if any(queue in channel.active_fanout_queues for channel in self.channels):
            envelope.check_command(message)
        else:
            message = envelope.job(message, queue)
            self._reach()
        super()._deliver(message, queue)  # type: ignore[no-untyped-call]

    def _reach(self) -> None:
        reach = type(self).received
        if reach is not None:
            reach()

    def deliver_job(self, message: dict[str, Any], queue: str) -> None:
        """Let a job pass that a receiver has taken."""
        self._reach()
        super()._deliver(message, queue)  # type: ignore[no-untyped-call]


def take_place() -> None:
    """Be the transport of every connection that this process makes from now on.

    By the schemes' own names, since Kombu derives more from a scheme than its transport: TLS, and where a socket is.
    """
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))
