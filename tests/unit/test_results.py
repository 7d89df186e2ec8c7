"""Results as files: one reader and one writer, the contract in docs/results.md, and commands that can be repeated."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankrun.bench.benchmark import BenchPlan
from bankrun.chaos.cells import CHAOS_LOAD, ChaosPlan
from bankrun.chaos.faults import FAULTS
from bankrun.chaos.soak import SoakPlan
from bankrun.cli.app import cli
from bankrun.errors import CannotStart
from bankrun.proof.matrix import ALL_CASES, ProofPlan
from bankrun.render.report import report
from bankrun.results import reading, store
from bankrun.results.diff import changes
from bankrun.results.distance import Distance
from bankrun.results.models.proof import HEADINGS, SUMMARIES
from bankrun.results.models.trial import TrialResult
from bankrun.results.provenance import Provenance, write_command
from bankrun.results.topology import Topology
from bankrun.results.workload import OPTIONS, Workload
from bankrun.runs.comparison import Plan
from bankrun.runs.provenance import comparison_command
from tests.results import RESULTS, bench, comparison, soak

ROOT = Path(__file__).parents[2]


by_kind = pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.kind)


@by_kind
def test_what_is_written_is_what_is_read(tmp_path: Path, result: Any) -> None:
    store.save(str(tmp_path / "x.json"), result)
    assert store.read(tmp_path / "x.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@by_kind
def test_a_result_of_0_1_which_did_not_name_its_kind_is_read_as_what_it_is(tmp_path: Path, result: Any) -> None:
    plain = result.as_json()
    assert plain.pop("kind") == result.kind
    if isinstance(result, TrialResult):
        return  # 0.1 had none
    (tmp_path / "x.json").write_text(json.dumps(plain))
    assert store.read(tmp_path / "x.json") == result


def test_every_kind_has_a_sample_here() -> None:
    assert [result.kind for result in RESULTS] == list(store.KINDS)


@pytest.mark.parametrize("wanted", RESULTS, ids=lambda result: result.kind)
@by_kind
def test_a_command_that_needs_one_kind_takes_no_other(tmp_path: Path, result: Any, wanted: Any) -> None:
    store.save(str(tmp_path / "x.json"), result)
    if wanted is result:
        assert store.read_as(type(wanted), tmp_path / "x.json") == result
        return
    with pytest.raises(CannotStart, match=f"the kind {result.kind}; a {wanted.kind} is needed"):
        store.read_as(type(wanted), tmp_path / "x.json")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 2}, "made by a newer bankrun: its schema is 2"),
        ({"kind": "verdict"}, "made by a newer bankrun: this one knows no result of the kind 'verdict'"),
        ({"kind": ["x"]}, "newer bankrun"),
        ({"schema": 0}, "not a result of bankrun"),
        ({"schema": True}, "not a result of bankrun"),
        ({"schema": "1"}, "not a result of bankrun"),
        ({"seed": None}, "seed: a comparison has one"),
        ({"workload": {"accounts": 1}}, "workload: accounts=1: it must be between 2 and"),
        ({"cells": []}, "cells: List should have at least 1 item"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({**comparison().as_json(), **change}))
    with pytest.raises(CannotStart, match=re.escape(sentence)) as refusal:
        store.read(tmp_path / "x.json")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_what_is_no_number_is_refused_wherever_it_stands(tmp_path: Path, number: str) -> None:
    text = json.dumps(comparison().as_json()).replace('"seconds": 5.0', f'"seconds": {number}')
    assert number in text
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CannotStart, match=f"{re.escape(number)} is not a number"):
        store.read(tmp_path / "x.json")


def test_a_file_that_is_too_big_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(reading.FILE_BYTES_MAX + 1)
    with pytest.raises(CannotStart, match="it has more than 128 MB"):
        store.read(path)


@pytest.mark.parametrize("result", [soak(), bench()], ids=lambda result: result.kind)
def test_kinds_without_a_report_or_a_diff_say_so(result: Any) -> None:
    with pytest.raises(CannotStart, match=f"this is a {result.kind}"):
        report(result)
    with pytest.raises(CannotStart, match=f"there is no diff of two results of the kind {result.kind}"):
        changes(result, result)


ODD = st.one_of(st.none(), st.booleans(), st.integers(-5, 2**70), st.text(max_size=5), st.just([]), st.just({}))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_result_is_read_or_refused_in_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    plain = deepcopy(data.draw(st.sampled_from([result.as_json() for result in RESULTS])))
    place: Any = plain
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(ODD)
    (tmp_path / "x.json").write_text(json.dumps(plain))
    try:
        found = store.read(tmp_path / "x.json")
    except CannotStart as error:
        refusal = str(error)
    else:
        refusal = "x.json"
        json.dumps(found.as_json(), allow_nan=False)
    assert "x.json" in refusal
    assert "\n" not in refusal


def test_in_a_project_with_a_bank_of_its_own_results_can_be_written_drawn_and_some_read(tmp_path: Path) -> None:
    for name in ("bank", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('theirs')\n")
    for result in RESULTS:
        store.save(str(tmp_path / f"{result.kind}.json"), result)
    code = """
