"""What every result is saved with: what it takes to know what it was found with, and to find it again."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import Field

from bankrun.errors import CannotStart
from bankrun.quoting import one_line

SCHEMA = 1
WORD_MAX = 100
SEED_MAX = 2**63 - 1

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
"""A duration or a rate."""
Verdict = Literal["safe", "broken", "inconclusive"]
Expected = Literal["safe", "unsafe"]
Value = str | float | bool | Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who found it, when, by which command, and under what circumstances.

    ``command`` is the whole command that repeats it, ``seed`` what that decides by chance, None where it decides
    nothing. ``environment`` are versions, the machine and the servers; ``settings`` the time limits that were in force.
    ``cut_short`` says that it ended before its plan did: what is there was found, and more was to come.
    """

    bankrun: str = "unknown"
    seed: int | None = None
    started: str = ""
    command: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    cut_short: bool = False

    @classmethod
    def begin(
        cls,
        command: str,
        *,
        seed: int | None = None,
        environment: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Provenance:
        """Return the provenance of what begins now."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(bankrun_version(), seed, started, command, dict(environment or {}), dict(settings or {}))

    def as_json(self, kind: str) -> dict[str, Any]:
        """Return the keys with which every result's file begins."""
        plain = {"schema": SCHEMA, "kind": kind, **asdict(self)}
        if self.seed is None:
            del plain["seed"]
        return plain

    def sentence(self) -> str:
        """Return it as a footnote in Markdown."""
        cut = "Cut short. " if self.cut_short else ""
        return (
            f"{cut}`{self.command}`, {self.started}; bankrun {self.bankrun}, Python {self.told('python')}, "
            f"Celery {self.told('packages.celery')}, {self.servers()}."
        )

    def servers(self) -> str:
        """Return the servers and the machine in a few words. Raises CannotStart where they are not told."""
        postgres = self.told("postgres.server_version")
        brokers = [name for name in ("redis", "rabbitmq") if name in self.environment] or ["redis"]
        told = [f"{self.told(f'{broker}.server')} {self.told(f'{broker}.version')}" for broker in brokers]
        return f"Postgres {postgres}, {' and '.join(told)}, {self.told('cores')} cores"

    def told(self, name: str) -> str:
        """Return a value of the environment by its dotted name. Raises CannotStart if there is none."""
        found: Any = self.environment
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, (str, int, float)):
            raise CannotStart(f"its environment does not say {name}")
        return one_line(str(found), WORD_MAX)


def check_seed(seed: int) -> None:
    """Raise CannotStart for a seed that no saved result could hold."""
    if not 0 <= seed <= SEED_MAX:
        raise CannotStart(f"seed={seed}: it must be between 0 and {SEED_MAX}")


def bankrun_version() -> str:
    """Return bankrun's version."""
    try:
        return version("bankrun")
    except PackageNotFoundError:
        return "unknown"


def describe_machine() -> dict[str, Any]:
    """Return the part of an environment that needs no server: Python and the machine."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def write_command(name: str, *arguments: str, **options: Value) -> str:
    """Return a command of ours as a shell takes it.

    An option's underscores are hyphens; a list repeats it, True is a flag, and None and False leave it out.
    """
    words = ["bankrun", name, *arguments]
    for option, value in options.items():
        flag = f"--{option.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, float):
            words += [flag, f"{value:.15g}"]
        elif isinstance(value, (str, int)) and value is not False:
            words += [flag, str(value)]
        elif isinstance(value, Sequence):
            words += [word for one in value for word in (flag, one)]
    return shlex.join(words)
