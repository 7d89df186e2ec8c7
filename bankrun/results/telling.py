"""From what a replay saw to what is saved of it: rows bounded and comparable, and the lines of a program.

It knows no bank. A state of the database is the rows of each table as JSON, as ``bankrun.schedule`` reads them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bankrun.results.models.schedule import SourceTold, TableTold
from bankrun.results.reading import read_bounded

ROWS_MAX = 20
TABLES_MAX = 8
TEXT_MAX = 80
LINES_MAX, LINE_MAX = 80, 160
SOURCE_BYTES_MAX = 1024**2

State = Mapping[str, Sequence[str]]
Tables = dict[str, TableTold]


def tell_states(states: Sequence[State], columns: Mapping[str, Sequence[str]] | None = None) -> list[Tables]:
    """Return states of one database as they are told: of the tables in which they differ, what differs first.

    Rows that are the same in all states are told as far as there is room, and counted where there is none. With
    ``columns``, only these tables are told, and of them only these columns.
    """
    wanted = columns if columns is not None else dict.fromkeys(name for state in states for name in state)
    differing = [name for name in wanted if len({tuple(state.get(name, ())) for state in states}) > 1][:TABLES_MAX]
    told: list[Tables] = [{} for _ in states]
    for name in differing:
        shown = columns[name] if columns is not None else ()
        for tables, table in zip(told, _tell_table([state.get(name, ()) for state in states], shown), strict=True):
            tables[_shorten_name(name)] = table
    return told


def _tell_table(states: Sequence[Sequence[str]], columns: Sequence[str]) -> list[TableTold]:
    """Return one table in each state."""
    common = set(states[0]).intersection(*states[1:])
    most = max(len([row for row in state if row not in common]) for state in states)
    parsed = {text: json.loads(text, parse_float=str) for state in states for text in state}
    names = list(columns) or list(dict.fromkeys(name for row in parsed.values() for name in row))
    kept = sorted(common, key=lambda text: _order(parsed[text], names))[: max(0, ROWS_MAX - most)]
    told = []
    for state in states:
        rows = [text for text in state if text in kept or text not in common]
        rows = sorted(rows, key=lambda text: _order(parsed[text], names))[:ROWS_MAX]
        told.append(
            TableTold(names, [[_tell(parsed[row].get(name)) for name in names] for row in rows], len(state) - len(rows))
        )
    return told


def _order(row: Mapping[str, Any], names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return by what rows are sorted: numbers as numbers, and before texts."""
    return [
        (0, value, "") if isinstance(value := row.get(name), int) else (1, 0, json.dumps(value, default=str))
        for name in names
    ]


def _tell(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def _shorten_name(table: str) -> str:
    """Return a table's name as people write it."""
    return table.removeprefix("public.").removeprefix("bankrun.")


def tell_source(file: Path, name: str = "") -> SourceTold | None:
    """Return the lines of a file; of a long one those of what is called ``name`` at its top; None if there are none."""
    try:
        text = read_bounded(file, SOURCE_BYTES_MAX).decode("utf-8", "replace")
        first, last = _find(text, name) if name else (1, len(text.splitlines()))
    except (OSError, ValueError, SyntaxError):
        return None
    lines = [line.rstrip()[:LINE_MAX] for line in text.splitlines()]
    if len(lines) > LINES_MAX:
        return SourceTold(file.name, first, lines[first - 1 : last][:LINES_MAX])
    return SourceTold(file.name, 1, lines)


def _find(text: str, name: str) -> tuple[int, int]:
    """Return the first and the last line of a function or a class."""
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            return first, node.end_lineno or node.lineno
    raise ValueError(f"there is no {name}")
