"""A benchmark by distance: rates of each strategy at each round-trip time, as tables, a picture, and what crosses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from math import log10

from bankrun.render.svg import Picture, stand_alone
from bankrun.results.models.bench import Bench

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 820.0, 400.0, 90.0, 260.0, 28.0, 20.0
LABEL = 17.0
CLEAR = 1.25
"""One rate is another's better only if it is so many times as high."""
APART = 1.6
"""Two that were level have come apart if one is so many times as fast."""
Grid = Mapping[tuple[str, int], Sequence[float | None]]
EXPLAINED = (
    "Transfers a second; each cell ends after a few seconds, and what was not begun by then is withdrawn. *Round trips*"
    " are counted on the wire, of one transfer that nobody disturbs: all of them, and those during which it keeps"
    " others out (a lock on the account, a table lock, a guard). So two transfers of one account cannot be closer"
    " together than that many round trips, whatever the number of workers. The delay is made by a proxy for each"
    " instance, half of it each way, and was measured before each cell; a rate with a delay that is off by more than"
    " 1 ms is not taken."
)


def find_accounts(result: Bench) -> list[int]:
    """Return over how many accounts was measured, the fewest first."""
    return sorted({row.accounts for row in result.rows})


def gather(result: Bench) -> tuple[list[str], Grid]:
    """Return the distances in ms, and for each strategy and number of accounts the median rates at these."""
    places = list(dict.fromkeys(_place(row.topology) for row in result.rows))
    by = {(row.name, row.accounts, _place(row.topology)): row.transfers_per_s.median for row in result.rows}
    keys = dict.fromkeys((row.name, row.accounts) for row in sorted(result.rows, key=lambda row: row.accounts))
    return places, {(name, accounts): [by.get((name, accounts, place)) for place in places] for name, accounts in keys}


def _place(topology: str) -> str:
    return topology.partition("@")[2].removesuffix("ms") or "0"


