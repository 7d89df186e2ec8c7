"""Drawing without a library: an SVG that grows downwards, and the colours of all pictures. It knows no bank.

Pictures need no script. Everything from outside goes through the XML library, so a name cannot become markup. Colours
come from the page around a picture, or from a style of its own where it stands alone; no fact is told by colour only.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from bankrun.quoting import legal

THEME = (Path(__file__).parent / "theme.css").read_text(encoding="utf-8")
"""The colours, type and spacing of pictures, report and page: light, and dark where that is wanted."""
ALONE = THEME.partition("/* type */")[0]
"""The colours only: what a picture needs that stands alone."""

SHAPES = """
.picture text { fill: var(--ink); font: 13px system-ui, sans-serif }
.picture .small { font-size: 11.5px; fill: var(--muted) } .picture .strong { font-weight: 650 }
.picture .lane { stroke: var(--line) } .picture .paper { fill: var(--paper) }
.picture .other { fill: var(--soft); stroke: var(--muted) }
.picture .lost { fill: var(--broken-soft); stroke: var(--broken); stroke-width: 2; stroke-dasharray: 5 3 }
.picture .culprit { fill: var(--soft); stroke: var(--ink); stroke-width: 2 }
.picture .write { stroke: var(--ink); stroke-width: 2 }
.picture .arrow { stroke: var(--broken); stroke-width: 2.5; fill: none } .picture .head { fill: var(--broken) }
.picture .on-lost { fill: var(--broken) }
.picture .broken { fill: var(--broken-soft); stroke: var(--broken) } .picture text.broken-text { fill: var(--broken) }
.picture .safe { fill: var(--safe-soft); stroke: var(--line) }
.picture .inconclusive { fill: var(--unsure-soft); stroke: var(--line) }
.picture .panel { fill: var(--soft) } .picture .level { stroke: var(--muted); stroke-dasharray: 5 4 }
.picture .drawn { fill: none; stroke: var(--muted); stroke-width: 1.5 } .picture .second { stroke-dasharray: 4 3 }
.picture .broken-line { stroke: var(--broken); stroke-width: 2.5 }
.picture .none { fill: none; stroke: var(--line) } .picture .refuted { stroke-width: 3 }
"""


class Picture:
    """An SVG that grows downwards. ``title`` and ``description`` say what it shows to those who cannot see it."""

    def __init__(self, name: str, title: str, description: str, *, width: float) -> None:
        self.title, self.description = title, description
        self._width = width
        ids = f"{name}-title {name}-description"
        self._root = ET.Element(
            "svg", {"class": "picture", "xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-labelledby": ids}
        )
        ET.SubElement(self._root, "title", {"id": f"{name}-title"}).text = title
        ET.SubElement(self._root, "desc", {"id": f"{name}-description"}).text = description
        self._name = name

    def add(self, tag: str, kind: str = "", text: str | None = None, **attributes: object) -> ET.Element:
        """Add a shape. Numbers are rounded to what a screen can show; an underscore in a name is a hyphen."""
        written = {
            key.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else str(value)
            for key, value in attributes.items()
        }
        made = ET.SubElement(self._root, tag, ({"class": kind} if kind else {}) | written)
        made.text = text
        return made

    def arrow(self, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """Add a curved arrow, with a head of its own: a marker could not take the colour of a theme everywhere."""
        (x1, y1), (x2, y2) = begin, end
        down = 1 if y2 >= y1 else -1
        bend = max(24.0, abs(y2 - y1) / 2) * down
        path = f"M{x1:.1f},{y1:.1f} C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} {x2:.1f},{y2 - 7 * down:.1f}"
        self.add("path", "arrow", d=path)
        self.add("path", "head", d=f"M{x2:.1f},{y2:.1f} l-5,{-9 * down} l10,0 z")

    def svg(self, height: float) -> str:
        """Return the SVG, for a page that has the colours."""
        self._root.set("viewBox", f"0 0 {self._width:g} {height:g}")
        self._root.set("width", f"{self._width:g}")
        self._root.set("height", f"{height:g}")
        return legal(ET.tostring(self._root, encoding="unicode"))


def stand_alone(svg: str) -> str:
    """Return a picture with its own colours and paper, for a file of its own."""
    head, _, rest = svg.partition(">")
    return f'{head}><style>{ALONE}{SHAPES}</style><rect class="paper" width="100%" height="100%"/>{rest}'
