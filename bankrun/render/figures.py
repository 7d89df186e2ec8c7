"""Figures of saved results: each is a sentence and a table first, and a picture second.

For what one explores the picture is a Plotly figure; space-time diagrams and matrices are SVG. The report and the page
show the same ones. Text that comes from a result is escaped, because Plotly takes some HTML in its labels.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bankrun.errors import CannotStart
from bankrun.render.html import Figure
from bankrun.render.matrices import fault_matrix, proof_matrix
from bankrun.render.multiples import TOGETHER_MAX, Axes, Panel, small_multiples
from bankrun.render.space_time import space_time
from bankrun.render.story import explain, join_names
from bankrun.results.models.chaos import Chaos
from bankrun.results.models.comparison import Cell, Comparison, Run
from bankrun.results.models.proof import HEADINGS, SUMMARIES, ProofResult
from bankrun.results.store import Result

COLOURS = ("#d6453d", "#2f7ed8", "#1b9e77", "#b455a0", "#c27c0e", "#7570b3", "#0e9bb5", "#8a8f98")
"""Each is seen on white and on the report's dark paper: a contrast of 3 and more against both."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
VERDICT_COLOURS = {"safe": "#1b9e77", "broken": "#d6453d", "inconclusive": "#c27c0e"}
VERDICT_MARKS = {"safe": "circle", "broken": "x", "inconclusive": "diamond-open"}
COSTS = {
    "guard": "guard's queue",
    "move": "statements, with their waits for locks",
    "commit": "COMMIT",
    "backoff": "back-off before a retry",
    "rest": "the rest: claim, think time, Python",
}
QUARTERS = (0.25, 0.5, 0.75, 1.0)


def figures(result: Result) -> list[Figure]:
    """Return a result's figures, the most telling first. Raises CannotStart for a kind that has none."""
    if isinstance(result, Comparison):
        return comparison_figures(result.cells)
    if isinstance(result, ProofResult):
        return [proof_figure(result)]
    if isinstance(result, Chaos):
        return [fault_figure(result)]
    raise CannotStart(f"pictures are made of a comparison, a proof or chaos, and this is a {result.kind}")


def comparison_figures(cells: Sequence[Cell]) -> list[Figure]:
    """Return the figures of a comparison. One that nothing was measured for is left out."""
    by_topology: dict[str, list[Run]] = {}
    for cell in cells:
        by_topology.setdefault(cell.shown.topology, []).append(cell.shown)
    return [
        *(
            money_over_time(runs, topology)
            for topology, runs in by_topology.items()
            if any(run.history.seconds for run in runs)
        ),
        *(lost_posting(cell) for cell in cells if cell.verdict == "broken" and len(cell.shown.scene) >= 2),
        losses(cells),
        speed_and_correctness(cells),
        *([latency([cell.shown for cell in cells])] if any(cell.shown.latency_counts for cell in cells) else []),
        *([costs([cell.shown for cell in cells])] if any(cell.shown.cost_ms for cell in cells) else []),
    ]


def money_over_time(runs: Sequence[Run], topology: str) -> Figure:
    """Return how the bank's total went while each strategy ran, against the line where it should be."""
    together = len(runs) <= TOGETHER_MAX
    plot = _plot("seconds since the first commit", "money in the bank, minor units") if together else None
    rows = []
    opening = runs[0].opening_total
    colours = _colours(run.strategy for run in runs)
    for run in runs:
        history = run.history
        if not history.seconds:
            continue
        if plot is not None:
            plot.add_scatter(
                x=[0.0, *history.seconds],
                y=[run.opening_total, *(run.opening_total + drift for drift in history.drift)],
                mode="lines",
                name=escape(run.strategy),
                line={
                    "color": colours[run.strategy],
                    "width": 2,
                    "shape": "hv",
                    "dash": "dot" if run.held else "solid",
                },
                hovertemplate="%{y:,} after %{x:.2f} s",
            )
        moments = [bisect_right(history.seconds, part * history.seconds[-1]) for part in QUARTERS]
        drifts = [history.drift[moment - 1] if moment else 0 for moment in moments]
        rows.append((run.strategy, *(f"{drift:+,}" if drift else "0" for drift in drifts), f"{history.clobbers[-1]:,}"))
    if plot is not None:
        plot.add_hline(
            y=opening,
            line={"dash": "dash", "width": 1.5, "color": "#8a8f98"},
            annotation_text="at opening",
            annotation_position="top left",
        )
        plot.update_yaxes(tickformat=",d")
    name = _make_slug(f"money-{topology}")
    off = [run.strategy for run in runs if run.history.drift and any(run.history.drift)]
    who = join_names(off) if together else f"{len(off)} of {len(runs)} strategies"
    where = f"{who} left the line of {opening:,}" if off else f"no total left the line of {opening:,}"
    return Figure(
        name,
        f"Money over time on {topology}",
        f"On {topology}, {where}. Its table is how far the total was off after each quarter of the run, and how many "
        "entries wrote over what they had not read.",
        ("strategy", "¼", "½", "¾", "end", "overwrites"),
        rows,
        svg="" if together else _money_panels(name, runs, topology),
        plot=plot,
    )


