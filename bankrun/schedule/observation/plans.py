"""What a statement read, from the plan that auto_explain tells: relations, and keys where the plan names them.

A scan reads single rows only if one of the whole, AND-ed conditions of its node is ``key = constant`` or ``key = ANY
(constants)`` on its primary key. Conditions are deparsed expressions; they are taken apart token by token, and
whatever is not plainly of that form means the whole relation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bankrun.schedule.observation.footprints import ALL, Thing

CATALOG = "the catalog"
_SYSTEM_SCHEMAS = ("pg_catalog", "information_schema", "pg_toast")
_CONDITIONS = ("Index Cond", "Filter", "Recheck Cond")
_TELLS = re.compile(r"\b((?:pg|txid|lo|dblink)_\w+|dblink|loread|lowrite)\(")
_TELLS_NOTHING = re.compile(
    r"pg_(?:get_(?!sequence_data$)\w+|\w+_is_visible|(?:try_)?advisory_\w+|(?:column|size|input|encoding|char)_\w+"
    r"|backend_pid|client_encoding|collation_for|is_in_recovery|notify|postmaster_start_time|sleep|typeof)"
)
"""Functions of Postgres tell of others, or act on them, and no table shows what of it: pg_relation_size, dblink,
pg_current_snapshot, pg_sequence_last_value, pg_cancel_backend. These do not; advisory locks are seen otherwise."""
_WHO_LOCKS = re.compile(r"\bxmax\b")


@dataclass(slots=True)
class Reading:
    """What the plans of a step read, and which rows they would lock."""

    reads: set[Thing] = field(default_factory=set)
    wishes: set[Thing] = field(default_factory=set)
    """Rows of LockRows nodes: SKIP LOCKED leaves no other trace of those that it passes over."""
    opaque: str = ""
    """A node whose reading cannot be seen."""
    plans: int = 0
    harmless: int = 0
    """Plans that do nothing but draw from sequences, ask for the time or a random value, or return constants."""
    draws: bool = False
    """Whether one that writes nothing draws from a sequence: a program can compare what it draws twice.

    What is drawn for a row that is written counts as that row's name.
    """


def read_plans(
    messages: Sequence[str], keys: Mapping[str, str], partitions: Mapping[str, Collection[str]] | None = None
) -> Reading:
    """Return what these messages of auto_explain say; ``keys`` names the key column of each qualified table.

    ``partitions`` names those of each partitioned table: they are what others write.
    """
    reading = Reading()
    for message in messages:
        start = message.find("{")
        try:
            plan = json.loads(message[start:])["Plan"]
        except (ValueError, KeyError, TypeError):
            reading.opaque = "a plan that cannot be read"
            continue
        reading.plans += 1
        reading.harmless += _is_harmless(plan)
        draws = "nextval(" in message and '"ModifyTable"' not in message
        reading.draws = reading.draws or draws or "setval(" in message
        _walk(plan, keys, reading, locks=False)
        reading.opaque = _tells_of_others(json.dumps(plan)) or reading.opaque
    for name, key in [*reading.reads]:
        reading.reads |= {(partition, key) for partition in (partitions or {}).get(name, ())}
    return reading


def _tells_of_others(plan: str) -> str:
    """Return what in a plan tells of more than committed rows; nothing if all of it is known."""
    for name in _TELLS.findall(plan):
        if not _TELLS_NOTHING.fullmatch(name):
            return f"{name}(), which no table shows"
    # Where a row is written, xmax tells of the writer.
    return "xmax, which tells who locks a row" if "ModifyTable" not in plan and _WHO_LOCKS.search(plan) else ""


def _walk(node: Mapping[str, Any], keys: Mapping[str, str], reading: Reading, *, locks: bool) -> None:
    kind = node["Node Type"]
    relation = node.get("Relation Name")
    if kind in ("Foreign Scan", "Custom Scan"):
        reading.opaque = f"a {kind}"
    if kind == "Function Scan" and str(node.get("Function Name")).startswith("pg_"):
        reading.opaque = f"a look at the server itself by {node['Function Name']}"  # pg_locks, pg_stat_activity …
    if relation is not None and node.get("Schema") in _SYSTEM_SCHEMAS:
        reading.reads.add((CATALOG, ALL))
    elif relation is not None:
        name = f"{node.get('Schema')}.{relation}"
        if kind == "ModifyTable":
            if node.get("Conflict Resolution") or node.get("Operation") == "Merge":
                reading.reads.add((name, ALL))
        else:
            found = {(name, f"={key}") for key in _keys(node, keys.get(name))} or {(name, ALL)}
            reading.reads |= found
            if locks:
                reading.wishes |= found
    for child in node.get("Plans", ()):
        _walk(child, keys, reading, locks=locks or kind == "LockRows")


_DRAWS = frozenset({"nextval", "gen_random_uuid", "uuidv4", "uuidv7", "now", "clock_timestamp", "random"})


def _is_harmless(node: Mapping[str, Any]) -> bool:
    """Whether a plan computes nothing but values that are generated, and so are the same in any order but for names."""
    rows = node["Node Type"] == "Function Scan" and node.get("Function Name") == "generate_series"
    if node.get("Plans") or not (rows or node["Node Type"] == "Result"):
        return False
    known = {"Node Type", "Parallel Aware", "Async Capable", "Output", "Disabled", "Startup Cost", "Total Cost"}
    known |= {"Plan Rows", "Plan Width", "Function Name", "Schema", "Alias", "Function Call"}
    return set(node) <= known and all(_is_drawn(str(output)) for output in node.get("Output", ()))


def _is_drawn(output: str) -> bool:
    """Whether an expression is a call of one of a few functions with a constant, or a constant."""
    found = tokens(output)
    if not found:
        return False
    if found[0] in {("word", name) for name in _DRAWS}:
        return (
            found[1:2] == [("sign", "(")] and found[-1] == ("sign", ")") and _is_constant(found[2:-1], or_nothing=True)
        )
    return _is_constant(found)


def _is_constant(found: list[Token], *, or_nothing: bool = False) -> bool:
    return or_nothing if not found else _constant(found, is_array=False) is not None


def _keys(node: Mapping[str, Any], column: str | None) -> set[str]:
    """Return the keys that a scan is restricted to; none if it may read others."""
    if column is None:
        return set()
    for name in _CONDITIONS:
        if isinstance(node.get(name), str):
            for part in conjuncts(node[name]):
                found = _key_values(part, str(node.get("Alias")), column)
                if found is not None:
                    return found
    return set()


Token = tuple[str, str]
"""A kind (word, quoted, string, number, sign) and its text."""


def tokens(text: str) -> list[Token] | None:
    """Take a deparsed expression apart; None where it has something that is not expected here."""
    found: list[Token] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == " ":
            at += 1
        elif char in "'\"":
            end = _end_of_quoted(text, at)
            if end is None or (char == "'" and found and found[-1] in (("word", "E"), ("word", "B"), ("word", "X"))):
                return None
            inner = text[at + 1 : end - 1].replace(char * 2, char)
            found.append(("string" if char == "'" else "quoted", inner))
            at = end
        elif char.isalpha() or char == "_":
            end = _end_while(text, at, "_$")
            found.append(("word", text[at:end]))
            at = end
        elif char.isdigit():
            end = _end_while(text, at, ".")
            found.append(("number", text[at:end]))
            at = end
        elif text.startswith("::", at):
            found.append(("sign", "::"))
            at += 2
        else:
            found.append(("sign", char))
            at += 1
    return found


def _end_of_quoted(text: str, at: int) -> int | None:
    quote = text[at]
    at += 1
    while at < len(text):
        if text[at] == quote:
            if not text.startswith(quote * 2, at):
                return at + 1
            at += 1
        elif text[at] == "\\":
            return None
        at += 1
    return None


def _end_while(text: str, at: int, others: str) -> int:
    while at < len(text) and (text[at].isalnum() or text[at] in others):
        at += 1
    return at


def conjuncts(text: str) -> list[list[Token]]:
    """Return the whole conditions that are AND-ed at the top of an expression, without their parentheses."""
    found = tokens(text)
    if not found:
        return []
    inner = _unwrap(found)
    if inner is None:
        return []
    parts = list(_split_by_and(inner))
    if len(parts) == 1:
        return [inner]
    unwrapped = [_unwrap(part) for part in parts]
    return [part for part in unwrapped if part is not None]


def _unwrap(found: list[Token]) -> list[Token] | None:
    """Return what is in the parentheses around all of this; None if there are none."""
    if not found or found[0] != ("sign", "("):
        return None
    depth = 0
    for at, token in enumerate(found):
        depth += (token == ("sign", "(")) - (token == ("sign", ")"))
        if depth == 0:
            return found[1:-1] if at == len(found) - 1 else None
    return None


def _split_by_and(found: list[Token]) -> Iterator[list[Token]]:
    depth, part = 0, list[Token]()
    for token in found:
        depth += (token == ("sign", "(")) - (token == ("sign", ")"))
        if depth == 0 and token == ("word", "AND"):
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _key_values(part: list[Token], alias: str, column: str) -> set[str] | None:
    """Return the constants if this is ``alias.column = constant`` or ``alias.column = ANY (constants)``."""
    rest = _without_column(part, alias, column)
    if rest is None or rest[:1] != [("sign", "=")]:
        return None
    rest = rest[1:]
    if rest[:2] == [("word", "ANY"), ("sign", "(")] and rest[-1:] == [("sign", ")")]:
        constant = _constant(rest[2:-1], is_array=True)
        return None if constant is None else _elements(constant)
    constant = _constant(rest, is_array=False)
    return None if constant is None else {constant}


def _without_column(part: list[Token], alias: str, column: str) -> list[Token] | None:
    names = ("word", "quoted")
    if len(part) >= 3 and part[0][0] in names and part[1] == ("sign", ".") and part[2][0] in names:
        return part[3:] if (part[0][1], part[2][1]) == (alias, column) else None
    if part and part[0][0] in names and part[0][1] == column:
        return part[1:]
    return None


def _constant(rest: list[Token], *, is_array: bool) -> str | None:
    """Return a constant's text if these tokens are one, with or without its type."""
    if not rest:
        return None
    kind, value = rest[0]
    if kind == "number":
        return value if len(rest) == 1 and not is_array else None
    if kind != "string":
        return None
    if len(rest) == 1:
        return value
    if rest[1] != ("sign", "::"):
        return None
    type_name = rest[2:]
    is_a_type = bool(type_name) and all(token[0] == "word" or token in _BRACKETS for token in type_name)
    is_a_type = is_a_type and ("word", "COLLATE") not in type_name  # it may call equal what is written otherwise
    return value if is_a_type and (_BRACKETS[0] in type_name) == is_array else None


_BRACKETS = (("sign", "["), ("sign", "]"))


def _elements(array: str) -> set[str] | None:
    """Return the elements of an array's text, if none of them is quoted or an array."""
    if not (array.startswith("{") and array.endswith("}")) or any(char in array[1:-1] for char in '{}"\\'):
        return None
    elements = {element for element in array[1:-1].split(",") if element != "NULL"}
    return elements or None
