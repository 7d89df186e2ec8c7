"""Saved trials and proofs that the server was started with, as the page shows them. Nothing of them is ever started.

A result is read once, before the server begins. An address can name one by its number, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bankrun.errors import CannotStart
from bankrun.proof.cases import ALL_CASES, PARTICIPANTS, THREE
from bankrun.results.models.proof import SUMMARIES, CaseResult, ProofResult
from bankrun.results.models.schedule import Background, StepTold
from bankrun.results.models.trial import TrialResult
from bankrun.results.store import read

WHERE_TRIED = {"two": "two processes", "same": "two threads of one process"}
WHERE_PROVED = {"two": "two instances", "same": "one instance"}
WORST = ("broken", "error", "needs retry", "inconclusive", "safe")
OLD = "This file has no rows and no serial orders: it was written by an older bankrun. Its command writes a new one."


@dataclass(frozen=True, slots=True)
class Saved:
    """A result, and the name of its file as it was given."""

    name: str
    result: TrialResult | ProofResult


def read_saved(paths: Sequence[Path]) -> tuple[Saved, ...]:
    """Return what these files hold. Raises CannotStart for what is no trial and no proof."""
    found = []
    for path in paths:
        result = read(path)
        if not isinstance(result, (TrialResult, ProofResult)):
            raise CannotStart(
                f"{path} holds a result of the kind {result.kind}: the page shows trials and proofs; "
                f"`bankrun report {path}` makes a page of this one"
            )
        found.append(Saved(str(path), result))
    return tuple(found)


def tell_saved(saved: Saved) -> dict[str, Any]:
    """Return a result as a browser draws it: each schedule that it has, and in a line what else was found."""
    result = saved.result
    walks = list(_walks_of_trial(saved.name, result) if isinstance(result, TrialResult) else _walks_of_proof(result))
    shown = [walk for walk in walks if walk["steps"]]
    breaking = [walk for walk in shown if walk["verdict"] in ("broken", "error")] or shown
    return {
        "file": saved.name,
        "kind": result.kind,
        "title": _title(result),
        "started": result.provenance.started,
        "command": result.provenance.command,
        "walks": shown,
        "shortest": min(breaking, key=lambda walk: len(walk["steps"]))["id"] if breaking else "",
        "others": [f"{walk['title']}: {walk['sentence']}" for walk in walks if not walk["steps"]],
    }


def _title(result: TrialResult | ProofResult) -> str:
    if isinstance(result, TrialResult):
        first, *rest = result.programs
        return f"{first} against itself" if set(rest) == {first} else " against ".join(result.programs)
    names = list(dict.fromkeys(case.strategy for case in result.cases))
    return f"A proof of {', '.join(names)}" if len(names) <= 4 else f"A proof of {len(names)} strategies"


def _walks_of_trial(file: str, trial: TrialResult) -> Iterator[dict[str, Any]]:
    names = {chr(ord("A") + at): program.rpartition(":")[2] for at, program in enumerate(trial.programs)}
    for case in trial.cases:
        yield {
            "id": case.instances,
            "title": f"in {WHERE_TRIED[case.instances]}",
            "verdict": case.verdict,
            "sentence": case.sentence or case.difference,
            "replay": f"bankrun replay {file} {case.shortest}" if case.shortest else "",
            **_tell_steps(names, case.steps, case.background),
        }


def _walks_of_proof(proof: ProofResult) -> Iterator[dict[str, Any]]:
    for case in sorted(proof.cases, key=lambda case: WORST.index(case.verdict)):
        yield {
            "id": f"{case.strategy}/{case.instances}/{case.case}",
            "title": f"{case.strategy}, in {WHERE_PROVED.get(case.instances, case.instances)}: {_meet(case)}",
            "verdict": case.verdict,
            "sentence": _count(case),
            "replay": f"bankrun replay {case.shortest_broken}" if case.shortest_broken else "",
            **_tell_steps(_name_transfers(case), case.steps, case.background),
        }


def _name_transfers(case: CaseResult) -> dict[str, str]:
    """Return what each transfer of a case moves."""
    known = {**ALL_CASES, THREE.name: THREE}.get(case.case)
    if known is None:
        return {name: f"transfer {name}" for name in PARTICIPANTS[: case.transfers]}
    return {
        name: ", ".join(f"{one.amount} from {one.debit} to {one.credit}" for one in orders)
        for name, orders in known.messages().items()
    }


def _meet(case: CaseResult) -> str:
    return SUMMARIES.get(case.case, case.case)


def _count(case: CaseResult) -> str:
    if not case.broken:
        return f"{case.verdict}: none of {case.interleavings:,}" + (f"; {case.reason}" if case.reason else "")
    return f"broken: {case.broken:,} of {case.interleavings:,}; {', '.join(case.kinds)}"


def _tell_steps(names: dict[str, str], steps: Sequence[StepTold], background: Background | None) -> dict[str, Any]:
    return {
        "names": names,
        "steps": [asdict(step) for step in steps],
        "background": asdict(background or Background()),
        "note": "" if background is not None or not steps else OLD,
    }
