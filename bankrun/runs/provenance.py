"""What a comparison is saved with, besides its runs: all that it takes to read it, and to run it again."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from bank.settings import WAITS
from bank.strategies import STRATEGIES
from bankrun.results.models import Comparison
from bankrun.runs.comparison import Lab, Plan
from bankrun.runs.environment import bankrun_version, environment
from bankrun.runs.session import Servers

SETTINGS_SAVED = (*WAITS, "patience_ms", "reconcile_ms", "redeliveries_max")


def begin_comparison(servers: Servers, lab: Lab, plan: Plan) -> Comparison:
    """Return a comparison that begins now, without any cells yet."""
    return Comparison(
        bankrun=bankrun_version(),
        seed=plan.seed,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(plan),
        environment=environment(servers.database, servers.app, lab.instances, embedded=servers.endpoints.embedded),
        settings={name: getattr(servers.settings, name) for name in SETTINGS_SAVED},
        workload=plan.workload,
    )


def _command(plan: Plan) -> str:
    """Return the command that repeats a comparison."""
    load = plan.workload
    words = ["bankrun", "compare"]
    strategies = ["all"] if plan.strategies == tuple(STRATEGIES) else plan.strategies
    words += [word for name in strategies for word in ("--strategy", name)]
    words += [word for topology in plan.topologies for word in ("--topology", str(topology))]
    words += ["--transfers", str(load.transfers), "--accounts", str(load.accounts), "--opening", str(load.opening)]
    words += ["--skew", load.skew, "--amount-max", str(load.amount_max), "--think-ms", f"{load.think_ms:.15g}"]
    words += ["--chunk", str(load.chunk), *(["--constraint"] if load.constraint else [])]
    words += ["--repeat", str(plan.repeat), "--warmup", str(plan.warmup), "--seed", str(plan.seed)]
    words += ["--cell-timeout", f"{plan.cell_seconds_max:.15g}"]
    return shlex.join(words)
