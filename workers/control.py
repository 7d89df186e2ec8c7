"""Remote-control commands that an instance answers, besides Celery's own."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command

from workers.tasks import current_instance


@inspect_command(name="bankrun_describe")  # type: ignore[untyped-decorator]
def describe(state: Any) -> dict[str, Any]:
    """Say who this instance is."""
    return current_instance().describe()


@inspect_command(name="bankrun_read_meter", args=[("run", str)], signature="<run>")  # type: ignore[untyped-decorator]
def read_meter(state: Any, run: str) -> dict[str, Any]:
    """Say what a run cost here, and forget it."""
    return {"reading": current_instance().read_meter(run)}
