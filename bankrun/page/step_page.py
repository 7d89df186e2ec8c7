"""The page on which a visitor is the scheduler: two transfers, one step at a time."""

from __future__ import annotations

import asyncio
import re

from nicegui import ui

from bank.errors import BankError, CannotStart
from bank.outside import known_strategy
from bank.strategies import STRATEGIES
from bankrun.errors import BankrunError
from bankrun.page.frame import draw_frame
from bankrun.page.runner import Live
from bankrun.proof.cases import CASES
from bankrun.proof.stepper import Position, Stepped
from bankrun.schedule.trace import CLOCK


class StepPage:
    """One visitor's way through an interleaving. The address says where it is: it survives everything."""

    def __init__(self, live: Live, *, has_saved: bool = False) -> None:
        self._live = live
        draw_frame("/step", has_saved=has_saved)
        ui.label(
            "Two transfers, and you are the scheduler: let one of them take its next step. "
            "It is the workers' own code, on a real Postgres."
        )
        with ui.row().classes("items-end"):
            known = [strategy for name in (*live.own, *STRATEGIES) if (strategy := known_strategy(name)) is not None]
            names = [strategy.name for strategy in known if not strategy.routed_to_one]
            first = names[0] if live.own else "thread-lock"
            self._strategy = ui.select(names, value=first, label="strategy").classes("min-w-48")
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
        except (BankError, BankrunError) as error:
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
                ui.label(f"{who}: {_shorten(doing)}" if doing else f"{who} waits, or is done").classes("mono")
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


def _shorten(statement: str) -> str:
    """Return a statement in one line, with the names of what is not known before it is run."""
    return "next: " + re.sub(r"%\((\w+)\)s(?:::\w+)?", r"\1", " ".join(statement.split()))