def _money_panels(name: str, runs: Sequence[Run], topology: str) -> str:
    panels = [
        Panel(
            run.strategy,
            f"{run.lost_postings:,} lost, off by {run.drift:+,}" if run.lost_postings else "nothing lost",
            [[(0.0, 0.0), *zip(run.history.seconds, run.history.drift, strict=True)]],
            not run.held,
        )
        for run in runs
        if run.history.seconds
    ]
    drifts = [0, *(drift for run in runs for drift in run.history.drift)]
    axes = Axes(
        (min(drifts), max(drifts)),
        stepped=True,
        level=0.0,
        legend=(
            (
                f"All on one scale, from {min(drifts):+,} to {max(drifts):+,}; dashed: the total at opening. "
                "Each panel is as wide as its run was long."
            ),
        ),
    )
    return small_multiples(name, f"Money over time on {topology}", panels, axes)


def lost_posting(cell: Cell) -> Figure:
    """Return the space-time diagram of a broken cell's example, with its story."""
    run = cell.shown
    name = _make_slug(f"lost-{run.strategy}-{run.topology}")
    return Figure(
        name,
        f"How {run.strategy} lost a posting on {run.topology}",
        "Each bar is a posting, from its read to its commit, in the lane of the thread that made it.",
        svg=space_time(name, run.scene),
        told=tuple(explain(cell)),
    )


def losses(cells: Sequence[Cell]) -> Figure:
    """Return lost postings and drift, side by side: a total that is right proves nothing."""
    runs = [cell.shown for cell in cells]
    names = [f"{escape(run.strategy)} {run.topology}" for run in runs]
    plot = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    for column, (values, colour) in enumerate(
        (([run.lost_postings for run in runs], "#d6453d"), ([run.drift for run in runs], "#2f7ed8")), start=1
    ):
        plot.add_bar(
            x=values, y=names, orientation="h", marker_color=colour, row=1, col=column, hovertemplate="%{y}: %{x:,}"
        )
    _lay_out(plot, height=120 + 26 * len(runs))
    plot.update_layout(showlegend=False)
    plot.update_yaxes(autorange="reversed")
    plot.update_xaxes(title_text="postings lost", row=1, col=1)
    plot.update_xaxes(title_text="drift, minor units", row=1, col=2)
    lossy = [run for run in runs if run.lost_postings]
    cancelled = [f"{run.strategy} on {run.topology}" for run in lossy if run.drift == 0]
    text = f"{len(lossy)} of {len(runs)} cells lost postings."
    if cancelled:
        text += f" For {join_names(cancelled)} what was lost cancels out, and the total looks right."
    rows = [
        (
            f"{run.strategy} {run.topology}",
            f"{run.lost_postings:,}",
            f"{_share(run):.1%}",
            f"{run.drift:+,}" if run.drift else "0",
            f"{run.unexplained:,}",
        )
        for run in runs
    ]
    return Figure(
        "losses", "Lost postings and drift", text, ("cell", "lost", "of all", "drift", "unexplained"), rows, plot=plot
    )


def speed_and_correctness(cells: Sequence[Cell]) -> Figure:
    """Return throughput against the share of postings that were kept."""
    plot = _plot("transfers per second", "postings lost, % of all")
    for verdict, colour in VERDICT_COLOURS.items():
        runs = [cell.shown for cell in cells if cell.verdict == verdict]
        if runs:
            plot.add_scatter(
                x=[run.transfers_per_s for run in runs],
                y=[100 * _share(run) for run in runs],
                text=[f"{escape(run.strategy)} {run.topology}" for run in runs],
                mode="markers+text" if len(cells) <= 12 else "markers",
                textposition="top center",
                name=verdict,
                marker={"color": colour, "symbol": VERDICT_MARKS[verdict], "size": 12},
                hovertemplate="%{text}: %{x:,.0f}/s, %{y:.1f} % lost",
            )
    plot.update_yaxes(rangemode="tozero")
    plot.update_xaxes(rangemode="tozero", tickformat=",d")
    safe = [cell.shown for cell in cells if cell.verdict == "safe"]
    fastest = max(safe, key=lambda run: run.transfers_per_s, default=None)
    text = (
        f"The fastest of what was found safe is {fastest.strategy} on {fastest.topology}, "
        f"with {fastest.transfers_per_s:,.0f} transfers per second."
        if fastest
        else "Nothing was found safe."
    )
    rows = [
        (
            f"{cell.shown.strategy} {cell.shown.topology}",
            f"{cell.shown.transfers_per_s:,.0f}",
            f"{_share(cell.shown):.1%}",
            cell.verdict,
        )
        for cell in sorted(cells, key=lambda cell: -cell.shown.transfers_per_s)
    ]
    head = ("cell", "transfers/s", "lost", "verdict")
    return Figure("speed", "Speed and correctness", text, head, rows, plot=plot)


