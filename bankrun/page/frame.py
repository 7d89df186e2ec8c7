"""What the page of steps has around it: the colours that the first page has, and the links."""

from __future__ import annotations

from nicegui import ui

from bankrun.render.svg import THEME

STYLE = f"""<style>{THEME}
body {{ background: var(--paper); color: var(--ink); font-family: var(--sans) }}
.nicegui-content {{ max-width: 80rem; margin: 0 auto; padding: 1rem }}
.nicegui-error-popup[aria-hidden="false"] {{ inset: 0 0 auto 0; margin: 0; border-radius: 0; text-align: center;
  background: #b3261e !important; color: white }}
.body--dark .q-btn.text-primary, .body--dark a {{ color: var(--accent) !important }}
.mono {{ font-family: var(--mono); font-size: var(--small) }}
.broken {{ color: var(--broken); font-weight: 650 }} .safe {{ color: var(--safe); font-weight: 650 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere }}
</style>"""


def draw_frame(here: str, *, has_saved: bool) -> None:
    """Begin a page; ``here`` is its own address among the links, ``has_saved`` whether there are saved results."""
    ui.add_head_html(STYLE)
    ui.colors(primary="#1f5f96")
    with ui.row().classes("w-full items-baseline"):
        ui.label("bankrun").classes("text-2xl font-bold")
        saved = (("saved", "/saved/1"),) if has_saved else ()
        for name, target in (("compare", "/"), ("step by step", "/step"), *saved):
            link = ui.link(name, target)
            if target == here:
                link.classes("font-bold").props("aria-current=page")
