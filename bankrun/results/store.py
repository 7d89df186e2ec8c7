"""Results read back from their files: a comparison, a proof or faults, checked before anything is made of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bank.audit import Audit, PostingTold
from bank.errors import CannotStart
from bankrun.proof.interleavings import CaseResult
from bankrun.results.models import SCHEMA, Cell, Comparison, Run
from bankrun.results.workload import Workload

Count = Annotated[int, Field(ge=0)]
Verdict = Literal["safe", "broken", "inconclusive"]


class Source(BaseModel):
    """Where a result comes from: what it takes to run it again, as far as that was saved."""

    bankrun: str = "unknown"
    started: str = ""
    command: str = ""
    seed: int | None = None
    environment: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    workload: dict[str, Any] = {}
    rounds: int | None = None
    not_run: dict[str, str] = {}
    faults: dict[str, Any] = {}


class FaultCell(BaseModel):
    """What one fault did to one strategy."""

    fault: str
    strategy: str
    topology: str
    verdict: Verdict
    expected: Literal["safe", "unsafe"] = "unsafe"
    reason: str = ""
    applied: Count
    lost_postings: Count
    duplicates: Count
    pending: Count
    extra_deliveries: Count
    recovery_s: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof, as it was saved."""

    source: Source
    cases: list[CaseResult]


@dataclass(frozen=True, slots=True)
class Faults:
    """What faults did, as it was saved."""

    source: Source
    cells: list[FaultCell]


Result = Comparison | Proof | Faults


class _SavedCell(BaseModel):
    expected: Literal["safe", "unsafe"]
    verdict: Verdict
    reason: str
    runs: Annotated[list[Run], Field(min_length=1)]


class _SavedComparison(BaseModel):
    bankrun: str
    seed: int
    started: str
    command: str = ""
    environment: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    workload: Workload
    cells: Annotated[list[_SavedCell], Field(min_length=1)]


_AUDIT = TypeAdapter(Audit)
_SCENE = TypeAdapter(list[PostingTold])
_CASES = TypeAdapter(Annotated[list[CaseResult], Field(min_length=1)])
_FAULTS = TypeAdapter(Annotated[list[FaultCell], Field(min_length=1)])


def read(path: Path) -> Result:
    """Return the result in a file. Raises CannotStart, in one sentence, if it is none or is damaged."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise CannotStart(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise CannotStart(f"{path} is not a result of bankrun")
    try:
        return _parsed(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CannotStart(f"{path} is not a whole result of bankrun: {where or 'it'}: {first['msg']}") from None
    except ValueError as error:
        raise CannotStart(f"{path} is not a whole result of bankrun: {error}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number")
    return value


def _parsed(plain: dict[str, Any]) -> Result:
    cells = plain.get("cells")
    if "cases" in plain:
        return Proof(Source.model_validate(plain), _CASES.validate_python(plain["cases"]))
    if isinstance(cells, list) and cells and isinstance(cells[0], dict) and "fault" in cells[0]:
        return Faults(Source.model_validate(plain), _FAULTS.validate_python(cells))
    saved = _SavedComparison.model_validate(plain)
    comparison = Comparison(
        **{name: getattr(saved, name) for name in _SavedComparison.model_fields if name != "cells"},
        cells=[Cell(cell.runs, cell.expected, cell.verdict, cell.reason) for cell in saved.cells],
    )
    for cell in comparison.cells:
        for run in cell.runs:
            _check_run(run)
    return comparison


def _check_run(run: Run) -> None:
    """Check what a run keeps as plain values. Raises ValidationError, or ValueError."""
    audit = _AUDIT.validate_python(run.audit)
    run.audit["passed"] = not audit.findings
    if not all(finding.examples for finding in audit.findings):
        raise ValueError("a finding without an example")
    postings = [*_SCENE.validate_python(run.scene), *(audit.example or ())]
    if not all(at.tzinfo for posting in postings for at in (posting.read_at, posting.written_at) if at is not None):
        raise ValueError("a time without its zone")
    if len({len(series) for series in run.history.series()}) > 1:
        raise ValueError("a history whose series differ in length")
