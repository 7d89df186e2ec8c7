"""Files that nobody meant: every command that reads one gives a right answer, or one sentence and exit code 2."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankrun.cli import app
from bankrun.errors import CannotStart
from bankrun.quoting import NOT_IN_MARKUP
from bankrun.results import reading, store
from bankrun.results.diff import probability
from bankrun.trials import trial as trials
from tests.results import RESULTS, cell, comparison, run

ROOT = Path(__file__).parents[2]
EXAMPLES = 5_000 if os.environ.get("SOUNDNESS") else 60
EVIL = "\x1b]0;mine\x07\x1b[2J\x00\x9b31m\u202e\r"
"""A title, an erased screen, a NUL, a colour by one byte, letters from right to left, and the line's begin."""
SHOP = "def buy(number):\n    pass\n"


class Started(BaseException):
    """The file was right, and servers would be started now."""


@dataclass
class Answer:
    """What a command came to: ``code`` is None where servers would be started."""

    code: int | None
    out: str
    err: str
    made: set[str]


Ask = Callable[..., Answer]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Ask]:
    """Return a function that runs a command in this process, and looks at what it may never do."""

    def start(*_: object, **__: object) -> NoReturn:
        raise Started

    monkeypatch.setattr(trials, "open_server", start)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "schema.sql").write_text("SELECT 1;\n")

    def look() -> dict[str, bytes]:
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def run_command(*words: str) -> Answer:
        before = look()
        monkeypatch.setattr(sys, "argv", ["bankrun", *words])
        code: int | None
        try:
            code = app.run()
        except Started:
            code = None
        out, err = capfd.readouterr()
        after = look()
        assert {name: after.get(name) for name in before} == before, "a file that was there is another"
        made = after.keys() - before.keys()
        assert not NOT_IN_MARKUP.search(out)
        shown = err if "-" in words else out + err
        assert all(letter.isprintable() or letter == "\n" for letter in shown), (words, shown)
        assert "Traceback" not in err
        if code not in (app.OK, None):
            assert (code, out, made) == (app.CANNOT_START, "", set()), (words, err)
            assert err.startswith("bankrun: ")
            assert err.count("\n") == 1, err
        for name in made:
            (tmp_path / name).unlink()
            text = after[name].decode()
            assert not NOT_IN_MARKUP.search(text), name
            if name.endswith(".svg"):
                ET.fromstring(text)
        return Answer(code, out, err, set(made))

    yield run_command
    assert not list(tmp_path.glob(".*"))


def telling() -> Any:
    """Return a comparison that says where it was made, as the README's table needs it."""
    found = comparison()
    servers = {"postgres": {"server_version": "18.0"}, "redis": {"server": "valkey", "version": "9"}, "cores": 2}
    found.provenance = replace(found.provenance, environment={**found.provenance.environment, **servers})
    return found


GOOD: dict[str, Any] = {result.kind: json.loads(json.dumps(result.as_json())) for result in [*RESULTS, telling()]}
REAL = [*GOOD.values(), json.loads((ROOT / "docs" / "benchmarks.json").read_text())]


def save(path: Path, plain: Any) -> None:
    """Write plain values, with those that JSON has no word for."""
    text = json.dumps(plain)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    path.write_text(text)


RAW = {
    "@nan": "NaN",
    "@inf": "-Infinity",
    "@1e400": "1e400",
    "@long": "9" * 5_000,
    "@deep": "[" * 60 + "]" * 60,
    "@deep too": '{"a":' * 400 + "1" + "}" * 400,
    "@deeper": "[" * 900 + "]" * 900,
    "@deepest": '{"a":' * 100_000 + "1" + "}" * 100_000,
}
HOSTILE = ["\ud800", EVIL, "[/]", "[bold red]x", "</script><b>", ":boom:"]
ODD = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from(sorted(RAW)),
    st.sampled_from([None, True, False, [], {}, [[]], 0, -1, 2**63, -(2**64), 10**29, 10**31, 0.5, -1.5, 1e29, 1e300]),
    st.sampled_from(
        ["", "5", "1e3", "NaN", "inf", "x" * 3_000, "two", "none", "1x1", "2026-01-02T03:04:05", "9999-12"]
    ),
    st.integers(),
    st.text(max_size=5),
)
HOW = ("delete", "replace", "replace", "retype", "double", "nest", "rename", "taint")


