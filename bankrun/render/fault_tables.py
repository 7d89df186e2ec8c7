"""What faults did, as tables: for the terminal and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from bankrun.render.tables import COLOURS, fit_columns
from bankrun.render.terminal import counted
from bankrun.results.models.chaos import Chaos, ChaosCell
from bankrun.results.models.soak import Soak


def chaos_tables(cells: Sequence[ChaosCell], width: int) -> list[Table]:
    """Return faults and strategies as a matrix for the terminal: what was lost, or how long recovery took.

    Where the strategies do not fit beside each other, it is several tables, one below the other.
    """
    if not cells:
        return []
    names, lines = _chaos_columns(cells)
    columns = [[_shorten(value) for value in column] for column in zip(*lines, strict=True)]
    left, *widths = (_column_width(name, column) for name, column in zip(names, columns, strict=True))
    by_place = {(cell.fault, cell.strategy): cell for cell in cells}
    tables = []
    for block in fit_columns(widths, width - left):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
        table.add_column("fault", no_wrap=True)
        for number in block:
            table.add_column(_break_at_hyphens(names[number]), justify="right", no_wrap=True)
        for row, fault in enumerate(columns[0]):
            found = [(by_place.get((fault, names[number])), columns[number][row]) for number in block]
            table.add_row(fault, *(Text(value, COLOURS[cell.verdict]) if cell else "" for cell, value in found))
        tables.append(table)
    return tables


def _break_at_hyphens(name: str) -> str:
    """Return a strategy's name in as many lines as it has words: seven of them fit into 80 columns."""
    return name.replace("-", "\n")


def _column_width(name: str, column: Sequence[str]) -> int:
    return max(map(len, [*_break_at_hyphens(name).split("\n"), *column])) + 2  # the space between columns


CHAOS_LEGEND = (
    "seconds until every transfer had its outcome; -N: N postings lost; "
    "?: held, and claims nothing there, or was not struck"
)


def _shorten(value: str) -> str:
    """Return a value without the words that the legend has: seven strategies fit into 80 columns then."""
    return value.replace("lost ", "-").replace(" s", "")


def _chaos_columns(cells: Sequence[ChaosCell]) -> tuple[list[str], list[list[str]]]:
    strategies = list(dict.fromkeys(cell.strategy for cell in cells))
    by_place = {(cell.fault, cell.strategy): cell for cell in cells}
    faults = dict.fromkeys(cell.fault for cell in cells)
    lines = [[fault, *(_chaos_value(by_place.get((fault, strategy))) for strategy in strategies)] for fault in faults]
    return ["fault", *strategies], lines


def _chaos_value(cell: ChaosCell | None) -> str:
    if cell is None:
        return ""
    if cell.lost_postings:
        return f"lost {cell.lost_postings:,}"
    if cell.pending:
        return f"{cell.pending:,} left"
    if cell.verdict == "broken":
        return "broken"
    return f"{cell.recovery_s:.1f} s" + ("" if cell.verdict == "safe" else "?")


def chaos_markdown(result: Chaos) -> str:
    """Return the matrix as Markdown, with what it takes to run it again."""
    names, lines = _chaos_columns(result.cells)
    safe = {(cell.fault, cell.strategy) for cell in result.cells if cell.verdict == "safe"}
    head = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    rows = []
    for fault, *values in lines:
        bold = [
            value if (fault, strategy) in safe or not value or value.endswith("?") else f"**{value}**"
            for strategy, value in zip(names[1:], values, strict=True)
        ]
        rows.append("| " + " | ".join([f"`{fault}`", *bold]) + " |")
    survivors = [cell for cell in result.cells if cell.verdict == "safe"]
    totals = (
        f"Seconds until every transfer had its outcome, or what was lost; `?`: held, and claims nothing there, or was "
        "not struck. "
        f"In the {len(survivors)} cells that are safe: {sum(cell.applied for cell in survivors):,} applied, "
        f"{sum(cell.duplicates for cell in survivors)} twice, {sum(cell.pending for cell in survivors)} pending, "
        f"{sum(cell.extra_deliveries for cell in survivors):,} extra deliveries."
    )
    left_out = [f"Not run: `{name}`: {why}." for name, why in result.not_run.items()]
    return "\n".join([*head, *rows, "", totals, *left_out, "", result.provenance.sentence()]) + "\n"


def _soak_figures(result: Soak) -> list[tuple[str, str]]:
    plan, counts = result.plan, result.transfers
    decided = sum(count for status, count in counts.items() if status != "pending")
    rate = decided / result.seconds if result.seconds else 0.0
    figures = [
        ("transfers", f"{plan.transfers:,} over {plan.accounts:,} accounts, {plan.strategy} on {result.topology}"),
        ("think time", f"{plan.think_ms:g} ms between a transfer's read and its write"),
        ("took", f"{result.seconds:,.0f} s, {rate:,.0f} a second with everything that struck"),
        ("applied, refused", f"{counts['applied']:,}, {counts['refused']:,}"),
        ("failed, pending", f"{counts['failed']:,}, {counts['pending']:,}"),
        ("lost, applied twice", f"{result.lost_postings:,}, {result.duplicates:,}"),
        ("published again", f"{result.republished:,} by the reconcilers"),
    ]
    if result.idle_strikes:
        figures.append(
            ("struck in vain", f"{counted(result.idle_strikes, 'fault')}, with nothing left to do: give more transfers")
        )
    return figures


def soak_table(result: Soak) -> Table:
    """Return a soak's figures for the terminal."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in _soak_figures(result):
        table.add_row(name, value)
    for kind, seconds in result.recovery_s.items():
        times = sum(struck.kind == kind for struck in result.struck)
        table.add_row(f"{times} x {kind}", f"recovery {seconds.median:.1f} s median, {seconds.worst:.1f} s worst")
    return table


def soak_markdown(result: Soak) -> str:
    """Return a soak's figures as Markdown, with what it takes to run it again."""
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _soak_figures(result)), ""]
    lines += ["| fault | times | recovery, median s | worst s |", "|---|---:|---:|---:|"]
    for kind, seconds in result.recovery_s.items():
        times = sum(struck.kind == kind for struck in result.struck)
        lines.append(f"| `{kind}` | {times} | {seconds.median:.1f} | {seconds.worst:.1f} |")
    every = [struck.recovery_s for struck in result.struck]
    if every:  # none, where it was cut short before the first
        lines.append(f"| all | {len(every)} | {statistics.median(every):.1f} | {max(every):.1f} |")
    return "\n".join([*lines, "", result.provenance.sentence()]) + "\n"
