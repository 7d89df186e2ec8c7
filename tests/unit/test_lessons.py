"""The lessons that need no database: the unsafe half goes wrong each time, the safe one never, whoever's turn it is."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bank.errors import BankError
from bankrun.runs.lessons import FOLDER, LESSONS, Lesson, run

RUNS = 100
ALONE = [one.name for one in LESSONS.values() if not one.needs_postgres]
OTHER_FILES = {"by_chance.py", "stage.py", "telling.py", "three_accounts.py", "two_instances.py"}


@pytest.fixture(scope="module")
def load(lessons_importable: None) -> Callable[[str], ModuleType]:
    """Return a function that imports a lesson by its name."""
    return lambda name: importlib.import_module(LESSONS[name].file.removesuffix(".py"))


@pytest.fixture(scope="module")
def stage(lessons_importable: None) -> ModuleType:
    """The module that all lessons stand on."""
    return importlib.import_module("stage")


@pytest.mark.parametrize("name", ALONE)
def test_the_unsafe_half_shows_the_fault_each_time(load: Any, stage: Any, name: str) -> None:
    halves = load(name).LESSON.unsafe
    assert halves
    for half in halves:
        assert [half(stage.Stage()).broken for _ in range(RUNS)] == [True] * RUNS


@pytest.mark.parametrize("name", ALONE)
def test_the_safe_half_never_does_whoever_has_the_turn(load: Any, stage: Any, name: str) -> None:
    halves = load(name).LESSON.safe
    assert halves
    for half in halves:
        assert [half(stage.Stage(seed=seed)).broken for seed in range(RUNS)] == [False] * RUNS


def test_a_hundred_seeds_are_many_different_orders(load: Any, stage: Any) -> None:
    orders = set()
    for seed in range(RUNS):
        told: list[str] = []
        load("semaphore").with_semaphore(stage.Stage(lambda who, *_, told=told: told.append(who), seed=seed))
        orders.add("".join(told))
    assert len(orders) > RUNS / 2


@pytest.mark.parametrize(
    ("name", "half", "text"),
    [
        ("context-switch", "without", "B counted 290 of 300"),
        ("print", "without", "'Printing from APrinting from B | Separator of A', ' | Separator of B'"),
        ("singleton", "double_checked", "1 of what"),
        ("lock", "without", "up to 2 in it at once"),
        ("rlock", "with_rlock", "the balance is 300 of 300"),
        ("semaphore", "without", "2 of 4 were refused"),
        ("condition", "look_once", "nothing: the queue is empty"),
        ("barrier", "without", "the totals are 40 and 100"),
        ("gil", "without", "the balance is 100 of 200"),
    ],
)
def test_what_comes_out_is_what_the_talk_says(load: Any, stage: Any, name: str, half: str, text: str) -> None:
    assert text in getattr(load(name), half)(stage.Stage()).text


def test_the_deadlock_shows_where_everybody_waits(load: Any, stage: Any) -> None:
    told: list[str] = []
    load("deadlock").taken_twice(stage.Stage(lambda who, text, at: told.append(text)))
    lines = LESSONS["deadlock"].path.read_text().splitlines()
    waits = [text for text in told if "waits for the lock in" in text]
    assert [text.split("(")[0] for text in waits] == [
        "A waits for the lock in _update_balance",
        "B waits for the lock in deposit",
        "C waits for the lock in deposit",
    ]
    for text in [*waits, *(text for text in told if text.startswith("and has it since deposit()"))]:
        number, code = re.search(r"line (\d+)[^:]*: (.*)", text).groups()  # type: ignore[union-attr]
        assert lines[int(number) - 1].strip() == code


def test_a_stage_keeps_to_the_order_it_is_given(stage: Any) -> None:
    told: list[str] = []
    scene = stage.Stage(lambda who, *_: told.append(who))
    scene.play("BBAB", A=lambda: scene.say(""), B=lambda: [scene.say("") for _ in range(3)])
    assert "".join(told) == "BBAB"


def test_an_actor_that_does_not_come_back_is_not_waited_for_for_ever(
    stage: Any,
) -> None:
    with pytest.raises(TimeoutError, match="nothing has happened"):
        stage.Stage(seconds_max=0.05).play(A=lambda: time.sleep(0.3))


@pytest.mark.parametrize("play", ["play", "play_freely"])
def test_the_time_a_line_is_shown_is_not_told_as_the_lessons(stage: Any, play: str) -> None:
    told: list[float] = []

    def show(_: str, __: str, at_ms: float) -> None:
        told.append(at_ms)
        time.sleep(0.2)

    scene = stage.Stage(show)
    getattr(scene, play)(A=lambda: [scene.say("") for _ in range(3)])
    assert all(0 <= at_ms < 300 for at_ms in told), told


def test_an_error_on_the_stage_is_raised(stage: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        stage.Stage().play(A=lambda: 1 / 0, B=lambda: 1)


@pytest.mark.parametrize("name", LESSONS)
def test_every_lesson_is_whole(load: Any, name: str) -> None:
    lesson = load(name).LESSON
    assert lesson.name == name
    assert len(re.findall(r"[.?!](?=\s)", lesson.idea)) == 2, "the idea in two sentences"
    assert lesson.question.endswith("?")
    assert 0 < lesson.seconds_max <= 15
    assert len(LESSONS[name].path.read_text().splitlines()) <= 90
    for file in re.findall(r"[\w/]+\.py\b", lesson.in_earnest):
        assert (FOLDER.parent / file).is_file(), file


def test_a_lesson_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr("bankrun.runs.lessons.SECONDS_MAX", 0.3)
    with pytest.raises(BankError, match="the lesson hangs did not end in"):
        run(Lesson("hangs", str(tmp_path / "hangs.py"), ""))


def test_the_files_are_those_of_the_list_and_shadow_nothing() -> None:
    files = {path.name for path in FOLDER.glob("*.py")}
    assert files == {one.file for one in LESSONS.values()} | OTHER_FILES
    modules = {file.removesuffix(".py") for file in files}
    assert not modules & sys.stdlib_module_names
    assert not modules & importlib.metadata.packages_distributions().keys()


def test_the_readme_names_every_lesson_and_its_file() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for lesson in LESSONS.values():
        assert f"| `{lesson.name}` | [{lesson.file}]({lesson.file}) | " in readme
    assert set(re.findall(r"\]\(([\w.]+\.py)\)", readme)) == {path.name for path in FOLDER.glob("*.py")}


def test_lessons_without_a_database_import_the_standard_library_alone() -> None:
    own = {path.stem for path in FOLDER.glob("*.py")} - {"three_accounts", "two_instances"}
    files = [one.path for one in LESSONS.values() if not one.needs_postgres]
    for path in [*files, *(FOLDER / f"{name}.py" for name in ("by_chance", "stage", "telling"))]:
        imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert set(imported) <= sys.stdlib_module_names | own, path