from pathlib import Path
from bankrun.render.grid import Field, draw_grid
from bankrun.render.html import Figure, Headline, render_page
from bankrun.results.provenance import Provenance, describe_machine, write_command
from bankrun.results.store import KINDS, read, write
provenance = Provenance.begin(write_command("trial", "shop.py:buy"), environment=describe_machine())
svg = draw_grid("x", "X", "", ["A"], {1: ("", "B")}, {("A", 1): Field("safe", "0/1", False, "none is broken")})
page = render_page(Headline("X", "safe", "It holds."), Figure("t", "T", ""), [Figure("x", "X", "", svg=svg)], [], "")
write("page.html", page)
for kind in KINDS:
    try:
        print(read(Path(kind + ".json")).kind)
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "0/1" in (tmp_path / "page.html").read_text()
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("CannotStart")] == ["proof", "bench", "trial"]
    assert sum("this needs bankrun's own package 'bank'" in line for line in lines) == 3


# The contract in docs/results.md.

NOT_SAVED = {"CaseResult": {"broken_ids"}, "Run": set(), "Cell": set()}
DERIVED = {"Audit": {"drift", "passed"}}
"""Keys that are computed when a result is saved."""


def saved_types() -> dict[str, type]:
    """Return every dataclass that is part of a saved result, by its name."""
    found: dict[str, type] = {"Provenance": Provenance}
    for module in store.KINDS.values():
        for value in vars(import_module(module)).values():
            if isinstance(value, type) and is_dataclass(value) and value is not Topology:
                found[value.__name__] = value
    for one in list(found.values()):
        for name in inner_types(one):
            found[name.__name__] = name
    return found


def inner_types(one: type) -> Iterator[type]:
    """Yield the dataclasses that the fields of one hold, and theirs."""
    for hint in get_type_hints(one).values():
        for part in flatten(hint):
            if isinstance(part, type) and is_dataclass(part):
                yield part
                yield from inner_types(part)


def flatten(hint: Any) -> Iterator[Any]:
    """Yield all types in a type."""
    yield hint
    for inner in get_args(hint):
        yield from flatten(inner)


