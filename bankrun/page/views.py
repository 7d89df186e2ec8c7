"""The live page: start a comparison, watch it, interrupt its instances, and step through an interleaving by hand.

It shows what ``bankrun.page.runner`` says, and asks that for everything; a visitor's own connection holds nothing
but what was typed. Only this machine may talk to it: a Host or an Origin that is not its own is refused, on the
WebSocket too.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlsplit

import plotly.graph_objects as go
from nicegui import app, core, ui
from starlette.responses import HTMLResponse

from bank.errors import BankError, CannotStart
from bank.strategies import STRATEGIES
from bankrun.page.runner import Live, Snapshot
from bankrun.proof.interleavings import CASES
from bankrun.proof.scheduler import CLOCK
from bankrun.proof.stepper import Position, Stepped
from bankrun.render.figures import Figure, comparison_figures, money_so_far
from bankrun.render.html import headline, report, summary
from bankrun.render.svg import ALONE, SHAPES, space_time
from bankrun.results.models import Comparison
from bankrun.results.topology import Topology
from bankrun.results.workload import Workload
from bankrun.runs.comparison import Plan
from bankrun.runs.sampling import Overwritten

REFRESH_SECONDS = 0.5
PAUSE_SECONDS = 3.0
RECONNECT_SECONDS = 30.0
STRATEGIES_SHOWN = ("none", "thread-lock", "row-lock")
TOPOLOGIES_SHOWN = "1x8, 3x8"
TRANSFERS_SHOWN = 2_000
SCENES_MAX = 8
LOOPBACK = ("127.0.0.1", "localhost", "::1")

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

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class OwnVisitorsOnly:
    """Lets through what was meant for this page: by its Host, and from a page of its own by its Origin.

    A browser lets any page open a WebSocket to anywhere, and sends that page's Origin with it; and a name that
    somebody else resolves to 127.0.0.1 arrives in the Host. Both are refused before anything else sees them.
    """

    def __init__(self, inner: Callable[[Scope, Receive, Send], Awaitable[None]], hosts: Sequence[str]) -> None:
        self._inner = inner
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_own(scope):
            await self._inner(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = b"this page answers to its own address only\n"
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": body})

    def _is_own(self, scope: Scope) -> bool:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        origins = [value for name, value in headers if name == "origin"]
        if len(hosts) != 1 or len(origins) > 1 or _name(f"//{hosts[0]}") not in self._hosts:
            return False
        # Another port of this machine is another site.
        return not origins or urlsplit(origins[0]).netloc.lower() == hosts[0].lower()


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _unframed(send: Send) -> Send:
    """Return a sender that forbids every other page to show this one in a frame."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            if not any(name.lower() == b"content-security-policy" for name, _ in headers):
                headers.append((b"content-security-policy", b"frame-ancestors 'none'"))
            message["headers"] = headers
        await send(message)

    return guarded


def serve(live: Live, *, host: str, port: int, hosts: Sequence[str] = ()) -> None:
    """Serve the page until the process is asked to end. ``hosts`` are names by which it may be called besides."""
    app.add_middleware(OwnVisitorsOnly, hosts=(*LOOPBACK, *hosts))
    # The WebSocket's own check, which NiceGUI switches off: None is the same origin only. The attribute is internal.
    core.sio.eio.cors_allowed_origins = None
    app.on_shutdown(live.close)

    @ui.page("/", title="bankrun")
    def _compare() -> None:
        _ComparePage(live)

    @ui.page("/step", title="bankrun: step by step")
    async def _step(at: str = "") -> None:
        await _StepPage(live).show(at)

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


def _frame(here: str) -> None:
    ui.add_head_html(STYLE)
    ui.colors(primary="#2370ad")
    with ui.row().classes("w-full items-baseline"):
        ui.label("bankrun").classes("text-2xl font-bold")
        for name, target in (("compare", "/"), ("step by step", "/step")):
            link = ui.link(name, target)
            if target == here:
                link.classes("font-bold").props("aria-current=page")


