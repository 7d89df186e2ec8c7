"""Verdict, table and pictures as one HTML file: it works offline, without JavaScript, on paper and on a phone.

What it shows first is the verdict in a sentence, then the table, then the pictures, then how it was measured. Its
content-security policy forbids everything from outside; of scripts it allows two by their hashes: ours, and Plotly's,
which is taken from the installed package and travels compressed. It knows no bank.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bankrun.quoting import legal
from bankrun.render.svg import ALONE, SHAPES, THEME

HERE = Path(__file__).parent
PAPER = "@media print { :root { " + ALONE.partition("{")[2].partition("}")[0] + "} }"
"""On paper the colours are the light ones, whatever the screen's."""
VERDICTS = ("safe", "broken", "broken!", "inconclusive")


@dataclass(frozen=True, slots=True)
class Figure:
    """A title, a sentence that says what it shows, and a table; then an SVG or a Plotly figure, or neither.

    ``plot`` is a Plotly figure or None. ``told`` is text under the picture, line by line. The table's first column
    names the row.
    """

    name: str
    title: str
    text: str
    head: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    svg: str = ""
    plot: Any = None
    told: tuple[str, ...] = ()


class Headline(NamedTuple):
    """A result's title, its tone (a verdict's name), its verdict in a sentence, and what to know besides."""

    title: str
    tone: str
    verdict: str
    notes: Sequence[str] = ()


def render_page(
    headline: Headline, summary: Figure, found: Sequence[Figure], how: Sequence[tuple[str, str]], command: str
) -> str:
    """Return the file. ``how`` says how it was measured, ``command`` repeats it."""
    library = _library() if any(figure.plot is not None for figure in found) else Library("", _hash(""))
    script = (HERE / "report.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)} {library.hash}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = pages.get_template("report.html").render(
        title=headline.title,
        tone=headline.tone,
        verdict=headline.verdict,
        notes=headline.notes,
        policy=policy,
        verdicts=VERDICTS,
        style=Markup(THEME + PAPER + SHAPES + (HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        summary=_prepare(summary),
        figures=[_prepare(figure) for figure in found],
        how=_prepare(Figure("how", "How it was measured", "", ("what", "value"), list(how))),
        command=command,
        library=library.packed,
        script=Markup(script),  # noqa: S704 - ours
    )
    return legal(page)


class Library(NamedTuple):
    """Plotly's script, compressed as base64, and the hash by which a policy allows it."""

    packed: str
    hash: str


@cache
def _library() -> Library:
    source = get_plotlyjs()
    return Library(base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode(), _hash(source))


def _prepare(figure: Figure) -> dict[str, Any]:
    """Return a figure for the template, with ``words``: the columns that hold text and stand to the left."""
    plain = {name: getattr(figure, name) for name in Figure.__slots__}
    words = {at for row in figure.rows for at, value in enumerate(row) if re.search(r"[^\W\d_]{2}", value)}
    return {**plain, "svg": Markup(figure.svg), "plot": _json(figure), "words": words}  # noqa: S704 - our own SVG


def _json(figure: Figure) -> Markup:
    """Return a figure's plot for a script element: a ``</script>`` in a name must not end it."""
    return Markup("" if figure.plot is None else figure.plot.to_json(engine="json").replace("<", "\\u003c"))  # noqa: S704


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