def latency(runs: Sequence[Run]) -> Figure:
    """Return how long transfers took, as the share of them that took no longer."""
    together = len({run.strategy for run in runs}) <= TOGETHER_MAX
    words = "milliseconds from delivery to COMMIT, retries included"
    plot = _plot(words, "% of transfers that took no longer")
    colours = _colours(run.strategy for run in runs)
    topologies = list(dict.fromkeys(run.topology for run in runs))
    for run in runs:
        shares = _shares(run)
        if not shares:
            continue
        plot.add_scatter(
            x=[bound for bound, _ in run.latency_counts],
            y=shares,
            mode="lines",
            name=f"{escape(run.strategy)} {run.topology}",
            line={"color": colours[run.strategy], "dash": DASHES[topologies.index(run.topology) % len(DASHES)]},
            hovertemplate="%{y:.1f} % within %{x:.1f} ms",
        )
    plot.update_xaxes(type="log", dtick="D2")
    plot.update_yaxes(range=[0, 101])
    percentiles = ("p50", "p95", "p99", "max")
    rows = [
        (f"{run.strategy} {run.topology}", *(f"{run.latency_ms[name]:,.1f}" for name in percentiles))
        for run in runs
        if all(name in run.latency_ms for name in percentiles)
    ]
    slowest = max((run for run in runs if "p99" in run.latency_ms), key=lambda run: run.latency_ms["p99"], default=None)
    text = (
        f"The longest tail is that of {slowest.strategy} on {slowest.topology}: one transfer in a hundred took "
        f"{slowest.latency_ms['p99']:,.0f} ms or more."
        if slowest
        else "No transfer was timed."
    )
    head = ("cell", "p50 ms", "p95 ms", "p99 ms", "max ms")
    if together:
        return Figure("latency", "Latency", text, head, rows, plot=plot)
    return Figure("latency", "Latency", text, head, rows, svg=_latency_panels(runs, topologies, words))


def _latency_panels(runs: Sequence[Run], topologies: Sequence[str], words: str) -> str:
    by_strategy: dict[str, list[Run]] = {}
    for run in runs:
        if run.latency_counts:
            by_strategy.setdefault(run.strategy, []).append(run)
    bounds = [bound for run in runs for bound, _ in run.latency_counts]
    begin = max(min(bounds), 0.001)
    panels = [
        Panel(
            strategy,
            "p99 " + ", ".join(f"{run.latency_ms['p99']:,.0f}" for run in its if "p99" in run.latency_ms) + " ms",
            [
                [(bound, share) for (bound, _), share in zip(run.latency_counts, _shares(run), strict=False)]
                for run in its
            ],
        )
        for strategy, its in by_strategy.items()
    ]
    axes = Axes(
        (0.0, 100.0),
        (begin, max(begin * 2, *bounds)),
        log=True,
        legend=(
            f"Across: {words}, from {min(bounds):,.2g} to {max(bounds):,.0f}, logarithmic.",
            (
                "Up: % of transfers that took no longer. "
                f"Solid: {topologies[0]}{'; dashed: ' + ', '.join(topologies[1:]) if topologies[1:] else ''}."
            ),
        ),
    )
    return small_multiples("latency", "Latency", panels, axes)


def _shares(run: Run) -> list[float]:
    """Return, for each bound, how many percent of the transfers took no longer."""
    total = sum(count for _, count in run.latency_counts)
    done = 0
    return [100 * (done := done + count) / total for _, count in run.latency_counts] if total else []


