"""What is sent to a browser: plain values, small, from which it draws everything.

All of it when a browser comes and when a cell has ended; while a run goes on, what has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bank.outside import known_strategy
from bank.strategies import Claim
from bankrun.page.places import FLAWS, OF_CLAIM, describe, place_of
from bankrun.page.runner import Snapshot
from bankrun.quoting import legal
from bankrun.render.space_time import space_time
from bankrun.render.story import explain
from bankrun.results.models.comparison import Cell
from bankrun.results.topology import Topology
from bankrun.runs.sampling import Overwritten, View

POINTS = 60
SCENES_MAX = 6


def as_text(plain: object) -> str:
    """Return what is sent as text, without the characters that a page must not show."""
    return legal(json.dumps(plain, separators=(",", ":"), ensure_ascii=False))


def tell_all(now: Snapshot) -> dict[str, Any]:
    """Return all cells, planned and done, with the films of those that are done."""
    comparison = now.comparison
    done = {(cell.shown.strategy, cell.shown.topology): cell for cell in comparison.cells} if comparison else {}
    return {
        "cells": [tell_cell(strategy, topology, done.get((strategy, topology))) for strategy, topology in now.planned],
        "films": [film.as_json() for film in now.films.values()],
        "started": comparison.provenance.started if comparison else "",
        **tell_now(now),
    }


def tell_cell(strategy: str, topology: str, cell: Cell | None) -> dict[str, Any]:
    """Return what a card has to show, and what is drawn and said of where the lock lives."""
    shape = Topology.parse(topology)
    known = known_strategy(strategy)
    plain: dict[str, Any] = {
        "strategy": strategy,
        "topology": topology,
        "instances": shape.instances,
        "threads": shape.threads,
        "place": place_of(known) if known else OF_CLAIM[Claim(cell.shown.claim) if cell else Claim.NOTHING],
        "caption": describe(known, shape.instances) if known else "A strategy from outside.",
        "early": strategy in FLAWS,
    }
    if cell is None:
        return plain
    run = cell.shown
    history = list(zip(run.history.seconds, run.history.drift, strict=True))
    return plain | {
        "verdict": cell.verdict,
        "reason": cell.reason,
        "refuted": cell.contradicts,
        "lost": run.lost_postings,
        "postings": 2 * run.applied,
        "drift": run.drift,
        "opening": run.opening_total,
        "rate": run.transfers_per_s,
        "line": [[0.0, 0], *map(list, thin_out(history))],
    }


def tell_now(now: Snapshot) -> dict[str, Any]:
    """Return how far the run is, and what is seen of it."""
    view = now.view if now.state == "running" else None
    running = now.planned[(now.number - 1) % len(now.planned)] if now.state == "running" and now.planned else None
    return {
        "state": now.state,
        "sentence": now.sentence,
        "trouble": now.trouble,
        "number": now.number,
        "total": now.total,
        "done": now.done,
        "transfers": now.transfers,
        "instances": now.instances,
        "silent": sorted(now.silent),
        "running": running,
        "live": None if view is None else _tell_view(view),
    }


def _tell_view(view: View) -> dict[str, Any]:
    return {
        "opening": view.opening,
        "drift": view.samples[-1][1] if view.samples else 0,
        "line": [list(sample) for sample in thin_out(view.samples)],
        "overwritten": view.overwritten_count,
        "applied": view.applied,
        "rate": round(sum(view.rate.values()), 1),
        "scenes": [
            {"number": one.number, "text": f"{one.seconds:.1f} s  {one.sentence}"}
            for one in view.overwritten[-SCENES_MAX:]
        ],
    }


def thin_out(samples: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Return as many samples as a small picture can show, the last one among them."""
    step = -(-len(samples) // POINTS) or 1
    return [*samples[:-1:step], *samples[-1:]]


def tell_story(cell: Cell, control: Cell | None) -> dict[str, Any]:
    """Return how a cell came by its verdict: lines of text, and a picture if there is one."""
    run = cell.shown
    title = f"{run.strategy} on {run.topology}: {cell.verdict}"
    if cell.verdict == "broken":
        name = f"story-{run.topology}"
        return {
            "title": title,
            "lines": list(explain(cell)),
            "svg": space_time(name, run.scene) if len(run.scene) >= 2 else "",
        }
    lines = [f"All {2 * run.applied:,} postings are there, and the total is what it was at opening."]
    if cell.verdict == "safe" and control is not None:
        lines.append(
            f"The same transfers without a lock lost {control.shown.lost_postings:,}: the load could have broken it."
        )
    elif cell.reason:
        lines.append(f"That proves nothing here: {cell.reason}.")
    return {"title": title, "lines": lines, "svg": ""}


def tell_scene(one: Overwritten) -> dict[str, Any]:
    """Return how a posting came to be written over, with its picture."""
    picture = space_time(f"scene-{one.number}", one.scene, "written over")
    return {"title": "A posting that was written over", "lines": [one.sentence], "svg": picture}


def find_story(now: Snapshot, strategy: str, topology: str) -> Mapping[str, Any] | None:
    """Return the story of a cell that is done; None if there is no such cell."""
    cells = (
        {(cell.shown.strategy, cell.shown.topology): cell for cell in now.comparison.cells} if now.comparison else {}
    )
    cell = cells.get((strategy, topology))
    return None if cell is None else tell_story(cell, cells.get(("none", topology)))
