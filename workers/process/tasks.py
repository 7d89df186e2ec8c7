"""The one task: hand a message's orders to this instance."""

from __future__ import annotations

import gc
import logging
import random
import time
from functools import partial
from typing import Any, NoReturn

from celery import Task, shared_task
from celery.signals import celeryd_init, worker_init, worker_shutdown

from bank.errors import BankError, CannotStart, Rejected, one_line
from bank.settings import read_settings
from workers.app import NOOP_TASK, TASK, broker_of
from workers.broker.brokers import broker_at
from workers.broker.messages import REASON_MAX, Job
from workers.process.affinity import stay_on
from workers.process.instance import Instance
from workers.process.reconciler import Reconciler

RETRY_SECONDS_MAX = 2.0
FAULTS_MAX = 100
GC_YOUNG_MAX = 50_000
REQUEST = "workers.process.request:Request"

logger = logging.getLogger("bankrun")

_instance: Instance | None = None
_reconciler: Reconciler | None = None


def current_instance() -> Instance:
    """Return this process' instance. Raises CannotStart in a process that is no worker."""
    if _instance is None:
        raise CannotStart("this process is not a worker")
    return _instance


@celeryd_init.connect  # type: ignore[untyped-decorator]
def _take_only_what_is_ours(**_: Any) -> None:
    """Put the gate between this worker and its broker; first of all, since Kombu keeps the transport of a scheme."""
    url = read_settings().broker_url
    if url is not None:
        broker_at(url.get_secret_value()).close_gate()


@worker_init.connect  # type: ignore[untyped-decorator]
def _open(sender: Any, **_: Any) -> None:
    global _instance, _reconciler  # noqa: PLW0603 - Celery's signals carry no place to keep them
    settings = read_settings()
    if settings.core is not None:
        stay_on(settings.core)
    _instance = Instance(settings)
    if _instance.failpoints is not None:
        broker_of(sender.app).tell_of_jobs(partial(_instance.failpoints.reach, "receive"))
    # A connection of its own: one of the pool's would be missing to a thread.
    database = _instance.open_database(f"{_instance.name} reconciler", threads=1)
    _reconciler = Reconciler(database, sender.app, wait_seconds=settings.reconcile_ms / 1000)
    _reconciler.start()
    # What was made so far stays for good: the garbage collector need not look through it for ever. And what a message
    # makes is mostly freed by its counters: for a chunk of orders, a third of the time went into looking for cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG_MAX)


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _close(**_: Any) -> None:
    global _instance, _reconciler  # noqa: PLW0603
    if _reconciler is not None:
        _reconciler.stop()
        _reconciler = None
    if _instance is not None:
        _instance.close()
        _instance = None


@shared_task(name=TASK, bind=True, max_retries=None, Request=REQUEST)  # type: ignore[untyped-decorator]
def apply_transfers(self: Task, message: object) -> None:
    """Apply one message. A message that is no job is dropped with its reason in the log; no money moves."""
    try:
        redelivered = bool((self.request.delivery_info or {}).get("redelivered"))
        current_instance().apply(Job.parse(message), redelivered=redelivered)
    except Rejected as error:
        logger.warning("rejected: %s", one_line(str(error), REASON_MAX))
    except BankError as error:
        # Nothing that is wrong with the transfers: a lock, a conflict or a connection. They are pending; try again.
        logger.warning("will be delivered again: %s", error)
        _send_again(self, message, error)
    except Exception as error:
        # A fault in a strategy, which is counted from here on and fails its transfer in the end; or one in us.
        if self.request.retries >= FAULTS_MAX:
            raise  # what it was about stays pending, and the reconciler comes back to it
        logger.warning("will be delivered again: %s: %s", type(error).__name__, error)
        _send_again(self, {**message, "again": True} if isinstance(message, dict) else message, error)


def _send_again(task: Task, message: object, error: Exception) -> NoReturn:
    """Publish the message again after a pause, and end this delivery.

    The pause is spent here. Celery's own would be a time by this instance's clock, at which the instance that gets the
    message looks by its own: where one of them is wrong, the message would lie about for as long as they differ.
    """
    time.sleep(random.uniform(0, RETRY_SECONDS_MAX))
    raise task.retry(args=(message,), exc=error, countdown=0) from error


@shared_task(name=NOOP_TASK, Request=REQUEST)  # type: ignore[untyped-decorator]
def do_nothing(message: object) -> None:
    """Take a message, check it, and do nothing with it: what is left is the cost of messages alone."""
    try:
        job = Job.parse(message)
    except Rejected as error:
        logger.warning("rejected: %s", one_line(str(error), REASON_MAX))
        return
    with current_instance().meter(job.run, job.threads).working_slot():
        pass
