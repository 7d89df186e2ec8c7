"""Pictures without a library: the space-time diagram of a lost posting, and the matrices of a proof and of faults.

They are made from saved results, as SVG that needs no script. Everything from outside goes through the XML library, so
a name cannot become markup. Colours come from the page around a picture, or from a style of its own where it stands
alone; no fact is told by colour only.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bankrun.proof.interleavings import HEADINGS, CaseResult
from bankrun.results.store import FaultCell

ALONE = """
:root { --ink: #1c2330; --muted: #5a6475; --line: #c9d0da; --paper: #ffffff; --soft: #eef1f5;
        --broken: #b3261e; --broken-soft: #fbe4e2; --safe: #1b6e4a; --safe-soft: #dff3e8;
        --unsure: #7a5200; --unsure-soft: #fbeecb }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --muted: #a3adbb; --line: #465062; --paper: #14181f; --soft: #232a35;
          --broken: #ff8a80; --broken-soft: #4a1f1c; --safe: #6fd6a3; --safe-soft: #16382a;
          --unsure: #f2c14e; --unsure-soft: #41330f } }
"""
"""The colours: also those of the report, which has its own place for them."""

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
.picture .none { fill: none; stroke: var(--line) } .picture .refuted { stroke-width: 3 }
"""

Posting = Mapping[str, Any]

LABELS = 128
ROW_LABELS = 160
WIDTH = 820
LANE = 78
BAR = 18


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
        return ET.tostring(self._root, encoding="unicode")


def standing_alone(svg: str) -> str:
    """Return a picture with its own colours and paper, for a file of its own."""
    head, _, rest = svg.partition(">")
    return f'{head}><style>{ALONE}{SHAPES}</style><rect class="paper" width="100%" height="100%"/>{rest}'


def space_time(name: str, scene: Sequence[Posting], fate: str = "lost") -> str:
    """Return a lost posting as a picture: a lane for each thread, a bar from read to commit for each posting.

    The first posting of the scene is the lost one, the second the one that overwrote it. ``fate`` is the word for what
    became of the first: while a run goes on, one that is written over may yet be found by somebody who had read it.
    """
    lost, culprit = scene[:2]
    begin = min(_time(posting["read_at"]) for posting in scene)
    span_ms = max(_milliseconds(begin, _end(posting)) for posting in scene) or 1.0
    lanes = sorted({_lane(posting) for posting in scene})
    picture = Picture(
        name,
        f"A lost posting on account {lost['account']}",
        f"{_who(lost)} read {lost['before']:,} and wrote {lost['after']:,}. {_who(culprit)} read "
        f"{culprit['before']:,} and wrote {culprit['after']:,}: the {lost['delta']:+,} of the first is gone.",
        width=WIDTH,
    )

    def x(at: datetime) -> float:
        return LABELS + (WIDTH - LABELS - 20) * _milliseconds(begin, at) / span_ms

    def y(posting: Posting) -> float:
        return 30.0 + LANE * lanes.index(_lane(posting))

    for number, lane in enumerate(lanes):
        middle = 30.0 + LANE * number + BAR / 2
        picture.add("line", "lane", x1=LABELS, x2=WIDTH - 10, y1=middle, y2=middle)
        picture.add("text", "strong", lane[0], x=4, y=middle - 2)
        picture.add("text", "small", f"thread {lane[1]}", x=4, y=middle + 13)
    for posting in (*scene[2:], lost, culprit):
        kind = "lost" if posting is lost else "culprit" if posting is culprit else "other"
        _bar(picture, posting, kind, fate, x, y(posting))
    down = y(culprit) >= y(lost)
    picture.arrow(
        (x(_end(lost)), y(lost) + (BAR if down else 0)),
        (x(_written(culprit)), y(culprit) + (0 if down else BAR)),
    )
    bottom = 30.0 + LANE * len(lanes)
    for step in range(5):
        at = span_ms * step / 4
        picture.add(
            "text",
            "small",
            f"{at:.2f} ms",
            x=LABELS + (WIDTH - LABELS - 20) * step / 4,
            y=bottom + 8,
            text_anchor="start" if step == 0 else "end" if step == 4 else "middle",
        )
    legend = "dashed: the lost posting · mark in a bar: its write · arrow: to the posting that wrote over it"
    picture.add("text", "small", legend, x=4, y=bottom + 30)
    return picture.svg(bottom + 40)


def _bar(picture: Picture, posting: Posting, kind: str, fate: str, x: Any, top: float) -> None:
    begin, end = x(_time(posting["read_at"])), x(_end(posting))
    width = max(3.0, end - begin)
    bar = picture.add("rect", kind, x=begin, y=top, width=width, height=BAR, rx=3)
    ET.SubElement(bar, "title").text = (
        f"entry {posting['entry']}, transfer {str(posting['transfer'])[:8]}: read {posting['before']:,}, "
        f"wrote {posting['after']:,} ({posting['delta']:+,})"
    )
    written = x(_written(posting))
    picture.add("line", "write", x1=written, x2=written, y1=top, y2=top + BAR)
    if kind == "other":
        return
    said = f"reads {posting['before']:,}, writes {posting['after']:,} ({posting['delta']:+,})"
    lost = kind == "lost"
    said += f"  {fate}" if lost else ""
    # The text begins with its bar; where it might not fit, it ends with the picture. Bold letters have up to 8 units.
    fits = begin + 8 * len(said) <= WIDTH - 10
    at, anchor = (begin, "start") if fits else (WIDTH - 10.0, "end")
    picture.add("text", "on-lost strong" if lost else "strong", said, x=at, y=top - 6, text_anchor=anchor)
    picture.add("text", "small", f"entry {posting['entry']}", x=at, y=top + BAR + 14, text_anchor=anchor)


def _lane(posting: Posting) -> tuple[str, str]:
    return str(posting["instance"]), str(posting["thread"]).rpartition("_")[2]


def _who(posting: Posting) -> str:
    instance, thread = _lane(posting)
    return f"{instance}, thread {thread},"


def _time(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _written(posting: Posting) -> datetime:
    return _time(posting["written_at"] or posting["read_at"])


def _end(posting: Posting) -> datetime:
    return max(_time(posting["committed_at"] or posting["read_at"]), _written(posting))


def _milliseconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds() * 1000


def proof_matrix(name: str, cases: Sequence[CaseResult]) -> str:
    """Return a proof as a matrix: strategies down, cases across, once for each number of instances."""
    sides = list(dict.fromkeys(case.instances for case in cases))
    columns = sorted(dict.fromkeys((case.instances, case.case) for case in cases), key=lambda one: sides.index(one[0]))
    cells = {
        (case.strategy, (case.instances, case.case)): (
            "broken" if case.broken else "safe",
            f"{case.broken}/{case.interleavings}",
            case.contradicts,
            f"{case.strategy}, {case.case}, {_where(case.instances)}: {case.broken} of {case.interleavings} are broken",
        )
        for case in cases
    }
    broken, total = sum(case.broken for case in cases), sum(case.interleavings for case in cases)
    picture = Picture(
        name,
        "Interleavings",
        f"{broken:,} of {total:,} are broken: {_of_each(case.strategy for case in cases if case.broken)}.",
        width=_matrix_width([HEADINGS.get(case, case) for _, case in columns]),
    )
    heads = [(_where(where), HEADINGS.get(case, case)) for where, case in columns]
    return _matrix(picture, list(dict.fromkeys(case.strategy for case in cases)), columns, heads, cells)


def fault_matrix(name: str, found: Sequence[FaultCell]) -> str:
    """Return what faults did as a matrix: faults down, strategies across."""
    columns = list(dict.fromkeys((cell.topology, cell.strategy) for cell in found))
    cells = {
        (cell.fault, (cell.topology, cell.strategy)): (
            cell.verdict,
            f"{cell.lost_postings:,} lost" if cell.lost_postings else cell.verdict,
            False,
            _said(cell),
        )
        for cell in found
    }
    broken = [cell for cell in found if cell.verdict == "broken"]
    picture = Picture(
        name,
        "Faults",
        f"{len(broken)} of {len(found)} cells are broken: {_of_each(cell.strategy for cell in broken)}.",
        width=_matrix_width([strategy for _, strategy in columns]),
    )
    rows = list(dict.fromkeys(cell.fault for cell in found))
    return _matrix(picture, rows, columns, columns, cells)


def _matrix(
    picture: Picture,
    rows: Sequence[str],
    columns: Sequence[tuple[str, str]],
    heads: Sequence[tuple[str, str]],
    cells: Mapping[tuple[str, tuple[str, str]], tuple[str, str, bool, str]],
) -> str:
    """Draw cells of (kind, text, whether it refutes a claim, what it says in words)."""
    width = _column_width([below for _, below in heads])
    previous = None
    for number, (above, below) in enumerate(heads):
        left = ROW_LABELS + width * number
        if above != previous:
            picture.add("text", "strong", above, x=left + 2, y=16)
        previous = above
        picture.add("text", "small", below, x=left + 2, y=36)
    for line, row in enumerate(rows):
        top = 44.0 + 28 * line
        picture.add("text", "", row, x=4, y=top + 18)
        for number, column in enumerate(columns):
            kind, text, refuted, words = cells.get((row, column), ("none", "n/a", False, f"{row}: n/a"))
            left = ROW_LABELS + width * number
            box = picture.add(
                "rect", kind + (" refuted" if refuted else ""), x=left + 1, y=top + 1, width=width - 3, height=25, rx=3
            )
            ET.SubElement(box, "title").text = words
            style = "broken-text strong" if kind == "broken" else "small" if kind == "none" else ""
            picture.add(
                "text", style, text + ("!" if refuted else ""), x=left + width / 2, y=top + 18, text_anchor="middle"
            )
    return picture.svg(44 + 28 * len(rows) + 8)


def _said(cell: FaultCell) -> str:
    return (
        f"{cell.fault}, {cell.strategy} on {cell.topology}: {cell.verdict}, {cell.lost_postings} postings lost, "
        f"{cell.duplicates} applied twice, {cell.pending} pending, {cell.extra_deliveries} extra deliveries"
    )


def _column_width(heads: Sequence[str]) -> float:
    return max(66.0, 12 + 6.4 * max(map(len, heads)))


def _matrix_width(heads: Sequence[str]) -> float:
    return ROW_LABELS + _column_width(heads) * len(heads) + 10


def _where(instances: str) -> str:
    return {"same": "in one instance", "two": "in two instances"}.get(instances, instances)


def _of_each(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or "none"
