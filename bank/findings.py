"""Findings: the ways in which an invariant failed, each with how often, and the first few cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

EXAMPLES_MAX = 3


@dataclass(slots=True)
class Finding:
    """One way in which an invariant failed: how often, and the first few cases."""

    invariant: str
    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, message: str | Callable[[], str], count: int = 1) -> None:
        """Count a case, and keep its message if it is among the first; one that has to be found out only then is."""
        self.count += count
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(message if isinstance(message, str) else message())


def add_case(
    findings: list[Finding], invariant: str, kind: str, message: str | Callable[[], str], count: int = 1
) -> None:
    """Add a case, or several that are told as one, to its finding."""
    for finding in findings:
        if (finding.invariant, finding.kind) == (invariant, kind):
            break
    else:
        finding = Finding(invariant, kind)
        findings.append(finding)
    finding.add(message, count)


def list_first(names: Sequence[str], count: int) -> str:
    """Return the first few names of ``count``, and how many more there are."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")
