"""The page of a benchmark: made from the saved file, and honest about its noise."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

from bankrun.bench.benchmark import BenchPlan
from bankrun.bench.costmap import cheapest
from bankrun.bench.rates import Contestant, Rates, Row
from bankrun.render import benchmarks as page
from bankrun.render import distances
from bankrun.results.distance import Distance
from bankrun.results.models.bench import (
    NOOP,
    PGBENCH,
    PGBENCH_ACCEPTED,
    PGBENCH_SINGLE,
    Bench,
    CostCell,
    RateSpread,
    RoundTrips,
)
from bankrun.results.provenance import Provenance
from bankrun.results.store import read_as
from bankrun.results.topology import Topology

SHAPE = Topology(2, 4)


def rates() -> Rates:
    """Return a benchmark with figures that are easy to divide."""
    return Rates(
        [
            Row(Contestant(PGBENCH, SHAPE), [1000.0, 1000.0, 1000.0]),
            Row(Contestant(PGBENCH_ACCEPTED, SHAPE), [1500.0, 1500.0, 1500.0]),
            Row(Contestant(NOOP, SHAPE), [3000.0, 3000.0, 3000.0]),
            Row(Contestant("row-lock", SHAPE), [400.0, 500.0, 900.0]),
            Row(Contestant("batch", SHAPE, 1_000), [12_000.0, 12_000.0, 12_000.0]),
            Row(Contestant("batch", SHAPE, 1_000, 10), [11_000.0, 11_000.0, 11_000.0]),
            Row(Contestant("huey", SHAPE)),
        ]
    )


def result() -> Bench:
    """Return what a run with these rates would have saved."""
    return Bench(
        Provenance(
            bankrun="0",
            command="bankrun bench",
            started="2026-11-22",
            seed=1,
            environment={
                "cores": 2,
                "platform": "p",
                "python": "3",
                "postgres": {"fsync": "on"},
                "redis": {"server": "valkey", "version": "9"},
            },
        ),
        rounds=3,
        topology="2x4",
        accounts=1_000,
        rows=rates().summarize(),
        bounds={PGBENCH_ACCEPTED: 1_000.0},
        load_average=[0.1, 2.0],
        missing={"huey": "huey was not run: it is not installed"},
        cost_map=[
            CostCell(
                instances=1,
                threads=4,
                accounts=2,
                think_ms=2.0,
                cheapest=["<row-lock>", "table-lock"],
                transfers_per_s={"<row-lock>": 100.0, "table-lock": 95.0, "redis-lock": 10.0},
            )
        ],
    )


def test_the_ratios_are_to_pgbench_and_to_the_bound_of_the_same_topology() -> None:
    found = {(row.name, row.accounts): row for row in rates().summarize()}
    assert ("huey", 1_000) not in found
    row = found["row-lock", 1_000]
    assert (row.transfers_per_s, row.ratio_to_pgbench) == (RateSpread(median=500.0, min=400.0, max=900.0), 0.5)
    assert row.ratio_to_bound == 0.5  # of 1/(1/3000 + 1/1500)
    assert row.noisy
    assert (found["batch", 1_000].ratio_to_pgbench, found["batch", 1_000].ratio_to_bound) == (12.0, None)
    assert found["batch", 10].ratio_to_pgbench == 11.0


def test_the_page_says_what_was_noisy_what_was_not_run_and_what_is_cheapest() -> None:
    text = page.markdown(result(), pictures={"rates": "r.svg", "map": "m.svg"})
    assert "**Noisy**: 1 of 6 contestants" in text
    assert "| `row-lock` (noisy) | 1 | 500 | 400 | 900 | 50% | 50% |" in text
    assert "| `batch` | 1,000 | 12,000 | 12,000 | 12,000 | 12.0 × |  |" in text
    assert "| `batch`, chunk 1,000 | 11,000 | 12,000 |" in text
    assert "huey was not run: it is not installed" in text
    assert "| 1x4 | 2 | 2 ms | `<row-lock>`, `table-lock` | 100 | redis-lock 10 |" in text


def test_the_row_lock_is_given_in_times_of_each_other_queue() -> None:
    saved = result()
    assert "## Beside other queues" not in page.markdown(saved, pictures={"rates": "r.svg", "map": "m.svg"})
    measured = rates()
    measured.rows.append(Row(Contestant("dramatiq", SHAPE), [250.0]))
    measured.rows.append(Row(Contestant("row-lock", SHAPE, 10), [600.0]))
    saved.rows = measured.summarize()
    text = page.markdown(saved, pictures={"rates": "r.svg", "map": "m.svg"})
    assert "| `row-lock`, transfers in a message | median /s | of dramatiq |" in text
    assert "| 1 | 500 | 2.0 × |" in text
    assert "| 10 | 600 | 2.4 × |" in text


def test_rabbitmq_is_put_beside_redis_where_both_were_measured() -> None:
    saved, measured = result(), rates()
    assert "RabbitMQ" not in page.markdown(saved, pictures={"rates": "r.svg", "map": "m.svg"})
    measured.rows.append(Row(Contestant("rabbitmq row-lock", SHAPE), [125.0]))
    saved.rows = measured.summarize()
    saved.provenance.environment["rabbitmq"] = {"server": "rabbitmq", "version": "4.0.5"}
    text = page.markdown(saved, pictures={"rates": "r.svg", "map": "m.svg"})
    assert "from rabbitmq 4.0.5:" in text
    assert "| `row-lock` | 500 | 125 | 25% |" in text


def test_the_single_statement_is_measured_by_a_bound_of_its_own_too() -> None:
    saved, measured = result(), rates()
    measured.rows.append(Row(Contestant(PGBENCH_SINGLE, SHAPE), [6000.0]))
    measured.rows.append(Row(Contestant("single-statement", SHAPE), [1500.0]))
    bound = measured.bound(SHAPE, script=PGBENCH_SINGLE)
    assert bound == 2000.0  # 1/(1/3000 + 1/6000)
    saved.rows, saved.bounds = measured.summarize(), {**saved.bounds, PGBENCH_SINGLE: bound}
    text = page.markdown(saved, pictures={"rates": "r.svg", "map": "m.svg"})
    assert "the bound is 2,000/s, and `single-statement` reaches 75% of it" in text
    assert "| `single-statement` | 1 | 1,500 | 1,500 | 1,500 | 150% | 150% |" in text


def test_the_pictures_are_xml_with_everything_that_the_tables_have() -> None:
    bars, field = ET.fromstring(page.rates_svg(result())), ET.fromstring(page.map_svg(result()))
    assert "batch, 1,000 in a message" in "".join(bars.itertext())
    assert "<row-lock>" in "".join(field.itertext())


def test_the_page_in_docs_is_what_its_file_makes() -> None:
    docs = Path(__file__).parents[2] / "docs"
    saved = read_as(Bench, docs / "benchmarks.json")
    links = {name: f"benchmarks-{name}.svg" for name in ("rates", "map")}
    assert (docs / "benchmarks.md").read_text() == page.markdown(saved, pictures=links)
    assert (docs / links["rates"]).read_text() == page.rates_svg(saved)
    assert (docs / links["map"]).read_text() == page.map_svg(saved)
    far = read_as(Bench, docs / "distances.json")
    links = {name: f"distances-{name}.svg" for name in ("few", "many")}
    assert (docs / "distances.md").read_text() == distances.markdown(far, pictures=links)


def test_whatever_is_measured_around_the_headline_is_measured_once() -> None:
    plan = BenchPlan(("row-lock", "single-statement"), SHAPE, 3_000, 1_000, 10, 3, 1, full=True)
    found = [one.what for one in plan.contestants(set())]
    assert len(found) == len(set(found)) > 60


def test_who_overtakes_and_who_falls_behind_is_told_as_the_distance_grows() -> None:
    near, far = SHAPE, replace(SHAPE, distance=Distance.parse("30"))
    measured = {"fast-here": (900.0, 10.0), "fast-there": (400.0, 50.0), "level": (420.0, 20.0), "slow": (100.0, 2.0)}
    rows = [
        Row(Contestant(name, place, accounts=8), [rate])
        for name, both in measured.items()
        for place, rate in zip((near, far), both, strict=True)
    ]
    saved = replace(result(), rows=Rates(rows).summarize(), round_trips=dict.fromkeys(measured, RoundTrips(1, 0)))
    told = [line for line in distances.markdown(saved, pictures={"few": "f", "many": "m"}).splitlines() if "- " in line]
    assert [line for line in told if line.startswith("- ")] == [
        "- `fast-there` overtakes `fast-here` between 0 and 30 ms.",
        "- `level` overtakes `fast-here` between 0 and 30 ms.",
        "- `level` is level with `fast-there` at 0 ms and falls behind: at 30 ms `fast-there` is 2.5 × as fast.",
    ]


def test_what_is_within_a_tenth_of_the_best_is_named_with_it() -> None:
    assert cheapest({"a": 100.0, "b": 91.0, "c": 89.0}) == ["a", "b"]
    assert cheapest({}) == []
