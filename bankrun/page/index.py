"""The first page, as HTML: the form as the address fills it in, and the recording's verdicts for who has no script."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def render_index(asked: Mapping[str, str]) -> str:
    """Return the page. What the address asks for fills the form, and starts nothing."""
    pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return legal(
        pages.get_template("index.html").render(
            form=read_form(asked), recording=read_recording(), version=_version_of_static()
        )
    )


@cache
def _version_of_static() -> str:
    """Return a name for the files as they are, so that a browser takes new ones when they change."""
    read = b"".join(path.read_bytes() for path in sorted(STATIC.iterdir()) if path.is_file())
    return sha256(read).hexdigest()[:12]


@cache
def style() -> str:
    """Return the page's style, with the colours and type that the report has too."""
    return THEME + SHAPES + (STATIC / "page.css").read_text(encoding="utf-8")
