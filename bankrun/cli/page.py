"""``bankrun page``: the live page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bank.errors import CannotStart
from bank.settings import read_settings
from bank.strategies import STRATEGIES
from bankrun.cli.app import open_console
from bankrun.cli.options import choose_strategies

PORT_MAX = 65_535


def page(
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="A trial or a proof that was saved, to be stepped through."),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="A strategy of your own, as module:Class, to choose from. Repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on: this machine's loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8080,
    also_called: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A host name by which it may be called. Repeatable.")
    ] = None,
) -> None:
    """Serve the live page: run comparisons by clicking, watch them, interrupt workers, step through interleavings.

    It runs our strategies and those that are named here, and shows the files that are named here: no address, and
    nothing that is typed on the page, can name others.
    """
    if not 1 <= port <= PORT_MAX:
        raise CannotStart(f"port={port}: it must be between 1 and {PORT_MAX}")
    settings = read_settings()
    from bankrun.page.runner import Live, check_free
    from bankrun.page.saved import read_saved
    from bankrun.page.site import serve

    saved = read_saved(results or [])
    own = [name for name in choose_strategies(strategy or []) if name not in STRATEGIES]
    check_free(host, port)
    live = Live(settings, own)
    open_console().print(f"http://{host}:{port}{'/saved/1' if saved else ''}", markup=False, soft_wrap=True)
    serve(live, host=host, port=port, hosts=also_called or (), saved=saved)
