"""The pages as HTML: the first with the form as the address fills it in, and those of saved results.

Who has no script finds the recording's verdicts there, and the steps of a schedule, as tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bankrun.page.form import read_form
from bankrun.quoting import legal
from bankrun.render.svg import SHAPES, THEME

HERE = Path(__file__).parent
STATIC = HERE / "static"
RECORDING = "recording.json"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def read_recording() -> dict[str, Any]:
    """Return the recording that is shipped."""
    plain: dict[str, Any] = json.loads((STATIC / RECORDING).read_text(encoding="utf-8"))
    return plain


def render_index(asked: Mapping[str, str], own: Sequence[str] = (), *, has_saved: bool = False) -> str:
    """Return the page. What the address asks for fills the form, and starts nothing.

    ``own`` are the strategies that the server was started with besides ours.
    """
    form = read_form(asked, own)
    return _render("index.html", here="/", has_saved=has_saved, form=form, recording=read_recording())


def render_saved(told: Mapping[str, Any], number: int, files: Sequence[str]) -> str:
    """Return the page of a saved result, the one with this number of all ``files``."""
    return _render("saved.html", here="/saved", has_saved=True, told=told, number=number, files=files)


def _render(template: str, **values: object) -> str:
    pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return legal(pages.get_template(template).render(version=_version_of_static(), **values))


@cache
def _version_of_static() -> str:
    """Return a name for the files as they are, so that a browser takes new ones when they change."""
    read = b"".join(path.read_bytes() for path in sorted(STATIC.iterdir()) if path.is_file())
    return sha256(read).hexdigest()[:12]


@cache
def style() -> str:
    """Return the page's style, with the colours and type that the report has too."""
    return THEME + SHAPES + (STATIC / "page.css").read_text(encoding="utf-8")
