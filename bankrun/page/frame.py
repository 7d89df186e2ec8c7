"""What both pages have around them: the colours, the links, and pictures that fit in."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go
from nicegui import ui

from bankrun.render.svg import ALONE, SHAPES

STYLE = f"""<style>{ALONE}{SHAPES}
.nicegui-content {{ max-width: 72rem; margin: 0 auto; padding: 1rem }}
.nicegui-error-popup[aria-hidden="false"] {{ inset: 0 0 auto 0; margin: 0; border-radius: 0; text-align: center;
  background: #b3261e !important; color: white }}
.verdicts {{ max-width: 100%; overflow-x: auto }}
.body--dark .q-btn.text-primary, .body--dark a {{ color: #8fc1ea !important }}
.picture-box {{ overflow-x: auto; max-width: 100% }} .mono {{ font-family: ui-monospace, monospace; font-size: .85rem }}
.broken {{ color: var(--broken); font-weight: 650 }} .safe {{ color: var(--safe); font-weight: 650 }}
.inconclusive {{ color: var(--unsure); font-weight: 650 }} pre {{ white-space: pre-wrap; overflow-wrap: anywhere }}
</style>"""


def draw_frame(here: str) -> None:
    """Begin a page; ``here`` is its own address among the links."""
    ui.add_head_html(STYLE)
    ui.colors(primary="#2370ad")
    with ui.row().classes("w-full items-baseline"):
        ui.label("bankrun").classes("text-2xl font-bold")
        for name, target in (("compare", "/"), ("step by step", "/step")):
            link = ui.link(name, target)
            if target == here:
                link.classes("font-bold").props("aria-current=page")


def plain_plot(plot: go.Figure) -> dict[str, Any]:
    """Return a plot without buttons, in letters that are seen on white and on the dark page."""
    plot.update_layout(font={"color": "#757575"})
    # As fractions: of the money of a strategy that writes nonsense, an integer may have more than 64 bits.
    plain = json.loads(plot.to_json(engine="json"), parse_int=float)
    return {**plain, "config": {"displayModeBar": False, "responsive": True}}


def draw_picture(svg: str) -> None:
    """Show an SVG of ours."""
    # Ours, made with an XML library: whatever a name holds, it is text.
    ui.html(svg, sanitize=False).classes("picture-box")
