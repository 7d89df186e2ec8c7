"""The Celery application: a worker starts ``-A workers.app``, and the lab makes its own with ``create_app``."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from kombu.connection import Connection as BrokerConnection

from bank.errors import CannotStart
from bank.settings import Settings, read_settings
from workers.broker.brokers import Broker, broker_at
from workers.broker.messages import NOOP_TASK, QUEUE, TASK
from workers.process.heartbeat import Heartbeat

__all__ = ["NOOP_TASK", "QUEUE", "TASK", "Application", "app", "broker_of", "configuration", "create_app"]


class Connection(BrokerConnection):
    """A connection that tries again as often as its transport options say, and for ever only where they do not.

    Kombu's remote control has nowhere to say it: a broker that ended while it was asked was waited for without end.
    """

    def ensure(
        self, obj: Any, fun: Any, errback: Any = None, max_retries: Any = None, *arguments: Any, **options: Any
    ) -> Any:
        """Return a function that calls another, and connects again where the connection is lost."""
        if max_retries is None:
            max_retries = (self.transport_options or {}).get("max_retries")
        return super().ensure(obj, fun, errback, max_retries, *arguments, **options)  # type: ignore[no-untyped-call]


class Messaging(AMQP):  # type: ignore[misc]
    """Celery's view of the broker, with the queues that ours has."""

    Connection = Connection

    @property
    def queues_cls(self) -> Any:
        """The kind of table that queues are in."""
        return broker_of(self.app).queues


class Application(Celery):  # type: ignore[misc]
    """An application that works on our broker, also where the environment names one for other programs.

    Celery prefers CELERY_BROKER_URL, and its siblings for reading and writing, to an application's configuration.
    """

    amqp_cls = Messaging

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
    url = settings.broker_url.get_secret_value()
    return {
        "broker_url": url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # an outage may last as long as it likes
        **broker_at(url).configuration(settings),
        # JSON and nothing else: a pickle from the broker would be code.
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_default_queue": QUEUE,
        # A message is acknowledged after COMMIT, and each thread works at one at a time.
        "task_acks_late": True,
        "task_ignore_result": True,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "enable_utc": True,
    }


def broker_of(app: Celery) -> Broker:
    """Return the kind of broker that an application works on."""
    return broker_at(app.conf["broker_url"])


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
