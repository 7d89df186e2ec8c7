"""The one task: hand a message's orders to this instance."""

from __future__ import annotations

import logging
import random
from typing import Any

from celery import Task, shared_task
from celery.signals import worker_init, worker_shutdown

from bank.errors import BankError, CannotStart, Rejected
from bank.settings import read_settings
from workers.app import NOOP_TASK, TASK
from workers.instance import Instance
from workers.jobs import Job

RETRY_SECONDS_MAX = 2.0
FAULTS_MAX = 5

logger = logging.getLogger("bankrun")

_instance: Instance | None = None


def current_instance() -> Instance:
    """Return this process' instance. Raises CannotStart in a process that is no worker."""
    if _instance is None:
        raise CannotStart("this process is not a worker")
    return _instance


@worker_init.connect  # type: ignore[untyped-decorator]
def _open(**_: Any) -> None:
    global _instance  # noqa: PLW0603 - Celery's signals carry no place to keep it
    _instance = Instance(read_settings())


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _close(**_: Any) -> None:
    global _instance  # noqa: PLW0603
    if _instance is not None:
        _instance.close()
        _instance = None


@shared_task(name=TASK, bind=True, max_retries=None)  # type: ignore[untyped-decorator]
def apply_transfers(self: Task, message: object) -> None:
    """Apply one message. A message that is no job is dropped with its reason in the log; no money moves."""
    try:
        current_instance().apply(Job.parse(message))
    except Rejected as error:
        logger.warning("rejected: %s", error)
    except BankError as error:
        # Nothing that is wrong with the transfers: a lock, a conflict or a connection. They are pending; try again.
        logger.warning("will be delivered again: %s", error)
        raise self.retry(exc=error, countdown=random.uniform(0, RETRY_SECONDS_MAX)) from error
    except Exception as error:
        # A fault in a strategy, or in us. It may stay, but an accepted transfer is not dropped for the first one.
        if self.request.retries >= FAULTS_MAX:
            raise
        logger.exception("will be delivered again")
        raise self.retry(exc=error, countdown=random.uniform(0, RETRY_SECONDS_MAX)) from error


@shared_task(name=NOOP_TASK)  # type: ignore[untyped-decorator]
def do_nothing(message: dict[str, Any]) -> None:
    """Take a message and do nothing with it, so that the cost of messages alone can be measured."""
    with current_instance().meter(message["run"], message["threads"]).working_slot():
        pass
