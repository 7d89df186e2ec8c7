"""How far a comparison is: a bar on a terminal, a line for each finished run elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bankrun.render.terminal import Terminal
from bankrun.results.models.comparison import Run
from bankrun.results.topology import Topology


class Bars:
    """Bars on a terminal, for the block; they leave nothing behind, and elsewhere nothing is seen of them."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()


class BarProgress(Bars):
    """Two bars: the cells of the comparison, and the transfers of the cell that runs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._cells = self._bars.add_task("cells", total=None)
        self._transfers = self._bars.add_task("transfers", total=None)

    def cell_begins(self, strategy: str, topology: Topology, number: int, total: int) -> None:
        """Begin the next bar."""
        self._bars.update(self._cells, completed=number - 1, total=total)
        self._bars.reset(self._transfers, description=f"{strategy} on {topology}", total=None)

    def transfers(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bars.update(self._transfers, completed=done, total=total)

    def cell_ends(self, run: Run) -> None:
        """Move the bar of the cells."""
        self._bars.advance(self._cells)


class LineProgress:
    """One line for each finished run: for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._place = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def cell_begins(self, strategy: str, topology: Topology, number: int, total: int) -> None:
        """Remember which run it is."""
        self._place = f"{number}/{total}"

    def transfers(self, done: int, total: int) -> None:
        """Say nothing."""

    def cell_ends(self, run: Run) -> None:
        """Print the line."""
        self._console.print(f"{self._place} {run.strategy} on {run.topology}: {run.seconds:.1f} s", soft_wrap=True)


class Silence:
    """Nothing at all: for a caller that has a progress of its own."""

    def cell_begins(self, strategy: str, topology: Topology, number: int, total: int) -> None:
        """Say nothing."""

    def transfers(self, done: int, total: int) -> None:
        """Say nothing."""

    def cell_ends(self, run: Run) -> None:
        """Say nothing."""


class Steps(Bars):
    """A bar for work of several steps on a terminal, and a line for each that is told elsewhere."""

    def __init__(self, total: int) -> None:
        self._console = Terminal(stderr=True)
        super().__init__(self._console)
        self._task = self._bars.add_task("", total=total, completed=-1)

    def begin(self, what: str) -> None:
        """Say what begins."""
        self._bars.update(self._task, advance=1, description=what)

    def tell(self, what: str) -> None:
        """Say what was found: for pipes and logs."""
        if not self._console.is_terminal:
            self._console.print(what, markup=False, soft_wrap=True)


class Amount(Bars):
    """A bar for a long run of one thing on a terminal, and a line a minute elsewhere."""

    LINE_SECONDS = 60.0

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console)
        self._console = console
        self._total = total
        self._task = self._bars.add_task("", total=total)
        self._line_at = time.monotonic() + self.LINE_SECONDS

    def tell(self, done: int, what: str) -> None:
        """Say how far it is, and what it is at."""
        self._bars.update(self._task, completed=done, description=what)
        if not self._console.is_terminal and time.monotonic() > self._line_at:
            self._line_at = time.monotonic() + self.LINE_SECONDS
            self._console.print(f"{done:,} of {self._total:,}", soft_wrap=True)
