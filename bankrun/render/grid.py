"""A grid of verdicts as SVG: rows down, columns across, in each field a few letters and a colour. It knows no bank."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from bankrun.errors import CannotStart
from bankrun.render.svg import Picture

ROW_LABELS = 160
FIELDS_MAX = 50_000

Column = TypeVar("Column", bound=Hashable)


class Field(NamedTuple):
    """One field: the verdict that colours it, its text, whether it refutes a claim, and what it says in words."""

    verdict: str
    text: str
    refuted: bool
    words: str


def draw_grid(
    name: str,
    title: str,
    description: str,
    rows: Sequence[str],
    heads: Mapping[Column, tuple[str, str]],
    fields: Mapping[tuple[str, Column], Field],
) -> str:
    """Return a grid as SVG. ``heads`` has, for each column, two lines: what several have in common, and its own.

    Raises CannotStart for more fields than a picture can hold.
    """
    if len(rows) * len(heads) > FIELDS_MAX:
        raise CannotStart(f"a picture of {len(rows):,} rows and {len(heads):,} columns would have too many fields")
    width = max(66.0, 12 + 6.4 * max(len(below) for _, below in heads.values()))
    picture = Picture(name, title, description, width=ROW_LABELS + width * len(heads) + 10)
    previous = None
    for number, (above, below) in enumerate(heads.values()):
        left = ROW_LABELS + width * number
        if above != previous:
            picture.add("text", "strong", above, x=left + 2, y=16)
        previous = above
        picture.add("text", "small", below, x=left + 2, y=36)
    for line, row in enumerate(rows):
        top = 44.0 + 28 * line
        picture.add("text", "", row, x=4, y=top + 18)
        for number, column in enumerate(heads):
            kind, text, refuted, words = fields.get((row, column), Field("none", "n/a", False, f"{row}: n/a"))
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
