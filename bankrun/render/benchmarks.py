"""A saved benchmark as a page: tables and two pictures, made from the file and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log10

from bankrun.render.svg import Picture, stand_alone
from bankrun.results.models.bench import PGBENCH_SINGLE, QUEUE_ROWS, QUEUE_STRATEGIES, RABBITMQ_ROWS, Bench, BenchRow

WIDTH, LABELS, BAR, STEP = 820, 250, 16, 24
CELL_WIDTH, CELL_HEIGHT = 170, 44
EXPLAINED = (
    "`pgbench` accepts, claims, moves and journals each transfer in one transaction, with as many clients as there are"
    " threads; `pgbench-accepted` finds it accepted, and is the p of the bound. `celery-noop` is messages that do"
    " nothing: n. *The bound* is 1/(1/n + 1/p): a message costs what a no-op costs, and then the transfer what it costs"
    " pgbench. The other queues apply the same transfer with the same teller, and `row-lock`"
    " or the strategy that is named."
)
MAP_EXPLAINED = (
    "Measured, one round: the fastest of those whose claim covers the topology and that lost nothing, with those"
    " that come within a tenth of it. `batch` is not among them: it waits once for a whole message."
)
SINGLE_EXPLAINED = (
    "`pgbench-single-statement` runs the one statement of `single-statement`. With that as p the bound is"
    " {bound:,.0f}/s, and `single-statement` reaches {share:.0%} of it."
)
BESIDE_EXPLAINED = (
    "By Celery, in times of each queue's rate for the same transfers and strategy, one in a message. More than"
    " one transfer in a message means fewer messages; each transfer is still claimed, and committed, on its own."
)
RABBITMQ_EXPLAINED = (
    "Instances of their own, of the same kind, on the same bank, that take the same messages from {server} {version}:"
    " durable quorum queues, publisher confirms."
)
WARNING = (
    "Every rate here is of one machine that also runs both servers and the load. Take the ratios, which come from"
    " contestants measured in turn, and not the rates."
)
FROM = {
    "acceptance": "from before the acceptance to the last commit",
    "claim": "from the first claim to the last commit; all were accepted before",
    "message": "messages, no transfer",
}


def markdown(result: Bench, *, pictures: Mapping[str, str]) -> str:
    """Return the page. ``pictures`` are the files of ``rates`` and ``map``, as the page is to link them."""
    source = result.provenance
    environment = source.environment
    postgres, redis = environment["postgres"], environment["redis"]
    made = (
        f"Written by `{source.command}`; do not edit. {source.started}, bankrun {source.bankrun}, "
        f"{environment['cores']} cores, {environment['platform']}, Python {environment['python']}, "
        f"Postgres {postgres.get('server_version')} (fsync {postgres.get('fsync')}, "
        f"synchronous_commit {postgres.get('synchronous_commit')}), {redis['server']} {redis['version']}."
    )
    lines = [
        "# Benchmarks",
        "",
        made,
        "",
        WARNING,
        "",
        *_noise(result),
        *_headline(result),
        *_figures(result, pictures),
        *_beside_queues(result),
        *_beside_rabbitmq(result),
        *_scaling(result),
        *_contention(result),
        *_map(result, pictures),
        *_scale(result),
        *_left_out(result),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _noise(result: Bench) -> list[str]:
    load = result.load_average
    noisy = [row for row in result.rows if row.noisy]
    said = [f"Load average over the last minute, before and after: {load[0]} and {load[1]}."] if load else []
    if noisy:
        said.append(
            f"**Noisy**: {len(noisy)} of {len(result.rows)} contestants differed by more than a quarter of their"
            f" median over the {result.rounds} rounds: small differences between them mean nothing."
        )
    if result.rounds == 1:
        said.append("**One round only**: nothing here says how much of a difference is chance.")
    return [*said, ""]


def _headline(result: Bench) -> list[str]:
    topology = result.topology
    rows = result.headline
    lines = [f"## On {topology}, over {result.accounts:,} accounts", ""]
    lines += table(
        ("contestant", "transfers in a message", "median /s", "min", "max", "of pgbench", "of the bound"),
        [
            (
                f"`{row.name}`" + (" (noisy)" if row.noisy else ""),
                f"{row.chunk:,}",
                *(f"{getattr(row.transfers_per_s, name):,.0f}" for name in ("median", "min", "max")),
                _ratio(row.ratio_to_pgbench),
                _ratio(row.ratio_to_bound),
            )
            for row in rows
        ],
    )
    lines += [
        "",
        EXPLAINED,
        "",
        *_single(result, rows),
    ]
    kinds = dict.fromkeys(row.measured_from for row in rows)
    return (
        lines
        + [
            f"- {', '.join(dict.fromkeys(row.name for row in rows if row.measured_from == kind))}: {FROM[kind]}"
            for kind in kinds
        ]
        + [""]
    )


def _single(result: Bench, rows: Iterable[BenchRow]) -> list[str]:
    bound = result.bounds.get(PGBENCH_SINGLE)
    medians = [row.transfers_per_s.median for row in rows if (row.name, row.chunk) == ("single-statement", 1)]
    return [SINGLE_EXPLAINED.format(bound=bound, share=medians[0] / bound), ""] if bound and medians else []


def _figures(result: Bench, pictures: Mapping[str, str]) -> list[str]:
    return [f"![Transfers a second of each contestant, as in the table above]({pictures['rates']})", ""]


def _beside_queues(result: Bench) -> list[str]:
    tables = [line for strategy in QUEUE_STRATEGIES for line in _beside_queues_with(strategy, result.headline)]
    return ["## Beside other queues", "", BESIDE_EXPLAINED, "", *tables] if tables else []


def _beside_queues_with(strategy: str, rows: list[BenchRow]) -> list[str]:
    queues = {
        QUEUE_ROWS[row.name][0]: row for row in rows if row.name in QUEUE_ROWS and strategy in QUEUE_ROWS[row.name]
    }
    ours = [row for row in rows if row.name == strategy]
    if not (queues and ours):
        return []
    return [
        *table(
            (f"`{strategy}`, transfers in a message", "median /s", *(f"of {queue}" for queue in queues)),
            [
                (
                    f"{row.chunk:,}",
                    _median(row),
                    *(_ratio(row.transfers_per_s.median / queue.transfers_per_s.median) for queue in queues.values()),
                )
                for row in ours
            ],
        ),
        "",
    ]


def _beside_rabbitmq(result: Bench) -> list[str]:
    environment = result.provenance.environment
    by = {row.name: row for row in result.headline if row.chunk == 1}
    pairs = [(by[name], by[row]) for row, name in RABBITMQ_ROWS.items() if row in by and name in by]
    if not pairs:
        return []
    return [
        "## RabbitMQ in Redis' place",
        "",
        RABBITMQ_EXPLAINED.format_map(environment["rabbitmq"]),
        "",
        *table(
            ("median /s", environment["redis"]["server"], "rabbitmq", "of it"),
            [
                (
                    f"`{ours.name}`",
                    _median(ours),
                    _median(other),
                    _ratio(other.transfers_per_s.median / ours.transfers_per_s.median),
                )
                for ours, other in pairs
            ],
        ),
        "",
    ]


def _scaling(result: Bench) -> list[str]:
    topologies = dict.fromkeys(row.topology for row in result.rows if row.accounts == result.accounts)
    if len(topologies) < 2:
        return []
    by = {(row.name, row.chunk, row.topology): row for row in result.rows if row.accounts == result.accounts}
    contestants = [
        key
        for key in dict.fromkeys((name, chunk) for name, chunk, _ in by)
        if sum((*key, topology) in by for topology in topologies) > 1
    ]
    ordered = sorted(topologies, key=lambda text: tuple(map(int, text.split("x"))))
    return [
        "## Instances and threads",
        "",
        *table(
            ("median /s", *ordered),
            [
                (
                    f"`{name}`" + (f", chunk {chunk:,}" if chunk > 1 else ""),
                    *(_median(by.get((name, chunk, topology))) for topology in ordered),
                )
                for name, chunk in contestants
            ],
        ),
        "",
    ]


def _contention(result: Bench) -> list[str]:
    rows = [row for row in result.rows if row.topology == result.topology]
    accounts = sorted({row.accounts for row in rows})
    if len(accounts) < 2:
        return []
    by = {(row.name, row.chunk, row.accounts): row for row in rows}
    contestants = [
        key
        for key in dict.fromkeys((name, chunk) for name, chunk, _ in by)
        if sum((*key, number) in by for number in accounts) > 1
    ]
    return [
        f"## Contention, on {result.topology}",
        "",
        *table(
            ("median /s, accounts:", *(f"{number:,}" for number in accounts)),
            [
                (
                    f"`{name}`" + (f", chunk {chunk:,}" if chunk > 1 else ""),
                    *(_median(by.get((name, chunk, number))) for number in accounts),
                )
                for name, chunk in contestants
            ],
        ),
        "",
    ]


def _map(result: Bench, pictures: Mapping[str, str]) -> list[str]:
    cells = result.cost_map
    if not cells:
        return []
    return [
        "## The cheapest correct strategy",
        "",
        MAP_EXPLAINED,
        "",
        f"![The cheapest correct strategy for each load, as in the table below]({pictures['map']})",
        "",
        *table(
            ("instances", "accounts", "between read and write", "cheapest", "transfers/s", "the others"),
            [
                (
                    f"{cell.instances}x{cell.threads}",
                    f"{cell.accounts:,}",
                    f"{cell.think_ms:g} ms",
                    ", ".join(f"`{name}`" for name in cell.cheapest) or "none finished",
                    f"{max(cell.transfers_per_s.values(), default=0):,.0f}",
                    ", ".join(
                        f"{name} {rate:,.0f}"
                        for name, rate in sorted(cell.transfers_per_s.items(), key=lambda item: -item[1])
                        if name not in cell.cheapest
                    ),
                )
                for cell in cells
            ],
        ),
        "",
    ]


def _scale(result: Bench) -> list[str]:
    lines: list[str] = []
    scale = result.scale
    if scale:
        idle, after = (_megabytes(memory) for memory in (scale.worker_mb.idle, scale.worker_mb.after))
        memory = f"Memory of each worker, resident: {idle} idle, {after} afterwards."
        lines += [
            "## A million transfers",
            "",
            *table(
                ("transfers", "made", "accepted", "published", "applied", "audited", "audit's peak memory"),
                [
                    (
                        f"{step.transfers:,}",
                        *(
                            f"{getattr(step, f'{name}_seconds'):.2f} s"
                            for name in ("generate", "accept", "publish", "apply", "audit")
                        ),
                        f"{step.audit_peak_mb:,} MB",
                    )
                    for step in scale.steps
                ],
            ),
            "",
            f"On {scale.topology} with `batch`. {memory}",
            "",
        ]
    first = result.first_cell_seconds
    if first:
        cold, warm = f"{first.cold:.1f} s in a new state directory", f"{first.warm:.1f} s in one that is there"
        lines += [f"From `bankrun compare` to the end of its first cell: {cold}, {warm}.", ""]
    return lines


def _left_out(result: Bench) -> list[str]:
    reasons = [*result.missing.values(), *result.faults]
    return ["## Not measured", "", *(f"- {reason}" for reason in reasons), ""] if reasons else []


def _megabytes(numbers: Sequence[int]) -> str:
    return " and ".join(f"{number:,} MB" for number in numbers) or "unknown"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} ×" if value >= 2 else f"{value:.0%}"


def _median(row: BenchRow | None) -> str:
    return "" if row is None else f"{row.transfers_per_s.median:,.0f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; the first column is words, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def rates_svg(result: Bench) -> str:
    """Return the headline's rates as bars, fastest first. The scale is logarithmic: they lie far apart."""
    rows = sorted(result.headline, key=lambda row: -row.transfers_per_s.median)
    most = max((row.transfers_per_s.max for row in rows), default=1.0)
    picture = Picture(
        "rates",
        f"Transfers a second on {result.topology}, over {result.accounts:,} accounts",
        "; ".join(f"{_label(row)}: {_median(row)}" for row in rows),
        width=WIDTH,
    )

    def x(rate: float) -> float:
        return LABELS + (WIDTH - LABELS - 90) * _decades(rate) / _decades(most)

    for number, row in enumerate(rows):
        y = 16.0 + STEP * number
        rates = row.transfers_per_s
        picture.add("text", "", _label(row), x=4, y=y + BAR - 3)
        kind = "safe" if row.measured_from == "claim" else "other"
        picture.add("rect", kind, x=LABELS, y=y, width=x(rates.median) - LABELS, height=BAR, rx=2)
        picture.add("line", "write", x1=x(rates.min), x2=x(rates.max), y1=y + BAR / 2, y2=y + BAR / 2)
        picture.add("text", "small", f"{rates.median:,.0f}", x=x(rates.max) + 6, y=y + BAR - 4)
    height = 16.0 + STEP * len(rows)
    picture.add(
        "text", "small", "logarithmic; the line is from the slowest to the fastest round", x=LABELS, y=height + 12
    )
    return stand_alone(picture.svg(height + 24)) + "\n"


