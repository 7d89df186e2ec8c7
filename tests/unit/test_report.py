"""What is made of saved results: the report, its figures, and the difference between two of them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankrun.errors import CannotStart
from bankrun.render.figures import comparison_figures
from bankrun.render.matrices import fault_matrix, proof_matrix
from bankrun.render.report import report
from bankrun.render.space_time import space_time
from bankrun.results.diff import (
    CHANGED,
    EXACT,
    NOISE,
    SAME,
    TOO_FEW,
    changes,
    circumstances,
    missing,
    probability,
    repeats_needed,
)
from bankrun.results.models import chaos
from bankrun.results.models.comparison import Comparison
from bankrun.results.models.proof import CaseResult, ProofResult
from bankrun.results.provenance import Provenance
from bankrun.results.store import read
from tests.results import cell, comparison, posting, run, trial

HOSTILE = '</script><script>alert("a")</script><b>&'
PROOF = {
    "schema": 1,
    "bankrun": "0.1.0",
    "environment": {},
    "cases": [
        {
            "strategy": "none",
            "instances": "two",
            "case": "same-pair",
            "transfers": 2,
            "claim": "nothing",
            "expected": "unsafe",
            "interleavings": 6,
            "broken": 4,
            "shortest_broken": "none/two/same-pair/AB",
        }
    ],
}
FAULT = {
    "fault": "kill",
    "strategy": "redis-lock",
    "topology": "3x4",
    "verdict": "broken",
    "expected": "unsafe",
    "reason": "lost posting",
    "applied": 90,
    "refused": 0,
    "failed": 0,
    "pending": 0,
    "lost_postings": 5,
    "drift": -7,
    "duplicates": 0,
    "unexplained": 0,
    "extra_deliveries": 3,
    "republished": 0,
    "retries": 2,
    "recovery_s": 1.25,
    "seconds": 4.5,
    "rounds": 1,
}
CHAOS = {
    "schema": 1,
    "bankrun": "0.1.0",
    "seed": 3,
    "workload": {"accounts": 16, "transfers": 600},
    "rounds": 1,
    "not_run": {},
    "cells": [FAULT],
}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    """Return a function that saves a result."""

    def save(result: Any) -> Path:
        path = tmp_path / "result.json"
        path.write_text(json.dumps(result.as_json() if isinstance(result, Comparison) else result))
        return path

    return save


def test_what_is_read_back_is_what_was_saved(saved: Callable[[Any], Path]) -> None:
    made = comparison()
    assert read(saved(made)) == made


def test_a_result_from_before_there_were_histories_still_makes_a_report(saved: Callable[[Any], Path]) -> None:
    plain = comparison().as_json()
    for one in plain["cells"]:
        for key in ("history", "scene", "cost_ms", "latency_counts"):
            del one[key], one["runs"][0][key]
    page = report(read(saved(plain)))
    assert "Lost postings and drift" in page
    assert "Money over time" not in page


def test_the_verdict_comes_first_then_the_table_then_the_pictures_then_how() -> None:
    page = report(comparison())
    order = [
        "none lost 700 of 4,000 postings on 3x8",
        "The verdicts",
        "Money over time",
        "How none lost a posting",
        "How it was meas",
    ]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert "bankrun compare --seed 7" in page


def test_many_strategies_have_a_small_panel_each_and_few_share_a_plot() -> None:
    names = [f"s{number}" for number in range(26)]
    many = comparison_figures([cell(run(name, lost=9 * (name == "s3"))) for name in names])
    money, times = (next(one for one in many if one.name.startswith(what)) for what in ("money", "latency"))
    for figure in (money, times):
        assert figure.plot is None
        panels = ET.fromstring(figure.svg).findall("{*}rect[@class='panel']")
        assert len(panels) == 26
    lines = ET.fromstring(money.svg).findall("{*}path")
    assert [line.get("class") for line in lines].count("drawn broken-line") == 1
    assert "1 of 26 strategies left the line" in money.text
    few = comparison_figures([cell(run(name)) for name in names[:3]])
    assert all(one.plot is not None for one in few if one.name.startswith(("money", "latency")))


@pytest.mark.parametrize("result", [comparison(cell(run(HOSTILE, lost=9))), "proof", "faults"])
def test_a_name_cannot_become_markup(result: Any) -> None:
    if result == "proof":
        result = ProofResult(Provenance(), [CaseResult(HOSTILE, "two", HOSTILE, 2, "nothing", "unsafe", 6, 4)])
    elif result == "faults":
        result = chaos.parse({**CHAOS, "cells": [{**FAULT, "fault": HOSTILE, "strategy": HOSTILE}]})
    page = report(result)
    assert "<script>alert" not in page
    assert page.count("</script>") == page.count("<script")


def test_the_report_names_no_address_and_its_policy_allows_none() -> None:
    page = report(comparison())
    outside = set(re.findall(r"(?:https?:)?//[\w.-]+", re.sub(r'<script type="text/plain".*?</script>', "", page)))
    assert outside == {"http://www.w3.org"}  # the name of SVG, which nothing fetches
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "http" not in policy[1]


def test_a_report_of_every_strategy_is_small() -> None:
    cells = [
        cell(run(f"strategy-{number}", topology, lost=number)) for number in range(24) for topology in ("1x8", "3x8")
    ]
    page = report(comparison(*cells))
    assert len(page.encode()) < 4_000_000


def test_every_figure_has_a_sentence_and_a_table_or_a_picture() -> None:
    found = comparison_figures(comparison().cells)
    assert [figure.name for figure in found] == ["money-3x8", "lost-none-3x8", "losses", "speed", "latency", "costs"]
    assert all(figure.text and (figure.rows or figure.svg) for figure in found)
    money = found[0]
    assert money.rows[0] == ("none", "0", "-350", "-350", "-700", "700")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_space_time_diagram_has_a_lane_for_each_thread_and_an_arrow_from_the_lost_posting() -> None:
    scene = [
        posting(1, 0, 0.0, after=110),
        posting(2, 3, 1.0, after=95, instance="w2"),
        posting(3, 3, 9.0, after=96, instance="w2"),
    ]
    svg = space_time("x", scene)
    said = texts(svg)
    assert [text for text in said if text.startswith("thread")] == ["thread 0", "thread 3"]
    assert "reads 100, writes 110 (+10)  lost" in said
    assert "reads 100, writes 95 (-5)" in said
    arrow = re.search(r'class="arrow" d="M([\d.]+),([\d.]+) .* ([\d.]+),([\d.]+)"', svg)
    assert arrow is not None
    x1, y1, x2, y2 = map(float, arrow.groups())
    assert y1 < y2, "the lost posting's lane is above the other's"
    assert (x1, x2) == pytest.approx((128 + 672 * 3 / 12, 128 + 672 * 3 / 12), abs=0.1)


def test_matrices_say_what_was_counted_and_mark_what_refutes_a_claim() -> None:
    refuted = CaseResult("row-lock", "two", "same-pair", 2, "everywhere", "safe", 6, 1)
    assert {"row-lock", "in two instances", "1/6!"} <= set(texts(proof_matrix("x", [refuted])))
    assert {"kill", "redis-lock", "5 lost"} <= set(texts(fault_matrix("x", chaos.parse(CHAOS).cells)))


@pytest.mark.parametrize("result", [PROOF, CHAOS])
def test_proofs_and_faults_make_reports_too(saved: Callable[[Any], Path], result: Any) -> None:
    page = report(read(saved(result)))
    assert '<svg xmlns="http://www.w3.org/2000/svg" class="picture"' in page or '<svg class="picture"' in page


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 2}',
        '{"schema": 1}',
        '{"schema": 1, "cells": []}',
        "[" * 100_000,
        '{"schema": 1, "cases": [{}]}',
        '{"schema": 1, "cells": [{"fault": "x"}]}',
        "9" * 5000,
    ],
)
def test_a_file_that_is_no_result_ends_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(CannotStart, match=r"x\.json"):
        read(path)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**70), st.text(max_size=5), st.just([]), st.just({}), st.just("∞")
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_result_makes_a_report_or_ends_in_a_sentence(
    saved: Callable[[Any], Path], data: st.DataObject
) -> None:
    plain = deepcopy(data.draw(st.sampled_from([comparison().as_json(), PROOF, CHAOS])))
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
    try:
        found = read(saved(plain))
    except CannotStart:
        return
    assert "</html>" in report(found)
    assert not any(change.is_real for change in changes(found, found))


def test_two_sets_of_runs_that_lie_apart_differ_and_two_that_mix_do_not() -> None:
    low, high = [1.0, 2, 3, 4], [5.0, 6, 7, 8]
    assert probability(low, high) == pytest.approx(
        2 / 70, abs=0.003
    )  # the exact one: 2 of the 70 ways to choose 4 of 8
    assert probability([1, 4, 5, 8], [2, 3, 6, 7]) == pytest.approx(1)
    assert probability([3, 3, 3], [3, 3, 3]) == 1
    assert repeats_needed() == 4


@pytest.mark.parametrize(
    ("before", "after", "finding"),
    [
        ([400, 410, 420, 430], [500, 510, 520, 530], CHANGED),
        ([400, 410, 420, 530], [500, 410, 420, 430], NOISE),
        ([400], [800], TOO_FEW),
        ([400, 400, 400], [800, 800, 800], TOO_FEW),
        ([400], [400], SAME),
    ],
)
def test_a_rate_has_changed_only_if_the_repetitions_say_so(before: list[int], after: list[int], finding: str) -> None:
    one, two = (comparison(cell(*(run("row-lock", rate=rate) for rate in rates))) for rates in (before, after))
    assert [change.finding for change in changes(one, two) if change.figure == "transfers/s"] == [finding]


def test_a_verdict_needs_no_repetition() -> None:
    found = changes(comparison(cell(run("row-lock"))), comparison(cell(run("row-lock", lost=3))))
    assert next(change for change in found if change.figure == "verdict").finding == EXACT


def test_what_else_was_different_is_said() -> None:
    one, two = comparison(), comparison(cell(run("none", lost=700)))
    environment = {**two.provenance.environment, "postgres": {"fsync": "off"}}
    two.provenance = replace(two.provenance, seed=8, environment=environment)
    assert circumstances(one, two) == ["seed: 7 → 8", "postgres.fsync: on → off"]
    assert missing(one, two) == ["only in the first: row-lock 3x8"]


def test_a_proof_is_not_compared_with_a_comparison(saved: Callable[[Any], Path]) -> None:
    with pytest.raises(CannotStart, match="nothing in common"):
        changes(comparison(), read(saved(PROOF)))


def test_a_schedule_says_how_the_one_that_waited_went_on() -> None:
    assert "goes on; SELECT 2" in report(trial())