def markdown(result: Bench, *, pictures: Mapping[str, str]) -> str:
    """Return the page. ``pictures`` are the files of ``few`` and ``many``, as the page is to link them."""
    source = result.provenance
    made = (
        f"Written by `{source.command}`; do not edit. {source.started}, bankrun {source.bankrun}, "
        f"{source.environment['cores']} cores, {result.rounds} round{'s' * (result.rounds > 1)}, on {result.topology}."
    )
    lines = [
        "# Far away: what a lock costs at a distance",
        "",
        made,
        "",
        EXPLAINED,
        "",
    ]
    for name, accounts in zip(("few", "many"), find_accounts(result), strict=False):
        told = "with contention" if name == "few" else "hardly any contention"
        lines += [f"## Over {accounts:,} accounts: {told}", "", *_table(result, accounts), ""]
        lines += [f"![{describe(result, accounts)}]({pictures[name]})", "", *_cross(result, accounts), ""]
    if result.faults:
        lines += ["## Not measured", "", *(f"- {fault}" for fault in result.faults), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(result: Bench, accounts: int) -> Iterator[str]:
    places, grid = gather(result)
    yield f"| strategy | round trips | while others wait | {' | '.join(f'{place} ms' for place in places)} |"
    yield f"|---|{'---:|' * (2 + len(places))}"
    for (name, number), rates in grid.items():
        if number == accounts:
            trips = (result.round_trips or {})[name]
            cells = " | ".join("" if rate is None else f"{rate:,.0f}" for rate in rates)
            yield f"| `{name}` | {trips.total} | {trips.holding} | {cells} |"


def describe(result: Bench, accounts: int) -> str:
    """Return the picture in words."""
    places, grid = gather(result)
    return f"Transfers a second over {accounts:,} accounts, at a round trip of {', '.join(places)} ms: " + "; ".join(
        f"{name} {', '.join('unknown' if rate is None else f'{rate:,.0f}' for rate in rates)}"
        for (name, number), rates in grid.items()
        if number == accounts
    )


def _cross(result: Bench, accounts: int) -> Iterator[str]:
    """Say where one strategy clearly overtakes another one as the distance grows, or leaves it behind."""
    places, grid = gather(result)
    rows = {name: rates for (name, number), rates in grid.items() if number == accounts}
    found: list[str] = []
    for one, other in combinations(rows, 2):
        leads = [
            (place, one if a >= b else other, max(a, b) / min(a, b))
            for place, a, b in zip(places, rows[one], rows[other], strict=True)
            if a and b
        ]
        found += _turns({one, other}, leads)
    yield from found or ["No strategy clearly overtakes another one as the distance grows."]


def _turns(pair: set[str], leads: Sequence[tuple[str, str, float]]) -> Iterator[str]:
    """Tell of two strategies, given who leads at each distance and how many times as fast."""
    clear = [(place, leader) for place, leader, times in leads if times > CLEAR]
    for (near, before), (far, after) in pairwise(clear):
        if before != after:
            yield f"- `{after}` overtakes `{before}` between {near} and {far} ms."
    if leads and clear and leads[0][2] <= CLEAR and len({leader for _, leader in clear}) == 1:
        place, leader, times = max(leads, key=lambda lead: lead[2])
        (left,) = pair - {leader}
        if times > APART:
            yield (
                f"- `{left}` is level with `{leader}` at {leads[0][0]} ms and falls behind: at {place} ms `{leader}` is"
                f" {times:.1f} × as fast."
            )


def draw(result: Bench, accounts: int) -> str:
    """Return the rates as lines over the distance, both axes logarithmic, by an SVG of its own."""
    places, grid = gather(result)
    rows = {name: rates for (name, number), rates in grid.items() if number == accounts}
    known = [rate for rates in rows.values() for rate in rates if rate]
    low, high = log10(min(known, default=1.0)), log10(max(known, default=10.0))
    picture = Picture(
        "distances",
        f"Transfers a second by distance, over {accounts:,} accounts",
        describe(result, accounts),
        width=WIDTH,
    )

    def x(number: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * number / max(1, len(places) - 1)

    def y(rate: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - log10(rate)) / max(0.1, high - low)

    for number, place in enumerate(places):
        picture.add("line", "lane", x1=x(number), x2=x(number), y1=TOP, y2=HEIGHT - BOTTOM)
        picture.add("text", "small", f"{place} ms", x=x(number), y=TOP - 8, text_anchor="middle")
    for power in range(int(low), int(high) + 1):
        if low <= power <= high:
            picture.add("line", "lane", x1=LEFT, x2=WIDTH - RIGHT, y1=y(10.0**power), y2=y(10.0**power))
            picture.add("text", "small", f"{10**power:,}/s", x=4, y=y(10.0**power) + 4)
    picture.add("text", "small", "round trip:", x=4, y=TOP - 8)
    bottom = TOP
    for name, rates in sorted(rows.items(), key=lambda item: -(item[1][-1] or 0.0)):
        spots = [(x(number), y(rate)) for number, rate in enumerate(rates) if rate]
        if not spots:
            continue
        trips = (result.round_trips or {})[name]
        path = "M" + " L".join(f"{across:.1f},{down:.1f}" for across, down in spots)
        picture.add("path", "write", d=path, fill="none")
        for across, down in spots:
            picture.add("circle", "culprit", cx=across, cy=down, r=3)
        bottom = max(spots[-1][1], bottom)
        picture.add("line", "lane", x1=spots[-1][0], y1=spots[-1][1], x2=WIDTH - RIGHT + 14, y2=bottom)
        picture.add("text", "", f"{name}: holds {trips.holding} of {trips.total}", x=WIDTH - RIGHT + 18, y=bottom + 4)
        bottom += LABEL
    return stand_alone(picture.svg(max(HEIGHT, bottom + 10)))