def map_svg(result: Bench) -> str:
    """Return the cost map: a field for each load, with the cheapest strategy in it."""
    cells = result.cost_map or []
    columns = list(dict.fromkeys((cell.instances, cell.threads, cell.think_ms) for cell in cells))
    accounts = sorted({cell.accounts for cell in cells})
    picture = Picture(
        "map",
        "The cheapest correct strategy",
        "; ".join(
            f"{cell.instances}x{cell.threads}, {cell.accounts} accounts, {cell.think_ms:g} ms: "
            f"{', '.join(cell.cheapest)}"
            for cell in cells
        ),
        width=110 + CELL_WIDTH * len(columns),
    )
    for number, (instances, threads, think_ms) in enumerate(columns):
        left = 110 + CELL_WIDTH * number
        picture.add("text", "strong", f"{instances}x{threads}", x=left + 6, y=18)
        picture.add("text", "small", f"{think_ms:g} ms between read and write", x=left + 6, y=34)
    for line, number_of_accounts in enumerate(accounts):
        top = 44 + CELL_HEIGHT * line
        picture.add("text", "strong", f"{number_of_accounts:,} accounts", x=4, y=top + 24)
        for number, column in enumerate(columns):
            for cell in cells:
                if (cell.instances, cell.threads, cell.think_ms) != column:
                    continue
                if cell.accounts != number_of_accounts:
                    continue
                left = 110 + CELL_WIDTH * number
                picture.add("rect", "safe", x=left, y=top, width=CELL_WIDTH - 4, height=CELL_HEIGHT - 4, rx=3)
                best, *close = cell.cheapest or ["none finished"]
                picture.add("text", "strong", best, x=left + 6, y=top + 17)
                also = f"or {', '.join(close[:1])}" + (f" and {len(close) - 1} more" if len(close) > 1 else "")
                picture.add("text", "small", also if close else "", x=left + 6, y=top + 32)
    return stand_alone(picture.svg(44 + CELL_HEIGHT * len(accounts) + 6)) + "\n"


def _label(row: BenchRow) -> str:
    return f"{row.name}" + (f", {row.chunk:,} in a message" if row.chunk > 1 else "")


def _decades(rate: float) -> float:
    """Return how far a rate is along a logarithmic axis that begins at 100 a second."""
    return float(max(0.05, log10(max(rate, 1.0)) - 2))
