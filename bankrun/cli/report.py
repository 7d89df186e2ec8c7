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
    """Make one HTML file of a result of `compare`, `prove`, `chaos` or `try`. It needs no network and no JavaScript."""
    console = open_console(output, inputs=[result])
    if pictures is not None and not _is_directory(pictures):
        raise CannotStart(f"{pictures} is no directory: pictures are written into one that exists")
    found = store.read(result)
    page = make_report(found)
    drawn = (
        {} if pictures is None else {str(pictures / f"{one.name}.svg"): one.svg for one in figures(found) if one.svg}
    )
    store.check_writable(output, *drawn, inputs=[result])
    store.write(output, page)
    for destination, picture in drawn.items():
        store.write(destination, stand_alone(picture) + "\n")
    if output != store.STDOUT:
        console.print(f"{output}: {len(page.encode()) / 1e3:,.0f} kB", markup=False, soft_wrap=True)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long
        return False
