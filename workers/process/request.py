"""What Celery hands to a thread of the pool: a message that was opened once."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request as CelerysRequest


class Request(CelerysRequest):  # type: ignore[misc]
    """A request whose message was opened by the receiver: Celery would open it again in the thread."""

    @property
    def body(self) -> Any:
        """What the task is called with, if it is known; else the bytes."""
        return self._message.payload

    @property
    def content_type(self) -> None:
        """None: the body is no text any more."""
        return

    @property
    def content_encoding(self) -> None:
        """None, as well."""
        return
