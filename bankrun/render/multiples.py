"""Small multiples: a panel for each strategy, all on one scale, where many lines in one plot would be a tangle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bankrun.render.svg import Picture

TOGETHER_MAX = 6
"""More lines than this have a panel each."""
WIDTH, COLUMNS, GAP = 820.0, 4, 14.0
TITLE, PLOT, BELOW = 34.0, 62.0, 22.0
NAME_MAX = 24

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """A strategy's panel: its name, what is to be read under it, its line or lines, and whether it lost anything."""

    title: str
    note: str
    lines: Sequence[Points]
    is_broken: bool = False


@dataclass(frozen=True, slots=True)
class Axes:
    """What all panels share. ``x`` is the range, or None where each has its own; ``stepped`` draws a line as stairs."""

    y: tuple[float, float]
    x: tuple[float, float] | None = None
    log: bool = False
    stepped: bool = False
    level: float | None = None
    """Where the dashed line lies."""
    legend: tuple[str, ...] = ()


def small_multiples(name: str, title: str, panels: Sequence[Panel], axes: Axes) -> str:
    """Return the panels as an SVG. A line that lost something is thick; the second line of a panel is dashed."""
    description = "; ".join(f"{panel.title}: {panel.note}" for panel in panels)
    picture = Picture(name, title, description, width=WIDTH)
    wide = (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS
    high = TITLE + PLOT + BELOW
    for number, panel in enumerate(panels):
        left = (number % COLUMNS) * (wide + GAP)
        _draw(picture, panel, axes, left, (number // COLUMNS) * high, wide)
    bottom = -(-len(panels) // COLUMNS) * high
    for number, line in enumerate(axes.legend):
        picture.add("text", "small", line, x=2.0, y=bottom + 6 + 16 * number)
    return picture.svg(bottom + 16 * len(axes.legend))


def _draw(picture: Picture, panel: Panel, axes: Axes, left: float, top: float, wide: float) -> None:
    title = panel.title if len(panel.title) <= NAME_MAX else panel.title[: NAME_MAX - 1] + "…"
    picture.add("text", "strong", title, x=left + 2, y=top + 14)
    picture.add("text", "small on-lost" if panel.is_broken else "small", panel.note, x=left + 2, y=top + TITLE - 5)
    picture.add("rect", "panel", x=left, y=top + TITLE, width=wide, height=PLOT, rx=4)
    low, high = axes.y
    last = max((x for line in panel.lines for x, _ in line), default=1.0)
    begin, end = axes.x or (0.0, last or 1.0)

    def across(x: float) -> float:
        log = math.log(max(x, begin) / begin) / math.log(end / begin) if axes.log else 0.0
        return left + 4 + (wide - 8) * min(1.0, log if axes.log else (x - begin) / (end - begin))

    def down(y: float) -> float:
        return top + TITLE + 5 + (PLOT - 10) * (high - y) / ((high - low) or 1.0)

    if axes.level is not None:
        picture.add("line", "level", x1=left, x2=left + wide, y1=down(axes.level), y2=down(axes.level))
    for number, line in enumerate(panel.lines):
        if not line:
            continue
        path = f"M{across(line[0][0]):.1f},{down(line[0][1]):.1f}"
        for x, y in line[1:]:
            path += f"H{across(x):.1f}V{down(y):.1f}" if axes.stepped else f"L{across(x):.1f},{down(y):.1f}"
        kind = "drawn broken-line" if panel.is_broken else "drawn"
        picture.add("path", kind + (" second" if number else ""), d=path)
