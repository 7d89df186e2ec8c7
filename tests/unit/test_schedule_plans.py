"""What a plan says about keys, and what only looks as if it did."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankrun.schedule.observation.footprints import ALL
from bankrun.schedule.observation.plans import Reading, read_plans

KEYS = {"public.t": "id", "public.word": "w", "public.Order": "Id"}


def reading(condition: str, *, relation: str = "t", above: str = "", name: str = "Filter") -> Reading:
    node = {"Node Type": "Seq Scan", "Relation Name": relation, "Schema": "public", "Alias": relation, name: condition}
    if above:
        node = {"Node Type": above, "Plans": [node]}
    return read_plans([f"duration: 0.1 ms  plan:\n{json.dumps({'Plan': node})}"], KEYS)


@pytest.mark.parametrize(
    ("condition", "keys"),
    [
        ("(t.id = 1)", {"=1"}),
        ("(id = 1)", {"=1"}),
        ("((t.id = 1) AND (t.v > 5))", {"=1"}),
        ("((t.v > 5) AND (t.id = '-7'::integer))", {"=-7"}),
        ("(t.id = ANY ('{1,2}'::integer[]))", {"=1", "=2"}),
        ("(t.id = 9999999999)", {"=9999999999"}),
    ],
)
def test_a_whole_condition_on_the_key_is_one(condition: str, keys: set[str]) -> None:
    assert reading(condition).reads == {("public.t", key) for key in keys}


@pytest.mark.parametrize(
    "condition",
    [
        "(COALESCE((t.id = 1), false) = false)",
        "((t.id = 1) IS NOT TRUE)",
        "(NOT (t.id = 1))",
        "((t.id = 1) OR (t.id = 2))",
        "((t.id = 1) = (t.v = 0))",
        "(t.id = $1)",
        "(t.id = (InitPlan 1).col1)",
        "(t.id = u.id)",
        "(u.id = 1)",
        "(t.v = 1)",
        "((t.id)::numeric = 1.0)",
        "(t.id <> 1)",
        "(t.id = ANY ('{1,\"a,b\"}'::text[]))",
        "(t.id = ALL ('{1,2}'::integer[]))",
        "(CASE WHEN (t.id = 1) THEN false ELSE true END)",
        "(t.w = 'A'::text COLLATE ci)",
        "(t.note = 'x) AND (t.id = 1'::text)",
        "(t.note = E'a\\\\' AND (t.id = 1)",
        "t.id = 1",
        "",
    ],
)
def test_what_only_looks_like_a_key_is_the_whole_relation(condition: str) -> None:
    assert reading(condition).reads == {("public.t", ALL)}


def test_quoted_names_and_texts_are_taken_as_they_are() -> None:
    assert reading('("Order"."Id" = 1)', relation="Order").reads == {("public.Order", "=1")}
    assert reading("(word.w = 'it''s'::text)", relation="word").reads == {("public.word", "=it's")}


def test_rows_that_would_be_locked_are_wished_for() -> None:
    assert reading("(t.id = 1)", above="LockRows").wishes == {("public.t", "=1")}
    assert reading("(t.id = 1)", above="Limit").wishes == set()


def test_a_node_that_nobody_can_see_into_is_told() -> None:
    plan = {"Node Type": "Foreign Scan", "Relation Name": "f", "Schema": "public", "Alias": "f"}
    assert read_plans([json.dumps({"Plan": plan})], {}).opaque
    assert read_plans(["no plan at all"], {}).opaque


@given(st.text(max_size=80))
def test_no_text_breaks_it(condition: str) -> None:
    assert reading(condition).plans == 1


@pytest.mark.parametrize(
    ("output", "count"),
    [
        ("nextval('entry_ids'::regclass)", 1),
        ("gen_random_uuid()", 1),
        ("1", 1),
        ("take(1)", 0),
        ("nextval('a'::regclass) + take(1)", 0),
        ("pg_advisory_lock('1'::bigint)", 0),
    ],
)
def test_what_only_draws_a_value_is_harmless(output: str, count: int) -> None:
    plan = {"Node Type": "Result", "Output": [output], "Plan Rows": 1}
    assert read_plans([json.dumps({"Plan": plan})], {}).harmless == count


@pytest.mark.parametrize(
    "output",
    [
        "pg_relation_size('t'::regclass, 'main'::text)",
        "pg_snapshot_xmin(pg_current_snapshot())",
        "pg_sequence_last_value((c.oid)::regclass)",
        "pg_cancel_backend(t.v)",
        "lo_get(t.v)",
        "(t.xmax)::text",
    ],
)
def test_what_tells_of_more_than_rows_is_told(output: str) -> None:
    plan = {"Node Type": "Seq Scan", "Relation Name": "t", "Schema": "public", "Alias": "t", "Output": [output]}
    assert read_plans([json.dumps({"Plan": plan})], {}).opaque


@pytest.mark.parametrize(
    "output", ["pg_get_viewdef(c.oid)", "pg_table_is_visible(c.oid)", "pg_advisory_xact_lock('1'::bigint)", "t.xmaxed"]
)
def test_what_tells_of_the_catalog_or_is_seen_elsewhere_is_not(output: str) -> None:
    plan = {"Node Type": "Seq Scan", "Relation Name": "t", "Schema": "public", "Alias": "t", "Output": [output]}
    assert not read_plans([json.dumps({"Plan": plan})], {}).opaque
