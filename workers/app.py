"""The Celery application: a worker starts ``-A workers.app``, and the lab makes its own with ``create_app``."""

from __future__ import annotations

from typing import Any

from celery import Celery

from bank.errors import CannotStart
from bank.settings import Settings, read_settings
from workers.broker import transport
from workers.process.heartbeat import Heartbeat

TASK = "bankrun.apply"
NOOP_TASK = "bankrun.noop"
"""Does nothing: what is left when it is measured is the price of a message."""
TRANSPORT = transport.Transport
"""Imported so that it takes the place of Kombu's own."""
QUEUE = "transfers"
"""The queue that every instance consumes: for jobs that scripts trigger."""


class Application(Celery):  # type: ignore[misc]
    """An application that works on our broker, also where the environment names one for other programs.

    Celery prefers CELERY_BROKER_URL, and its siblings for reading and writing, to an application's configuration.
    """

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection for a consumer."""
        return super().connection_for_read(url or self.conf["broker_url"], **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection for a producer."""
        return super().connection_for_write(url or self.conf["broker_url"], **options)


def configuration(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration for a broker that may lose and repeat messages."""
    if settings.broker_url is None:
        raise CannotStart("BANKRUN_BROKER_URL is not set: a worker needs to know where its jobs come from")
    return {
        "broker_url": settings.broker_url.get_secret_value(),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # an outage may last as long as it likes
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout_ms / 1000,
            # Messages of a killed instance come back when their time is over, not minutes later.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "reuse_client": settings.reuse_client,
            "receive_many": settings.receive_many,
            "prefetch": settings.prefetch,
            "socket_timeout": 10,
            "health_check_interval": 25,
        },
        # JSON and nothing else: a pickle from the broker would be code.
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_default_queue": QUEUE,
        # A message is acknowledged after COMMIT, and each thread works at one at a time.
        "task_acks_late": True,
        "worker_prefetch_multiplier": settings.prefetch if settings.receive_many else 1,
        "task_ignore_result": True,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "enable_utc": True,
    }


def create_app(settings: Settings) -> Application:
    """Return an application for a process that is no worker: it sends jobs and remote-control commands."""
    app = Application("bankrun", set_as_current=False)
    options = configuration(settings)
    # Kombu tries again for ever otherwise: a lab has to say that its broker is gone. A worker waits for it.
    options["broker_transport_options"] |= {"max_retries": 2, "interval_start": 0.1, "interval_max": 0.5}
    app.conf.update(options)
    return app


app = Application("bankrun", include=["workers.process.tasks", "workers.control.commands"])
# Called when the configuration is first needed, not at import: importing this module reads no environment.
app.add_defaults(lambda: configuration(read_settings()))
app.steps["consumer"].add(Heartbeat)
