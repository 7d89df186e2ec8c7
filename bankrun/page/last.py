"""The last result, on the disk: it is there when the page's server comes back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bankrun.errors import BankrunError
from bankrun.results.models.comparison import Comparison
from bankrun.results.store import read_as, save, write
from bankrun.runs.film import Film

RESULT = "page-last.json"
FILMS = "page-films.json"
SIZE_MAX = 16 * 2**20

Films = Mapping[tuple[str, str], Film]


@dataclass(frozen=True, slots=True)
class _Kept:
    """Films, and when the comparison began that they are of."""

    started: str
    films: list[Film] = field(default_factory=list)


_KEPT = TypeAdapter(_Kept)


def keep(directory: Path, comparison: Comparison, films: Films) -> None:
    """Write a result and its films. Without a disk they are only in memory, and nothing is raised."""
    with suppress(BankrunError, OSError):
        save(str(directory / RESULT), comparison)
        kept = _Kept(comparison.provenance.started, list(films.values()))
        write(str(directory / FILMS), _KEPT.dump_json(kept).decode() + "\n")


def recall(directory: Path) -> tuple[Comparison | None, Films]:
    """Return the result that was kept, and its films. What cannot be read is as if it were not there."""
    try:
        comparison = read_as(Comparison, directory / RESULT)
    except BankrunError:
        return None, {}
    path = directory / FILMS
    try:
        kept = _KEPT.validate_json(path.read_bytes()) if path.stat().st_size <= SIZE_MAX else _Kept("")
    except (OSError, ValidationError):
        return comparison, {}
    same = kept.started == comparison.provenance.started
    return comparison, {(film.strategy, film.topology): film for film in kept.films} if same else {}
