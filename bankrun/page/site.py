"""The page's server: its addresses, and who answers at each.

A page shows what ``bankrun.page.runner`` says, and asks that for everything; a visitor's own connection holds nothing
but what was typed. What changes is pushed over a WebSocket; what starts or stops something is a POST. Both are answered
to the page's own origin only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from nicegui import app, core, ui
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from bank.errors import BankError
from bankrun.errors import BankrunError
from bankrun.page.feed import as_text, find_story, tell_all, tell_now, tell_scene
from bankrun.page.form import read_plan
from bankrun.page.index import POLICY, STATIC, render_index, render_saved, style
from bankrun.page.runner import Live, Snapshot
from bankrun.page.saved import Saved, tell_saved
from bankrun.page.step_page import StepPage
from bankrun.page.visitors import OwnVisitorsOnly
from bankrun.render.report import report

RECONNECT_SECONDS = 30.0
PUSH_SECONDS = 0.5
PAUSE_SECONDS = 3.0
BODY_MAX = 4_096
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-store"}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(live: Live, *, host: str, port: int, hosts: Sequence[str] = (), saved: Sequence[Saved] = ()) -> None:
    """Serve the page until the process is asked to end. ``hosts`` are names by which it may be called besides.

    ``saved`` are the results that it shows besides: no request can name another.
    """
    app.add_middleware(OwnVisitorsOnly, hosts=(*LOOPBACK, *hosts))
    # The WebSocket's own check, which NiceGUI switches off: None is the same origin only. The attribute is internal.
    core.sio.eio.cors_allowed_origins = None
    app.on_shutdown(live.close)
    _add_views(live, has_saved=bool(saved))
    _add_saved(saved)
    _add_actions(live)

    @app.websocket("/live")
    async def _live(socket: WebSocket) -> None:
        await push(socket, live)

    @ui.page("/step", title="bankrun: step by step")
    async def _step(at: str = "") -> None:
        await StepPage(live, has_saved=bool(saved)).show(at)

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
        # Nothing here is bound: the loop that would look ten times a second would be all that an idle page does.
        binding_refresh_interval=None,
    )


def _add_views(live: Live, *, has_saved: bool) -> None:
    """Add what can be looked at."""

    @app.get("/")
    def _index(request: Request) -> HTMLResponse:
        return HTMLResponse(render_index(request.query_params, live.own, has_saved=has_saved), headers=HEADERS)

    @app.get("/static/{version}/{name}")
    def _static(version: str, name: str) -> Response:
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        if name == "page.css":
            return Response(style(), media_type="text/css", headers=headers)
        if name not in {path.name for path in STATIC.iterdir()}:
            return Response("There is no such file.", status_code=404)
        return FileResponse(STATIC / name, headers=headers)

    @app.get("/story")
    def _story(strategy: str, topology: str) -> Response:
        return _answer(find_story(live.snapshot(), strategy, topology))

    @app.get("/scene/{number}")
    def _scene(number: int) -> Response:
        found = live.scene(number)
        return _answer(None if found is None else tell_scene(found))

    @app.get("/report")
    def _report() -> HTMLResponse:
        comparison = live.snapshot().comparison
        if comparison is None or not comparison.cells:
            return HTMLResponse("<!doctype html><title>bankrun</title><p>There is no result yet.", status_code=404)
        return HTMLResponse(report(comparison))


def _add_saved(saved: Sequence[Saved]) -> None:
    """Add the views of saved results, each by its number from 1."""
    told = [tell_saved(one) for one in saved]

    @app.get("/saved/{number}")
    def _saved(number: int) -> HTMLResponse:
        if not 1 <= number <= len(told):
            return HTMLResponse("<!doctype html><title>bankrun</title><p>There is no such result.", status_code=404)
        page = render_saved(told[number - 1], number, [one.name for one in saved])
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/saved/{number}/result")
    def _result(number: int) -> Response:
        return _answer(told[number - 1] if 1 <= number <= len(told) else None)


def _add_actions(live: Live) -> None:
    """Add what can be asked for."""

    @app.post("/start")
    async def _start(request: Request) -> JSONResponse:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > BODY_MAX:
                return JSONResponse({"trouble": "That is too long for a plan."}, status_code=400)
        asked = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        return await _do("", lambda: live.start(read_plan(asked, live.own)))

    @app.post("/stop")
    async def _stop() -> JSONResponse:
        return await _do("", live.stop)

    @app.post("/pause/{name}")
    async def _pause(name: str) -> JSONResponse:
        return await _do(f"{name} is paused for {PAUSE_SECONDS:g} s.", lambda: live.pause(name, PAUSE_SECONDS))

    @app.post("/kill/{name}")
    async def _kill(name: str) -> JSONResponse:
        return await _do(f"{name} is killed, and starts again.", lambda: live.kill(name))


def _answer(found: object) -> Response:
    told = {"trouble": "That is no longer there."} if found is None else found
    return Response(as_text(told), 404 if found is None else 200, media_type="application/json")


async def _do(done: str, act: Callable[[], None]) -> JSONResponse:
    """Do what was asked for, and say so, or say in a sentence why not."""
    try:
        await asyncio.to_thread(act)
    except (BankError, BankrunError) as error:
        return JSONResponse({"trouble": str(error)}, status_code=400)
    return JSONResponse({"done": done})


async def push(socket: WebSocket, live: Live) -> None:
    """Tell one browser everything, and then what changes, until it goes."""
    await socket.accept()
    gone = asyncio.ensure_future(_wait_until_gone(socket))
    seen: Snapshot | None = None
    with live.watched(), suppress(WebSocketDisconnect, RuntimeError):
        while not gone.done():
            now = live.snapshot()
            if seen is None or now.version != seen.version:
                await socket.send_text(as_text(_tell_change(seen, now)))
                seen = now
            await asyncio.wait([gone], timeout=PUSH_SECONDS)
    gone.cancel()


def _tell_change(seen: Snapshot | None, now: Snapshot) -> dict[str, Any]:
    """Return what a browser has not seen yet."""
    if seen is None or now.comparison is not seen.comparison or now.planned != seen.planned:
        return tell_all(now)
    told = tell_now(now)
    film = now.view.film if now.view is not None else None
    if film is not None and (seen.view is None or film is not seen.view.film):
        told["film"] = film.as_json()
    return told


async def _wait_until_gone(socket: WebSocket) -> None:
    """Return when a browser has closed its connection. It has nothing to say, and what it says is not kept."""
    with suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()