def say(hint: Any) -> str:
    """Return a type as docs/results.md says it."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any", type(None): "null"}
    origin, inner = get_origin(hint), get_args(hint)
    if hint in names:
        return names[hint]
    if getattr(hint, "__name__", "") == "datetime":
        return "time"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {say(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(say, inner))}]"
    if origin is dict:
        return f"object of {say(inner[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(say, inner))
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def saved_fields(one: type) -> dict[str, str]:
    """Return the keys that a dataclass is saved with, and their types in words."""
    hints = get_type_hints(one)
    names = [field.name for field in fields(one) if field.name not in {"provenance", *NOT_SAVED.get(one.__name__, ())}]
    said = {name: say(hints[name]) for name in names}
    return said | {
        name: say(get_type_hints(getattr(one, name).fget)["return"]) for name in DERIVED.get(one.__name__, ())
    }


def documented() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the tables of docs/results.md: for each heading the other columns of each field."""
    tables: dict[str, dict[str, tuple[str, ...]]] = {}
    heading = ""
    for line in (ROOT / "docs" / "results.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("| `"):
            name, *rest = (part.strip() for part in line.strip("| ").split(" | "))
            tables.setdefault(heading, {})[name.strip("`")] = tuple(rest)
    return tables


def test_the_page_has_a_table_for_every_type_and_no_other() -> None:
    assert sorted(documented()) == sorted(saved_types())


@pytest.mark.parametrize("name", sorted(saved_types()))
def test_the_page_names_every_field_with_its_type_and_nothing_else(name: str) -> None:
    assert {field: rest[0] for field, rest in documented()[name].items()} == saved_fields(saved_types()[name])
    assert all(len(rest) == 3 and rest[2] for rest in documented()[name].values())


def test_the_page_says_of_each_parameter_of_a_workload_what_the_help_says() -> None:
    told = documented()["Workload"]
    assert {name: rest[2] for name, rest in told.items()} == {name: option.help for name, option in OPTIONS.items()}


@by_kind
def test_a_file_has_the_keys_that_the_page_names(result: Any) -> None:
    head = {"schema", "kind", *saved_fields(Provenance)} - ({"seed"} if result.provenance.seed is None else set())
    assert set(result.as_json()) == head | set(saved_fields(type(result)))


def test_every_case_that_is_proved_is_told_in_words() -> None:
    assert set(SUMMARIES) == {*ALL_CASES, "three"}
    assert set(HEADINGS) <= set(SUMMARIES)


# The saved command.

COMMANDS: dict[str, Callable[[], str]] = {
    "compare": lambda: comparison_command(
        Plan(
            ("none", "row-lock"),
            (Topology(1, 8), Topology(3, 8, Distance(own=(("w2", 40.0),)))),
            Workload(think_ms=0.5, constraint=True),
            seed=7,
            seconds=9.5,
        )
    ),
    "prove": lambda: ProofPlan(("none", "row-lock"), "two", ("drain",)).command(),
    "chaos": lambda: ChaosPlan(
        tuple(FAULTS)[:2], ("row-lock",), Topology(2, 4), CHAOS_LOAD, 3, restart_broker=("restart-it",)
    ).command(),
    "soak": lambda: write_command("soak", topology="3x4", **plan_values(SoakPlan(kills=30))),
    "bench": lambda: BenchPlan(("row-lock",), Topology(2, 2), 600, 50, 10, 2, 9).command(),
}
NOT_REPEATED = {
    "help",
    "wide",
    "strict",
    "dry_run",
    "database_url",  # no address is in what is saved
    "report",
    "junitxml",
    "show",
    "list_faults",
    "distance_ms",
}  # what is far is in the topology


def plan_values(plan: Any) -> dict[str, Any]:
    """Return a plan's values."""
    return {field.name: getattr(plan, field.name) for field in fields(plan)}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_saved_command_has_every_option_and_is_understood(name: str) -> None:
    written = COMMANDS[name]()
    group: Any = typer.main.get_command(cli)
    command = group.get_command(None, name)
    words = written.split()
    assert words[:2] == ["bankrun", name]
    context = command.make_context(name, words[2:])
    given = {word for word in words if word.startswith("--")}
    for parameter in command.params:
        if parameter.name in NOT_REPEATED or parameter.name.startswith("export_"):
            continue
        if isinstance(context.params[parameter.name], bool):
            continue
        if (name, parameter.name) == ("prove", "preemptions"):  # which only three transfers have
            continue
        assert given & set(parameter.opts), parameter.name


def test_flags_lists_and_numbers_are_written_as_a_shell_takes_them() -> None:
    assert write_command("x", "a b", case=["c", "d"], flag=True, no=False, none=None, think_ms=0.10, n=0) == (
        "bankrun x 'a b' --case c --case d --flag --think-ms 0.1 --n 0"
    )
