"""What the live page is told and asks for: plans from addresses, where locks live, what is sent and what is kept."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as some

from bank.errors import CannotStart
from bank.strategies import STRATEGIES, Claim
from bankrun.page.feed import as_text, find_story, tell_all, thin_out
from bankrun.page.form import SHOWN, read_form, read_plan
from bankrun.page.index import STATIC, read_recording, render_index, style
from bankrun.page.last import FILMS, RESULT, keep, recall
from bankrun.page.places import FLAWS, OF_CLAIM, PLACES, Place, describe, place_of
from bankrun.page.recording import SIZE_MAX
from bankrun.page.runner import Snapshot
from bankrun.render.svg import THEME
from bankrun.results.topology import Topology
from bankrun.runs.film import Film, Leg, Move
from tests.results import cell, comparison, run


def test_every_strategy_has_its_place_and_only_an_own_one_is_drawn_by_its_claim() -> None:
    by_claim = {name for name, strategy in STRATEGIES.items() if name not in PLACES and not strategy.routed_to_one}
    assert by_claim == {"thread-lock", "striped-lock", "file-lock"}
    assert set(PLACES) | set(FLAWS) <= set(STRATEGIES)
    assert place_of(STRATEGIES["single-writer"]) == Place.QUEUE
    almost_right = [name for name, one in STRATEGIES.items() if one.claim == Claim.NOTHING and name != "none"]
    assert sorted(FLAWS) == sorted(almost_right)
    assert set(OF_CLAIM) == set(Claim)
    for strategy in STRATEGIES.values():
        assert describe(strategy, 1).endswith(".")
    assert describe(STRATEGIES["thread-lock"], 3) == "Three workers, three locks: two threads can each hold one."


def test_an_empty_address_asks_for_the_headline() -> None:
    plan = read_plan({})
    assert plan.strategies == ("none", "thread-lock", "row-lock")
    assert plan.topologies == (Topology(1, 8), Topology(3, 8))
    assert plan.workload.transfers == 2_000
    assert read_form({}).trouble == ""
    assert read_plan({}).seed != plan.seed


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("strategies=os:system", "'os:system' is not one of the strategies of this page"),
        ("strategies=", "at least one strategy"),
        ("topologies=", "at least one strategy and one topology"),
        ("topologies=3by8", "'3by8' is not a topology"),
        ("topologies=99x8", "1 to 64 instances"),
        ("transfers=1e3", "transfers: '1e3' is not a whole number"),
        ("transfers=-1", "transfers: '-1' is not a whole number"),
        ("transfers=٣", "is not a whole number"),
        ("accounts=1", "it must be between 2 and"),
        ("think_ms=nan", "think ms: 'nan' is not a number"),
        ("seed=99999999999", "seed: '99999999999' is not a whole number"),
    ],
)
def test_an_address_that_makes_no_plan_is_told_in_a_sentence_and_kept_to_be_mended(query: str, sentence: str) -> None:
    asked = dict(parse_qsl(query, keep_blank_values=True))
    with pytest.raises(CannotStart, match=sentence):
        read_plan(asked)
    assert sentence in read_form(asked).trouble


def test_a_strategy_of_ones_own_is_offered_where_the_server_was_started_with_it_and_nowhere_else() -> None:
    own = ("mine:Mine",)
    assert read_plan({}, own).strategies == ("none", "thread-lock", "row-lock", "mine:Mine")
    assert read_plan({"strategies": "mine:Mine"}, own).strategies == ("mine:Mine",)
    assert next(iter(read_form({}, own).strategies.items())) == ("mine:Mine", True)
    for name in ("other:Mine", "mine:Other", "mine"):
        with pytest.raises(CannotStart, match=f"'{name}' is not one of the strategies of this page"):
            read_plan({"strategies": name}, own)
    assert "mine:Mine" not in read_form({}).strategies


class Mine(STRATEGIES["none"]):  # type: ignore[misc]
    name = "mine:Mine"
    claim = Claim.PROCESS


def test_a_strategy_of_ones_own_is_drawn_where_its_claim_says() -> None:
    assert place_of(Mine) == Place.PROCESS
    assert describe(Mine, 1) == "Your own. By its claim the lock is inside each worker."
    assert describe(Mine, 3) == "Your own. By its claim the lock is inside each worker: three workers, three locks."


@given(asked=some.dictionaries(some.sampled_from([*SHOWN, "other"]), some.text(max_size=30)))
def test_whatever_an_address_holds_there_is_a_page_without_its_markup(asked: dict[str, str]) -> None:
    page = render_index(asked | {"topologies": asked.get("topologies", "") + '"><script>alert(1)</script>'})
    assert "<script>" not in page
    assert page.count("<script") == 1


def test_the_recording_is_the_headline_small_and_of_today() -> None:
    found = read_recording()
    assert (STATIC / "recording.json").stat().st_size < SIZE_MAX
    verdicts = {(one["strategy"], one["topology"]): one["verdict"] for one in found["cells"]}
    assert verdicts == {
        ("none", "1x8"): "broken",
        ("none", "3x8"): "broken",
        ("thread-lock", "1x8"): "safe",
        ("thread-lock", "3x8"): "broken",
        ("row-lock", "1x8"): "safe",
        ("row-lock", "3x8"): "safe",
    }
    for one in found["cells"]:  # what is said in it is what is said now
        assert (one["place"], one["caption"]) == (
            place_of(STRATEGIES[one["strategy"]]),
            describe(STRATEGIES[one["strategy"]], one["instances"]),
        )
    for film in found["films"]:
        lost = [leg for move in film["moves"] for leg in move[4] if leg[5] is not None]
        assert bool(lost) == (verdicts[film["strategy"], film["topology"]] == "broken"), film["strategy"]
    assert len(found["stories"]) == len(found["cells"])


def test_the_picture_of_three_frames_is_of_this_recording_small_and_in_the_page_s_colours() -> None:
    picture = Path(__file__).parents[2] / "docs" / "where-the-lock-lives.svg"
    text = picture.read_text(encoding="utf-8")
    assert len(text) < 60_000
    assert THEME in text  # light and dark
    assert f"recorded {read_recording()['recorded']}" in text
    (broken,) = (
        cell for cell in read_recording()["cells"] if (cell["strategy"], cell["topology"]) == ("thread-lock", "3x8")
    )
    assert f"{broken['lost']:,} of {broken['postings']:,} postings" in text
    assert not re.search("<(script|image|foreignObject)", text)


def test_no_file_of_the_page_names_another_server() -> None:
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text.replace('https:" ? "wss', ""), path.name
    assert "url(" not in style()


FILM = Film("none", "3x8", ["w1", "w2"], 8, 5.0, [Move(0, 3, 0.0, 5.0, [Leg(5, 0.5, 2.0, 100, -10, over=None)])])


def test_what_is_sent_has_every_planned_cell_and_its_story_when_it_is_done() -> None:
    done = comparison(cell(run("none", lost=700)), cell(run("row-lock")))
    planned = (("none", "3x8"), ("row-lock", "3x8"), ("serializable", "3x8"))
    now = replace(
        Snapshot(), planned=planned, comparison=done, films={("none", "3x8"): FILM}, state="running", number=3
    )
    told = json.loads(as_text(tell_all(now)))
    assert [one.get("verdict") for one in told["cells"]] == ["broken", "safe", None]
    assert told["running"] == ["serializable", "3x8"]
    assert told["films"][0]["moves"] == [[0, 3, 0.0, 5.0, [[5, 0.5, 2.0, 100, -10, None]]]]
    story = find_story(now, "none", "3x8")
    assert story is not None
    assert "<svg" in story["svg"]
    told_of = find_story(now, "row-lock", "3x8")
    assert told_of is not None
    assert "lost 700" in told_of["lines"][1]
    assert find_story(now, "serializable", "3x8") is None


def test_no_text_of_others_can_keep_the_page_from_being_sent_or_turn_it_around() -> None:
    page = render_index({"topologies": "\ud800\x00\u202e"})
    assert "\ufffd\ufffd\ufffd" in page
    assert json.loads(as_text({"a": "\ud800\u202e\n"}).encode()) == {"a": "\ufffd\ufffd\n"}


def test_of_many_samples_the_last_one_is_among_those_that_are_sent() -> None:
    samples = [(float(at), at) for at in range(397)]
    assert len(thin_out(samples)) <= 61
    assert thin_out(samples)[-1] == (396.0, 396)
    assert thin_out([]) == []


def test_a_result_and_its_films_come_back_and_films_of_another_one_do_not(tmp_path: Path) -> None:
    assert recall(tmp_path) == (None, {})
    done = comparison(cell(run("none", lost=700)))
    keep(tmp_path, done, {("none", "3x8"): FILM})
    found, films = recall(tmp_path)
    assert found == done
    assert films == {("none", "3x8"): FILM}
    text = (tmp_path / FILMS).read_text()
    (tmp_path / FILMS).write_text(text.replace('"started":"', '"started":"1'))
    assert recall(tmp_path)[1] == {}
    (tmp_path / FILMS).write_text("[" * 100_000)
    assert recall(tmp_path) == (done, {})
    (tmp_path / RESULT).write_text("{")
    assert recall(tmp_path) == (None, {})