class _ComparePage:
    """One visitor's view of the comparison."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._seen = -1
        self._shown: Comparison | None = None
        self._instances: tuple[str, ...] = ()
        self._activity: dict[str, ui.label] = {}
        self._fed: dict[int, ui.button] = {}
        _frame("/")
        self._form()
        ui.label(
            "The same transfers, through each strategy, on one instance and on several. Where a lock does not reach, "
            "the total leaves its line: thread-lock holds on 1x8, in one process, and not on 3x8."
        )
        self._status = ui.label().classes("text-lg").props('role="status" aria-live="polite"')
        self._trouble = ui.label().classes("broken").props('role="alert"')
        self._progress = ui.linear_progress(show_value=False).props('aria-label="progress"')
        self._row = ui.row().classes("w-full")
        with ui.column().classes("w-full") as self._watching:
            self._numbers = ui.label()
            self._plot = ui.plotly(_plain(money_so_far([], 0))).classes("w-full")
            ui.label("Postings that were just written over; click one to see how it came about:")
            self._feed = ui.column().classes("w-full gap-1")
        self._results = ui.column().classes("w-full")
        self._scenes = ui.element()  # outside of the feed: a dialog goes with the place where it was made
        self._timer = ui.timer(REFRESH_SECONDS, self._refresh)
        self._refresh()

    def _form(self) -> None:
        with ui.row().classes("w-full items-end"):
            names = list(STRATEGIES)
            self._strategies = ui.select(names, multiple=True, value=list(STRATEGIES_SHOWN), label="strategies")
            self._strategies.classes("min-w-64").props("use-chips")
            self._topologies = ui.input("topologies", value=TOPOLOGIES_SHOWN).classes("w-40")
            self._transfers = ui.number("transfers", value=TRANSFERS_SHOWN, min=1, format="%d").classes("w-28")
            self._accounts = ui.number("accounts", value=Workload().accounts, min=2, format="%d").classes("w-24")
            self._think = ui.number("think ms", value=0, min=0).classes("w-24")
            self._start = ui.button("Start", on_click=self._begin)
            self._stop = ui.button("Stop", on_click=self._live.stop).props("outline")

    def _begin(self) -> None:
        try:
            self._live.start(
                Plan(
                    strategies=tuple(name for name in STRATEGIES if name in (self._strategies.value or ())),
                    topologies=tuple(
                        dict.fromkeys(Topology.parse(text) for text in str(self._topologies.value or "").split(","))
                    ),
                    workload=Workload(
                        accounts=_whole(self._accounts.value, "accounts"),
                        transfers=_whole(self._transfers.value, "transfers"),
                        think_ms=float(self._think.value or 0),
                    ),
                    seed=secrets.randbelow(2**31),
                )
            )
        except BankError as error:
            ui.notify(str(error), type="negative")
        self._refresh()

    def _refresh(self) -> None:
        now = self._live.snapshot()
        if now.version == self._seen:
            return
        self._seen = now.version
        idle = now.state == "idle"
        self._start.set_enabled(idle)
        self._stop.set_enabled(now.state in ("running", "starting", "waiting"))
        where = f"Run {now.number} of {now.total}: " if now.state == "running" else ""
        self._status.set_text(where + now.sentence)
        self._trouble.set_text(now.trouble)
        self._progress.set_visibility(not idle)
        self._progress.set_value(now.done / now.transfers if now.transfers else 0)
        self._show_instances(now)
        self._show_view(now)
        if now.comparison is not self._shown:
            self._shown = now.comparison
            self._results.clear()
            if now.comparison is not None:
                with self._results:
                    _show_result(now.comparison, finished=idle)
        elif idle and now.comparison is not None:
            self._results.clear()
            with self._results:
                _show_result(now.comparison, finished=True)

    def _show_instances(self, now: Snapshot) -> None:
        if now.instances != self._instances:
            self._instances = now.instances
            self._activity = {}
            self._row.clear()
            with self._row:
                for name in now.instances:
                    with ui.card().classes("p-3 gap-1"):
                        ui.label(name).classes("font-bold")
                        self._activity[name] = ui.label()
                        with ui.row().classes("gap-1"):
                            _small(f"Pause {PAUSE_SECONDS:g} s", f"pause {name}", lambda name=name: self._pause(name))
                            _small("Kill", f"kill {name}", lambda name=name: self._kill(name))
        for name, label in self._activity.items():
            applied = now.view.applied.get(name, 0) if now.view else 0
            rate = now.view.rate.get(name, 0.0) if now.view else 0.0
            silent = " · does not answer" if name in now.silent else ""
            label.set_text(f"{applied:,} applied · {rate:,.0f}/s{silent}")

    async def _pause(self, name: str) -> None:
        await self._interrupt(
            f"{name} is paused for {PAUSE_SECONDS:g} s", lambda: self._live.pause(name, PAUSE_SECONDS)
        )

    async def _kill(self, name: str) -> None:
        await self._interrupt(f"{name} is killed, and started again", lambda: self._live.kill(name))

    async def _interrupt(self, done: str, act: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(act)
        except BankError as error:
            ui.notify(str(error), type="negative")
        else:
            ui.notify(done)

    def _show_view(self, now: Snapshot) -> None:
        view = now.view
        self._watching.set_visibility(view is not None and now.state == "running")
        if view is None or now.state != "running":
            return
        drift = view.samples[-1][1] if view.samples else 0
        self._numbers.set_text(
            f"The bank holds {view.opening + drift:,}, {drift:+,} from where it began; "
            f"{view.overwritten_count:,} postings written over so far"
        )
        self._plot.update_figure(_plain(money_so_far(view.samples, view.opening)))
        self._show_overwritten(view.overwritten[-SCENES_MAX:])

    def _show_overwritten(self, newest: Sequence[Overwritten]) -> None:
        """Put new ones on top and take old ones away. The others stay what they are: one may be under a finger."""
        numbers = [one.number for one in newest]
        for number in [number for number in self._fed if number not in numbers]:
            self._fed.pop(number).delete()
        for one in newest:
            if one.number not in self._fed:
                with self._feed:
                    text = f"{one.seconds:.1f} s  {one.sentence}"
                    button = ui.button(text, on_click=lambda one=one: self._show_scene(one))
                button.props("flat dense no-caps align=left").classes("mono").move(target_index=0)
                self._fed[one.number] = button

    def _show_scene(self, one: Overwritten) -> None:
        with self._scenes, ui.dialog() as dialog, ui.card().classes("max-w-full"):
            ui.label(one.sentence)
            _picture(space_time(f"scene-{one.number}", one.scene, "written over"))
            ui.button("Close", on_click=dialog.close)
        dialog.on("hide", dialog.delete)
        dialog.open()


def _whole(value: object, name: str) -> int:
    if not isinstance(value, (int, float)) or value != int(value):
        raise CannotStart(f"{name}: a whole number is needed")
    return int(value)


def _small(text: str, label: str, act: Callable[..., Any]) -> None:
    ui.button(text, on_click=act).props(f'outline dense size=sm no-caps aria-label="{label}"')


def _plain(plot: go.Figure) -> dict[str, Any]:
    """Return a plot without buttons, in letters that are seen on white and on the dark page."""
    plot.update_layout(font={"color": "#757575"})
    return {**json.loads(plot.to_json()), "config": {"displayModeBar": False, "responsive": True}}


def _picture(svg: str) -> None:
    # Ours, made with an XML library: whatever a name holds, it is text.
    ui.html(svg, sanitize=False).classes("picture-box")


def _show_result(comparison: Comparison, *, finished: bool) -> None:
    if not comparison.cells:
        return
    title, tone, sentence, notes = headline(comparison)
    ui.label(f"{title}, begun {comparison.started}").classes("text-sm")
    ui.label(sentence if finished else f"So far: {sentence}").classes(f"text-lg {tone}")
    for note in notes if finished else ():
        ui.label(note)
    found = summary(comparison)
    ui.label(found.text)
    _table(found)
    if not finished:
        return
    ui.link("The whole report", "/report", new_tab=True)
    for figure in comparison_figures(comparison.cells):
        if figure.plot is not None or figure.svg:
            ui.label(figure.title).classes("text-lg font-bold mt-4")
            ui.label(figure.text)
        if figure.svg:
            _picture(figure.svg)
            with ui.element("pre").classes("mono"):
                ui.label("\n".join(figure.told)).style("white-space: pre-wrap")
        elif figure.plot is not None:
            ui.plotly(_plain(figure.plot)).classes("w-full").props(f'role=img aria-label="{escape(figure.title)}"')


def _table(figure: Figure) -> None:
    columns = [
        {"name": str(at), "label": name, "field": str(at), "align": "left" if at < 3 else "right"}
        for at, name in enumerate(figure.head)
    ]
    rows = [
        {"key": at, **{str(column): value for column, value in enumerate(row)}} for at, row in enumerate(figure.rows)
    ]
    table = ui.table(columns=columns, rows=rows, row_key="key").props("flat dense").classes("verdicts")
    table.add_slot(
        "body-cell-2",
        "<q-td :props=\"props\"><span :class=\"props.value.replace('!', '')\">{{ props.value }}</span></q-td>",
    )


class _StepPage:
    """One visitor's way through an interleaving. Where he is is in the address: it survives everything."""

    def __init__(self, live: Live) -> None:
        self._live = live
        _frame("/step")
        ui.label(
            "Two transfers, and you are the scheduler: let one of them take its next step. "
            "It is the workers' own code, on a real Postgres."
        )
        with ui.row().classes("items-end"):
            names = [name for name, strategy in STRATEGIES.items() if not strategy.routed_to_one]
            self._strategy = ui.select(names, value="thread-lock", label="strategy").classes("min-w-48")
            where = {"same": "in one instance", "two": "in two instances"}
            self._where = ui.select(where, value="two", label="where").classes("min-w-40")
            cases = {name: f"{name}: {case.summary}" for name, case in CASES.items()}
            self._case = ui.select(cases, value="same-pair", label="how they meet").classes("min-w-64")
            ui.button("Begin", on_click=self._begin)
        self._trouble = ui.label().classes("broken").props('role="alert"')
        self._note = ui.label().props('role="status"')
        self._body = ui.column().classes("w-full")

    async def _begin(self) -> None:
        await self._go(Position(str(self._strategy.value), str(self._where.value), str(self._case.value)))

    async def show(self, at: str) -> None:
        """Go to where the address says."""
        if not at:
            return
        try:
            position = Position.parse(at)
        except CannotStart as error:
            self._trouble.set_text(str(error))
            return
        self._strategy.value, self._where.value, self._case.value = (
            position.strategy,
            position.instances,
            position.case,
        )
        await ui.context.client.connected()
        await self._go(position)

    async def _go(self, position: Position) -> None:
        self._trouble.set_text("")
        self._note.set_text("It is being run.")
        try:
            stepped = await asyncio.wrap_future(self._live.step(position))
        except BankError as error:
            self._trouble.set_text(str(error))
            return
        finally:
            self._note.set_text("")
        assert isinstance(stepped, Stepped)
        ui.navigate.history.replace(f"/step?at={stepped.position}")
        self._body.clear()
        with self._body:
            self._draw(stepped)

    def _draw(self, stepped: Stepped) -> None:
        with ui.row():
            for who in ("A", "B", *((CLOCK,) if CLOCK in stepped.able else ())):
                name = "the lease runs out" if who == CLOCK else f"{who} goes on"
                button = ui.button(name, on_click=lambda who=who: self._go(stepped.position.then(who)))
                button.props("no-caps").set_enabled(who in stepped.able)
            back = ui.button("Back", on_click=lambda: self._go(stepped.position.back())).props("outline")
            back.set_enabled(bool(stepped.position.choices))
        if stepped.note:
            ui.label(stepped.note)
        for who in ("A", "B"):
            if stepped.passed is None:
                doing = stepped.able.get(who)
                ui.label(f"{who}: {_brief(doing)}" if doing else f"{who} waits, or is done").classes("mono")
        for line in stepped.outcome:
            ui.label(line).classes("safe" if stepped.passed else "broken")
        columns = [{"name": name, "label": name, "field": name, "align": "left"} for name in ("step", "A", "B")]
        rows = [
            {"key": at, "step": at, "A": "", "B": "", ("A" if who == CLOCK else who): "\n".join(lines)}
            for at, (who, lines) in enumerate(stepped.rows, start=1)
        ]
        if not rows:
            return
        table = (
            ui.table(columns=columns, rows=rows, row_key="key").classes("w-full mono").props("flat dense wrap-cells")
        )
        table.style("white-space: pre-wrap")
        ui.label(f"bankrun replay {stepped.position}").classes("mono")


def _brief(statement: str) -> str:
    """Return a statement in one line, with the names of what is not known before it is run."""
    return "next: " + re.sub(r"%\((\w+)\)s(?:::\w+)?", r"\1", " ".join(statement.split()))
