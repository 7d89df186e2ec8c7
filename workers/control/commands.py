"""Remote-control commands that an instance answers, besides Celery's own."""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command, inspect_command

from bank import outside
from bank.errors import Rejected
from workers.control.failpoints import Failpoint
from workers.process.tasks import current_instance


@inspect_command(name="bankrun_describe")  # type: ignore[untyped-decorator]
def describe(state: Any) -> dict[str, Any]:
    """Say who this instance is."""
    return current_instance().describe()


@inspect_command(name="bankrun_read_meter", args=[("run", str)], signature="<run>")  # type: ignore[untyped-decorator]
def read_meter(state: Any, run: str) -> dict[str, Any]:
    """Say what a run cost here, and forget it."""
    return {"reading": current_instance().read_meter(run)}


@inspect_command(name="bankrun_refusal", args=[("strategy", str)], signature="<strategy>")  # type: ignore[untyped-decorator]
def refusal(state: Any, strategy: str) -> dict[str, Any]:
    """Load a strategy, and say why not if it cannot be used here; and from which file it is."""
    return {"refusal": current_instance().try_strategy(strategy), "fingerprint": outside.fingerprint(strategy)}


@inspect_command(name="bankrun_renew")  # type: ignore[untyped-decorator]
def renew(state: Any) -> dict[str, Any]:
    """Close the idle sessions: the next transfers get new ones, in which nothing was set, locked or made."""
    current_instance().database.engine.dispose()
    return {"renewed": True}


@inspect_command(name="bankrun_standing")  # type: ignore[untyped-decorator]
def standing(state: Any) -> dict[str, Any]:
    """Say where transfers stand that do not come to an end."""
    return {"places": current_instance().find_standing()}


@control_command(name="bankrun_arm", args=[("key", str), ("failpoint", dict)], signature="<key> <failpoint>")  # type: ignore[untyped-decorator]
def arm(state: Any, key: str, failpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arm a failpoint, or disarm what is armed: for whoever started this instance with a key."""
    failpoints = current_instance().failpoints
    if failpoints is None:
        return {"error": "this instance has no failpoints"}
    try:
        failpoints.arm(key, None if failpoint is None else Failpoint(**failpoint))
    except (Rejected, TypeError) as error:
        return {"error": str(error)}
    return {"ok": "disarmed" if failpoint is None else "armed"}


@control_command(name="bankrun_pause", args=[("key", str), ("seconds", float)], signature="<key> <seconds>")  # type: ignore[untyped-decorator]
def pause(state: Any, key: str, seconds: float) -> dict[str, Any]:
    """Stop this instance for a time: for whoever has its key."""
    try:
        current_instance().interruptions.pause(key, seconds)
    except (Rejected, OSError) as error:
        return {"error": str(error)}
    return {"ok": "it will be paused"}


@control_command(name="bankrun_kill", args=[("key", str)], signature="<key>")  # type: ignore[untyped-decorator]
def kill(state: Any, key: str) -> dict[str, Any]:
    """End this instance with SIGKILL: for whoever has its key."""
    try:
        current_instance().interruptions.kill(key)
    except (Rejected, OSError) as error:
        return {"error": str(error)}
    return {"ok": "it will be killed"}