def mutate(draw: Callable[[st.SearchStrategy[Any]], Any], plain: Any) -> None:
    """Change one value somewhere within: delete it, replace it, retype it, double it, nest it, taint its texts."""
    place = plain
    while True:
        key = draw(st.sampled_from(list(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not isinstance(place[key], (dict, list)) or not place[key] or draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    value = place[key]
    how = draw(st.sampled_from(HOW))
    if how == "delete":
        del place[key]
    elif how == "double" and isinstance(place, list):
        place.insert(key, deepcopy(value))
    elif how == "rename" and isinstance(place, dict):
        place[draw(st.sampled_from([*HOSTILE, "x" * 300, *place]))] = place.pop(key)
    elif how == "retype":
        place[key] = draw(st.sampled_from([str(value), [value], {"a": value}, bool(value), f"{value}.0"]))
    elif how == "nest":
        for _ in range(draw(st.sampled_from([1, 20, 40]))):
            value = [value]
        place[key] = value
    elif how == "taint":
        place[key] = taint(value, draw(st.sampled_from(HOSTILE)))
    else:
        place[key] = deepcopy(draw(ODD))  # what is drawn is shared by all examples


FREE = {"strategy", "topology", "fault", "case", "reason", "environment", "settings", "command", "faults", "kinds"}
"""Where any text may stand, and is shown."""


def taint_names(value: Any, suffix: str) -> Any:
    """Return a file in which all that may be called anything ends so."""
    if isinstance(value, dict):
        return {name: (taint if name in FREE else taint_names)(inner, suffix) for name, inner in value.items()}
    return [taint_names(inner, suffix) for inner in value] if isinstance(value, list) else value


def taint(value: Any, suffix: str) -> Any:
    """Return a value whose texts all end so."""
    if isinstance(value, dict):
        return {name: taint(inner, suffix) for name, inner in value.items()}
    if isinstance(value, list):
        return [taint(inner, suffix) for inner in value]
    return value + suffix if isinstance(value, str) else value


DRAWN = ("comparison", "proof", "chaos")
COMMANDS = (
    (["report", "bad.json", "-o", "out.html"], (*DRAWN, "trial")),
    (["report", "bad.json", "-o", "-"], (*DRAWN, "trial")),
    (["report", "bad.json", "-o", "out.html", "--pictures", "pictures"], DRAWN),
    (["diff", "bad.json", "good.json"], DRAWN),
    (["diff", "good.json", "bad.json"], DRAWN),
    (["diff", "bad.json", "bad.json", "--all"], DRAWN),
    (["strategies", "--proof", "bad.json", "--comparison", "comparison.json"], ("proof",)),
    (["strategies", "--proof", "proof.json", "--comparison", "bad.json"], ("comparison",)),
    (["replay", "bad.json", "two/AABB", "--export-sql", "out.sql"], ("trial",)),
)
"""All that read a file, with the kinds that they take. good.json is of the kind that bad.json was of."""


def agrees(file: Any, read: Any) -> bool:
    """Whether what was read is what the file says; what is derived, as a cell's figures from its runs, is left out."""
    if isinstance(read, dict):
        keys = {"runs", "expected", "verdict", "reason"} if "runs" in read else set(read) - {"passed", "drift"}
        return isinstance(file, dict) and all(agrees(file[key], read[key]) for key in keys & file.keys())
    if isinstance(read, list):
        return isinstance(file, list) and len(file) == len(read) and all(map(agrees, file, read))
    if isinstance(read, float):
        return isinstance(file, (int, float)) and not isinstance(file, bool) and file == read
    if file == read:
        return type(file) is type(read)
    return isinstance(file, str) and datetime.fromisoformat(file) == datetime.fromisoformat(read)


@pytest.mark.timeout(1_800)
def test_whatever_a_file_holds_it_is_read_right_or_refused_in_a_sentence(ask: Ask, tmp_path: Path) -> None:
    for kind, plain in GOOD.items():
        save(tmp_path / f"{kind}.json", plain)
    answered = refused = 0

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def try_it(data: st.DataObject) -> None:
        nonlocal answered, refused
        words, kinds = data.draw(st.sampled_from(COMMANDS))
        fitting = [GOOD[kind] for kind in kinds] if data.draw(st.integers(0, 4)) else REAL
        good = data.draw(st.sampled_from(fitting))
        bad = deepcopy(good)
        suffix = data.draw(st.sampled_from(["", EVIL, "[/] [bold red]x :boom:", "</script><b>"]))
        bad = taint_names(bad, suffix)
        for _ in range(data.draw(st.sampled_from([0, 1, 2, 3] if suffix else [1, 1, 2, 3]))):
            mutate(data.draw, bad)
        save(tmp_path / "good.json", good)
        save(tmp_path / "bad.json", bad)
        found = ask(*words)
        if found.code == app.CANNOT_START:
            refused += 1
            return
        answered += 1
        told = json.loads((tmp_path / "bad.json").read_text())
        assert agrees(told, json.loads(json.dumps(store.read(tmp_path / "bad.json").as_json())))

    try_it()
    assert refused > EXAMPLES / 10
    assert answered > EXAMPLES / 20


@pytest.mark.parametrize("plain", REAL, ids=store.kind_of)
def test_a_whole_result_is_read_as_what_it_says(tmp_path: Path, plain: Any) -> None:
    save(tmp_path / "good.json", plain)
    assert agrees(plain, json.loads(json.dumps(store.read(tmp_path / "good.json").as_json())))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a good file of each kind, each by the name of its kind."""
    for kind, plain in GOOD.items():
        save(tmp_path / f"{kind}.json", plain)
    return tmp_path


def changed(kind: str, value: Any, *way: Any) -> Any:
    """Return a good result of a kind with another value in one place."""
    plain = deepcopy(GOOD[kind])
    place = plain
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = value
    return plain


@pytest.mark.parametrize("wanted", ["proof", "comparison"])
@pytest.mark.parametrize("kind", GOOD)
def test_the_gallery_takes_a_proof_and_a_comparison_and_no_file_of_another_kind(
    ask: Ask, files: Path, kind: str, wanted: str
) -> None:
    given = {"proof": "proof.json", "comparison": "comparison.json", wanted: f"{kind}.json"}
    found = ask("strategies", "--proof", given["proof"], "--comparison", given["comparison"])
    if kind == wanted:
        assert (found.code, found.out.splitlines()[0][:12]) == (0, "| strategy |")
        assert "Postgres 18.0, valkey 9, 2 cores: small differences in speed are noise." in found.out
    else:
        assert found.code == 2
        assert f"{kind}.json holds a result of the kind {kind}; a {wanted} is needed" in found.err


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (changed("comparison", None, "cells", 0), "cells.0: Input should be an object"),
        (changed("comparison", [], "workload"), "workload: Input should be an object"),
        (changed("comparison", {"accounts": 1}, "workload"), "workload: accounts=1: it must be between 2 and"),
        (changed("comparison", {}, "environment"), "its environment does not say python"),
        (
            changed("comparison", {"python": "3", "postgres": [1]}, "environment"),
            "does not say postgres.server_version",
        ),
        (
            changed("comparison", "5", "cells", 0, "runs", 0, "lost_postings"),
            "lost_postings: Input should be a valid int",
        ),
        (changed("comparison", True, "cells", 0, "runs", 0, "applied"), "applied: Input should be a valid int"),
        (changed("comparison", "NaN", "cells", 0, "runs", 0, "seconds"), "seconds: Input should be a valid number"),
        (changed("comparison", -1, "cells", 0, "runs", 0, "applied"), "applied: Input should be greater than or equal"),
        (changed("comparison", 10**40, "cells", 0, "runs", 0, "drift"), "has more than 30 digits"),
        (changed("comparison", 1e300, "cells", 0, "runs", 0, "seconds"), "1e+300 has more than 30 digits"),
        (changed("comparison", "\ud800", "cells", 0, "reason"), "half of a character (a lone surrogate)"),
        (changed("comparison", {"\udfff": 1}, "settings"), "half of a character (a lone surrogate)"),
        (changed("comparison", "@nan", "environment", "x"), "NaN is not a number"),
        (changed("comparison", "@1e400", "environment", "x"), "1e400 is not a number"),
        (changed("comparison", "@long", "environment", "x"), "999… has more than 30 digits"),
        (changed("comparison", "@deep", "environment", "x"), "nested more than 32 deep"),
        (changed("comparison", "@deeper", "environment", "x"), "nested more than 32 deep"),
        (changed("comparison", "@deepest", "environment", "x"), "nested more than 32 deep"),
        (changed("comparison", GOOD["comparison"]["cells"][:1] * 2, "cells"), "none 3x8 is there twice"),
        (changed("comparison", 99, "schema"), "was made by a newer bankrun: its schema is 99, this reads 1"),
        (changed("comparison", "later", "kind"), "was made by a newer bankrun: this one knows no result of the kind"),
        (changed("comparison", EVIL, "kind"), "knows no result of the kind '\\x1b]0;mine"),
        ([], "bad.json is not a result of bankrun"),
    ],
)
def test_each_damage_is_named_with_its_file(ask: Ask, files: Path, bad: Any, sentence: str) -> None:
    save(files / "bad.json", bad)
    found = ask("strategies", "--proof", "proof.json", "--comparison", "bad.json")
    assert found.code == 2
    assert "bad.json" in found.err
    assert sentence in found.err


def test_what_is_in_a_file_reaches_a_terminal_as_letters_only(
    ask: Ask, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mine{EVIL}[/] [red]:boom:"
    one, two = (comparison(cell(run(name, lost=lost))) for lost in (3, 9))
    two.provenance = replace(two.provenance, environment={"host": EVIL})
    for file, result in (("a.json", one), ("b.json", two)):
        save(files / file, result.as_json())
    monkeypatch.setenv("COLUMNS", "300")
    found = ask("diff", "a.json", "b.json")
    assert found.code == 0
    assert "different: host: nothing → ?]0;mine??[2J??31m??\n" in found.out
    assert "mine?]0;mine??[2J??31m??[/] [red]:boom: 3x8" in found.out
    page = ask("report", "b.json", "-o", "-")  # which looks for what no document may hold
    assert page.code == 0
    assert ":boom:" in page.out
    assert ask("report", "a.json", "--pictures", "pictures").made > {"report.html"}


@pytest.mark.parametrize("how", ["itself", "relative", "absolute", "link", "hard link"])
def test_no_file_is_written_over_one_that_is_read(ask: Ask, files: Path, how: str) -> None:
    (files / "link").symlink_to("comparison.json")
    (files / "hard").hardlink_to(files / "comparison.json")
    output = {
        "itself": "comparison.json",
        "relative": "pictures/../comparison.json",
        "absolute": str(files / "comparison.json"),
        "link": "link",
        "hard link": "hard",
    }[how]
    found = ask("report", "comparison.json", "-o", output)
    assert found.code == 2
    assert found.err == f"bankrun: {output} is the file comparison.json, which is read: write to another one\n"


def test_neither_pictures_nor_scripts_nor_exports_are_written_over_what_is_read(ask: Ask, files: Path) -> None:
    save(files / "pictures" / "lost-none-3x8.svg", GOOD["comparison"])
    (files / "only_read.py").write_text(OWN)
    for words in (
        ["report", "pictures/lost-none-3x8.svg", "-o", "out.html", "--pictures", "pictures"],
        ["replay", "trial.json", "two/AABB", "--export-sql", "trial.json"],
        ["replay", "trial.json", "two/AABB", "--export-sql", "schema.sql"],
        ["replay", "trial.json", "two/AABB", "--export-sql", "shop.py"],
        ["try", "shop.py:buy(1)", "--setup", "schema.sql", "--export-json", "schema.sql"],
        ["try", "shop.py:buy(1)", "--report", "shop.py"],
        ["compare", "--strategy", "only_read:OnlyRead", "--export-json", "only_read.py"],
        ["prove", "--strategy", "only_read:OnlyRead", "--export-markdown", "only_read.py"],
        ["chaos", "--strategy", "only_read:OnlyRead", "--export-json", "only_read.py"],
        ["soak", "--strategy", "only_read:OnlyRead", "--export-json", "only_read.py"],
        ["bench", "--strategy", "only_read:OnlyRead", "--export-markdown", "only_read.py"],
    ):
        found = ask(*words)
        assert found.code == 2, words
        assert "which is read: write to another one" in found.err, words


OWN = """
from bankrun import RowLock

class OnlyRead(RowLock):
    name = "only-read"
    summary = "a row lock"
"""


def test_what_came_between_leaves_neither_half_a_file_nor_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> NoReturn:
        raise KeyboardInterrupt

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write(str(tmp_path / "x"), "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "old")]


def test_what_has_no_end_is_not_read_and_a_pipe_that_ends_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIPE_SECONDS_MAX", 0.2)
    with pytest.raises(CannotStart, match=r"cannot read /dev/zero: it is a device, and no file"):
        store.read(Path("/dev/zero"))
    with pytest.raises(CannotStart, match="it is a directory"):
        store.read(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(CannotStart, match=r"a pipe whose other end was not closed within 0\.2 s"):
        store.read(pipe)

    def feed(text: bytes) -> None:
        with pipe.open("wb", buffering=0) as file, suppress(BrokenPipeError):
            file.write(text)

    monkeypatch.setattr(reading, "PIPE_SECONDS_MAX", 20.0)
    text = json.dumps(GOOD["proof"]).encode()
    for limit, whole in ((reading.FILE_BYTES_MAX, True), (len(text) - 1, False)):
        feeder = threading.Thread(target=feed, args=(text,))
        feeder.start()
        if whole:
            assert json.loads(reading.read_bounded(pipe, limit)) == GOOD["proof"]
        else:
            with pytest.raises(ValueError, match="the most that is read"):
                reading.read_bounded(pipe, limit)
        feeder.join()


def test_two_files_with_very_many_runs_are_told_apart_in_no_time() -> None:
    runs = [float(number % 1_000) for number in range(100_000)]
    assert probability(runs, runs) == 1
    assert probability(runs, [rate + 500 for rate in runs]) < 0.001


@pytest.mark.parametrize("words", [["-o", "a" * 5_000], ["-o", "a\x00b"], ["-o", ""], ["--pictures", "a" * 5_000]])
def test_a_place_that_cannot_be_is_refused_before_the_file_is_drawn(ask: Ask, files: Path, words: list[str]) -> None:
    assert ask("report", "comparison.json", *words).code == 2


@pytest.mark.parametrize("command", ["compare", "chaos", "soak", "bench"])
def test_no_seed_is_taken_that_no_file_could_hold(ask: Ask, command: str) -> None:
    found = ask(command, "--seed", str(2**63))
    assert (found.code, "it must be between 0 and 9223372036854775807" in found.err) == (2, True)


def test_more_fields_than_a_picture_can_hold_are_refused(ask: Ask, files: Path) -> None:
    plain = changed(
        "proof", [{**GOOD["proof"]["cases"][0], "strategy": f"s{n}", "case": f"c{n}"} for n in range(400)], "cases"
    )
    save(files / "many.json", plain)
    found = ask("report", "many.json")
    assert found.code == 2
    assert "a picture of 400 rows and 400 columns would have too many fields" in found.err


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("env", ["X={url.__class__.mro}"]),
        ("env", ["X={url:>9999999999}"]),
        ("env", ["X={url[a]}"]),
        ("env", ["X=\x00"]),
        ("setup", "a" * 5_000 + ".sql"),
        ("setup", "/dev/zero"),
        ("isolation", "none at all"),
        ("preemptions", -1),
        ("programs", ["shop.py:buy(" + "-" * 50_000 + "1)"] * 2),
        ("programs", ["shop.py:buy(0x" + "f" * 5_000 + ")"] * 2),
        ("programs", ["shop.py:buy(1)"] * 9),
        ("programs", [f"shop.py:buy({EVIL!r})", "shop.py:bay(1)"]),
    ],
)
def test_what_a_trial_asks_for_is_refused_before_anything_starts(ask: Ask, files: Path, where: str, value: Any) -> None:
    save(files / "bad.json", changed("trial", value, where))
    assert ask("replay", "trial.json", "two/AABB").code is None
    assert ask("replay", "bad.json", "two/AABB").code == 2


def test_where_a_locale_has_no_arrow_the_answer_is_the_same(files: Path) -> None:
    save(files / "b.json", changed("comparison", 8, "seed"))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bankrun", "diff", "comparison.json", "b.json"],
        cwd=files,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"different: seed: 7 \\u2192 8", done.stdout)