def costs(runs: Sequence[Run]) -> Figure:
    """Return what the mean of a transfer's time went into."""
    timed = [run for run in runs if run.cost_ms]
    names = [f"{escape(run.strategy)} {run.topology}" for run in timed]
    plot = _plot("milliseconds for a transfer, on average", "", height=170 + 26 * len(timed))
    for (cost, words), colour in zip(COSTS.items(), COLOURS[1:], strict=False):
        plot.add_bar(
            x=[run.cost_ms.get(cost, 0.0) for run in timed],
            y=names,
            orientation="h",
            name=words,
            marker_color=colour,
            hovertemplate="%{y}: %{x:.2f} ms",
        )
    plot.update_layout(barmode="stack", legend={"traceorder": "normal"})
    plot.update_yaxes(autorange="reversed")
    rows = [
        (f"{run.strategy} {run.topology}", *(f"{run.cost_ms.get(cost, 0.0):.2f}" for cost in COSTS)) for run in timed
    ]
    waits = max(timed, key=lambda run: run.cost_ms.get("guard", 0.0) + run.cost_ms.get("backoff", 0.0))
    idle = waits.cost_ms.get("guard", 0.0) + waits.cost_ms.get("backoff", 0.0)
    text = (
        "What a transfer's time went into, on average, from its delivery to its COMMIT. What a statement waits for a "
        "row's lock cannot be told from its round trip, so both are one part."
    )
    if idle > 0:
        text += f" Most of it is waited outside of Postgres by {waits.strategy} on {waits.topology}: {idle:.1f} ms."
    return Figure("costs", "Where the time goes", text, ("cell, ms", *COSTS.values()), rows, plot=plot)


def proof_figure(proof: ProofResult) -> Figure:
    """Return the matrix of a proof."""
    broken, total = sum(case.broken for case in proof.cases), sum(case.interleavings for case in proof.cases)
    met = [
        f"{HEADINGS.get(name, name)}, {SUMMARIES[name]}"
        for name in SUMMARIES
        if name in {case.case for case in proof.cases}
    ]
    rows = [
        (
            case.strategy,
            case.instances,
            case.case,
            f"{case.broken:,}",
            f"{case.interleavings:,}",
            ", ".join(case.kinds),
            case.shortest_broken or "",
        )
        for case in proof.cases
    ]
    return Figure(
        "interleavings",
        "Every order in which the transfers can meet",
        f"{broken:,} of {total:,} interleavings are broken. A cell says how many of its own; ! marks a refuted claim. "
        f"The cases: {'; '.join(met)}.",
        ("strategy", "in", "case", "broken", "of", "what failed", "the shortest: bankrun replay …"),
        rows,
        svg=proof_matrix("interleavings", proof.cases),
    )


def fault_figure(chaos: Chaos) -> Figure:
    """Return the matrix of faults."""
    rows = [
        (
            cell.fault,
            cell.strategy,
            cell.topology,
            cell.verdict,
            f"{cell.lost_postings:,}",
            f"{cell.duplicates:,}",
            f"{cell.pending:,}",
            f"{cell.extra_deliveries:,}",
            "" if cell.recovery_s is None else f"{cell.recovery_s:.1f}",
        )
        for cell in chaos.cells
    ]
    broken = sum(cell.verdict == "broken" for cell in chaos.cells)
    head = ("fault", "strategy", "topology", "verdict", "lost", "twice", "pending", "extra deliveries", "recovery s")
    text = f"{broken} of {len(chaos.cells)} cells are broken."
    return Figure("faults", "What each fault did", text, head, rows, svg=fault_matrix("faults", chaos.cells))


def _make_slug(text: str) -> str:
    """Return a name for an element or a file: whatever a strategy is called, it is no path."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _share(run: Run) -> float:
    return run.lost_postings / (2 * run.applied) if run.applied else 0.0


def _colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name, in the order in which they come."""
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(dict.fromkeys(names))}


def _plot(x: str, y: str, *, height: int = 420) -> go.Figure:
    plot = go.Figure()
    _lay_out(plot, height=height)
    plot.update_xaxes(title_text=x)
    plot.update_yaxes(title_text=y)
    return plot


def _lay_out(plot: go.Figure, *, height: int) -> None:
    """Leave to the page around it what its theme decides: the paper, and the colours of text and lines."""
    plot.update_layout(
        template="none",
        height=height,
        margin={"l": 70, "r": 20, "t": 30, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
    )
    plot.update_xaxes(automargin=True, gridcolor="rgba(128,136,150,0.28)", zerolinecolor="rgba(128,136,150,0.5)")
    plot.update_yaxes(automargin=True, gridcolor="rgba(128,136,150,0.28)", zerolinecolor="rgba(128,136,150,0.5)")
