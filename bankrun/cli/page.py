"""``bankrun page``: the live page."""

from __future__ import annotations

from typing import Annotated

import typer

from bank.errors import CannotStart
from bank.settings import read_settings
from bankrun.cli.app import open_console

PORT_MAX = 65_535


def page(
    host: Annotated[str, typer.Option(help="The address to listen on: this machine's loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8080,
    also_called: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A host name by which it may be called. Repeatable.")
    ] = None,
) -> None:
    """Serve the live page: run comparisons by clicking, watch them, interrupt workers, step through interleavings."""
    if not 1 <= port <= PORT_MAX:
        raise CannotStart(f"port={port}: it must be between 1 and {PORT_MAX}")
    settings = read_settings()
    from bankrun.page.runner import Live, check_free
    from bankrun.page.site import serve

    check_free(host, port)
    live = Live(settings)
    open_console().print(f"http://{host}:{port}", markup=False, soft_wrap=True)
    serve(live, host=host, port=port, hosts=also_called or ())
