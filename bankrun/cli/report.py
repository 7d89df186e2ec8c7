"""``bankrun report``: a saved result as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bankrun.cli.app import open_console
from bankrun.errors import CannotStart
from bankrun.render.figures import figures
from bankrun.render.report import report as make_report
from bankrun.render.svg import stand_alone
from bankrun.results import store


def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What `--export-json` wrote.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="`-` is stdout.")] = "report.html",
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Write each SVG into a file of its own, too.")
    ] = None,
) -> None:
    """Make one HTML file of a result of `compare`, `prove` or `chaos`. It needs no network, and no JavaScript."""
    console = open_console(output)
    if pictures is not None and not pictures.is_dir():
        raise CannotStart(f"{pictures} is no directory: pictures are written into one that exists")
    found = store.read(result)
    page = make_report(found)
    store.write(output, page)
    if pictures is not None:
        for figure in figures(found):
            if figure.svg:
                store.write(str(pictures / f"{figure.name}.svg"), stand_alone(figure.svg) + "\n")
    if output != store.STDOUT:
        console.print(f"{output}: {len(page.encode()) / 1e3:,.0f} kB", markup=False, soft_wrap=True)
