"""The page that starts a comparison, watches it, interrupts its instances, and shows what came of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from nicegui import ui

from bank.errors import BankError, CannotStart
from bank.strategies import STRATEGIES
from bankrun.errors import BankrunError
from bankrun.page.frame import draw_frame, draw_picture, plain_plot
from bankrun.page.runner import Live, Snapshot
from bankrun.render.figures import comparison_figures, money_so_far
from bankrun.render.html import Figure
from bankrun.render.report import headline, summary
from bankrun.render.space_time import space_time
from bankrun.results.models.comparison import Comparison
from bankrun.results.topology import Topology
from bankrun.results.workload import OPTIONS, Workload
from bankrun.runs.comparison import Plan
from bankrun.runs.sampling import Overwritten

REFRESH_SECONDS = 0.5
PAUSE_SECONDS = 3.0
STRATEGIES_SHOWN = ("none", "thread-lock", "row-lock")
TOPOLOGIES_SHOWN = "1x8, 3x8"
SCENES_MAX = 8
LOAD = Workload()


class ComparePage:
    """One visitor's view of the comparison."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._seen = -1
        self._shown: Comparison | None = None
        self._instances: tuple[str, ...] = ()
        self._activity: dict[str, ui.label] = {}
        self._fed: dict[int, ui.button] = {}
        draw_frame("/")
        self._draw_form()
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
            self._plot = ui.plotly(plain_plot(money_so_far([], 0))).classes("w-full")
            ui.label("Postings that were just written over; click one to see how it came about:")
            self._feed = ui.column().classes("w-full gap-1")
        self._results = ui.column().classes("w-full")
        self._scenes = ui.element()  # outside of the feed: a dialog goes with the place where it was made
        self._timer = ui.timer(REFRESH_SECONDS, self._refresh)
        self._refresh()

    def _draw_form(self) -> None:
        with ui.row().classes("w-full items-end"):
            names = list(STRATEGIES)
            self._strategies = ui.select(names, multiple=True, value=list(STRATEGIES_SHOWN), label="strategies")
            self._strategies.classes("min-w-64").props("use-chips")
            self._topologies = ui.input("topologies", value=TOPOLOGIES_SHOWN).classes("w-40")
            self._load = {
                name: ui.number(
                    name.replace("_", " "), value=getattr(LOAD, name), min=option.least, format=_form_of(name)
                )
                for name, option in OPTIONS.items()
                if option.on_page
            }
            for name, field in self._load.items():
                field.classes("w-28").tooltip(OPTIONS[name].help)
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
                    workload=replace(LOAD, **{name: _read(name, field.value) for name, field in self._load.items()}),
                    seed=secrets.randbelow(2**31),
                )
            )
        except (BankError, BankrunError) as error:
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
                            _add_button(
                                f"Pause {PAUSE_SECONDS:g} s", f"pause {name}", lambda name=name: self._pause(name)
                            )
                            _add_button("Kill", f"kill {name}", lambda name=name: self._kill(name))
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
        except (BankError, BankrunError) as error:
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
        self._plot.update_figure(plain_plot(money_so_far(view.samples, view.opening)))
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
            draw_picture(space_time(f"scene-{one.number}", one.scene, "written over"))
            ui.button("Close", on_click=dialog.close)
        dialog.on("hide", dialog.delete)
        dialog.open()


def _is_whole(name: str) -> bool:
    return isinstance(getattr(LOAD, name), int)


def _form_of(name: str) -> str | None:
    return "%d" if _is_whole(name) else None


def _read(name: str, value: object) -> Any:
    """Return a number that was typed. Raises CannotStart for anything else."""
    if not _is_whole(name):
        return float(value) if isinstance(value, (int, float)) else 0.0
    if not isinstance(value, (int, float)) or value != int(value):
        raise CannotStart(f"{name}: a whole number is needed")
    return int(value)


def _add_button(text: str, label: str, act: Callable[..., Any]) -> None:
    ui.button(text, on_click=act).props(f'outline dense size=sm no-caps aria-label="{label}"')


def _show_result(comparison: Comparison, *, finished: bool) -> None:
    if not comparison.cells:
        return
    title, tone, sentence, notes = headline(comparison)
    ui.label(f"{title}, begun {comparison.provenance.started}").classes("text-sm")
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
            draw_picture(figure.svg)
            with ui.element("pre").classes("mono"):
                ui.label("\n".join(figure.told)).style("white-space: pre-wrap")
        elif figure.plot is not None:
            ui.plotly(plain_plot(figure.plot)).classes("w-full").props(f'role=img aria-label="{escape(figure.title)}"')


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
