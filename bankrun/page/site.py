"""The page's server: its addresses, and who answers at each.

A page shows what ``bankrun.page.runner`` says, and asks that for everything; a visitor's own connection holds nothing
but what was typed.
"""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import app, core, ui
from starlette.responses import HTMLResponse

from bankrun.page.compare_page import ComparePage
from bankrun.page.runner import Live
from bankrun.page.step_page import StepPage
from bankrun.page.visitors import OwnVisitorsOnly
from bankrun.render.report import report

RECONNECT_SECONDS = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(live: Live, *, host: str, port: int, hosts: Sequence[str] = ()) -> None:
    """Serve the page until the process is asked to end. ``hosts`` are names by which it may be called besides."""
    app.add_middleware(OwnVisitorsOnly, hosts=(*LOOPBACK, *hosts))
    # The WebSocket's own check, which NiceGUI switches off: None is the same origin only. The attribute is internal.
    core.sio.eio.cors_allowed_origins = None
    app.on_shutdown(live.close)

    @ui.page("/", title="bankrun")
    def _compare() -> None:
        ComparePage(live)

    @ui.page("/step", title="bankrun: step by step")
    async def _step(at: str = "") -> None:
        await StepPage(live).show(at)

    @app.get("/report")
    def _report() -> HTMLResponse:
        comparison = live.snapshot().comparison
        if comparison is None or not comparison.cells:
            return HTMLResponse("<!doctype html><title>bankrun</title><p>There is no result yet.", status_code=404)
        return HTMLResponse(report(comparison))

    ui.run(
        host=host,
        port=port,
        title="bankrun",
        reload=False,
        show=False,
        dark=None,
        show_welcome_message=False,
        # Beside a load that takes every core, a browser may well be silent for longer than the default of 3 s.
        reconnect_timeout=RECONNECT_SECONDS,
    )
