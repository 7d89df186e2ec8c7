"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
import typer
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import DBAPIError

from bank.audit import Audit
from bank.audit import audit as audit_bank
from bank.database import bank_id, check_connection_budget, first_line
from bank.errors import BankError, CannotStart
from bank.settings import read_settings
from bank.strategies import STRATEGIES, strategy_named
from lab import files, tables
from lab.bench import benchmark
from lab.doctor import examine
from lab.environment import bankrun_version, environment
from lab.experiment import CELL_SECONDS_MAX, WARMUP, Plan, judged
from lab.interleavings import CASES, INSTANCES, THREE, Case, CaseResult, Prover, applies, as_json
from lab.progress import BarProgress, LineProgress, Steps
from lab.replay import money, parse_id, psql_script, steps_table
from lab.results import Comparison, Run
from lab.scheduler import RETRIES_MAX, Execution
from lab.session import hold_bank, open_lab, open_servers
from lab.story import explain
from lab.topology import Topology
from lab.worker import become_worker
from lab.workload import Workload

OK, FAILED, CANNOT_START, CONTRADICTED = 0, 1, 2, 3
HEADLINE_STRATEGIES = ["none", "thread-lock", "row-lock"]
HEADLINE_TOPOLOGIES = ["1x8", "3x8"]
DEFAULT = Workload()
BENCH_STRATEGIES = ["row-lock", "row-lock-orm", "atomic-update"]
ROUNDS_MAX = 1_000
ALL = ["all"]
PREEMPTIONS_MAX = 10
SETTINGS_SAVED = ("lease_ttl_ms", "lock_timeout_ms", "idle_timeout_ms", "visibility_timeout_ms", "patience_ms")

cli = typer.Typer(
    name="bankrun",
    help="Run the same bank on many workers, and see which locks keep the money.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Terminated(BaseException):
    """The process was asked to end, with SIGTERM."""


def _show_version(value: bool) -> None:
    if value:
        print(f"bankrun {bankrun_version()}")
        raise typer.Exit


@cli.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run the same bank on many workers, and see which locks keep the money."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@cli.command()
def compare(
    strategy: Annotated[list[str], typer.Option(help="A strategy, or `all`. Repeatable.")] = HEADLINE_STRATEGIES,
    topology: Annotated[list[str], typer.Option(help="Instances x threads. Repeatable.")] = HEADLINE_TOPOLOGIES,
    transfers: Annotated[int, typer.Option(help="Transfers in each cell.")] = DEFAULT.transfers,
    accounts: Annotated[int, typer.Option(help="Accounts in the bank: fewer, more contention.")] = DEFAULT.accounts,
    opening: Annotated[int, typer.Option(help="Minor units in each account at opening.")] = DEFAULT.opening,
    skew: Annotated[Literal["uniform", "zipf"], typer.Option(help="How often each account is wanted.")] = DEFAULT.skew,
    amount_max: Annotated[int, typer.Option(help="The largest transfer, in minor units.")] = DEFAULT.amount_max,
    think_ms: Annotated[float, typer.Option(help="Time between the read and the write.")] = DEFAULT.think_ms,
    chunk: Annotated[int, typer.Option(help="Transfers in one message.")] = DEFAULT.chunk,
    constraint: Annotated[bool, typer.Option("--constraint", help="Add CHECK (balance >= 0).")] = False,
    seed: Annotated[
        int | None, typer.Option(help="The same seed sends the same transfers; without it, a fresh one.")
    ] = None,
    repeat: Annotated[int, typer.Option(help="Runs of each cell; one broken run makes it broken.")] = 1,
    warmup: Annotated[int, typer.Option(help="Transfers before each cell that are not counted.")] = WARMUP,
    cell_timeout: Annotated[float, typer.Option(help="Seconds after which a cell is unfinished.")] = CELL_SECONDS_MAX,
    wide: Annotated[bool, typer.Option("--wide", help="Show every column.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 for an inconclusive cell too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the connections it needs.")] = False,
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything; `-` is stdout.")] = None,
    export_csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write a line for each run.")] = None,
    export_markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the table.")] = None,
    export_svg: Annotated[str | None, typer.Option(metavar="FILE", help="Write the table as a picture.")] = None,
    junitxml: Annotated[str | None, typer.Option(metavar="FILE", help="Write a test case for each cell.")] = None,
) -> None:
    """Send the same transfers through several strategies on several topologies, and audit what is left.

    Without options: no lock, the talk's thread lock and its row lock, in one instance and in three.
    """
    exports = [name for name in (export_json, export_csv, export_markdown, export_svg, junitxml) if name is not None]
    files.check_writable(*exports)
    plan = Plan(
        strategies=_strategies(strategy),
        topologies=tuple(dict.fromkeys(Topology.parse(text) for text in topology)),
        workload=Workload(accounts, transfers, opening, amount_max, think_ms, skew, chunk, constraint),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        repeat=repeat,
        warmup=warmup,
        cell_seconds_max=cell_timeout,
    )
    console = Console(stderr=files.STDOUT in exports, highlight=False)
    settings = read_settings()
    if think_ms >= settings.idle_timeout_ms:
        raise CannotStart(
            f"think-ms={think_ms:g} is as long as Postgres lets a transaction idle: {settings.idle_timeout_ms}"
        )
    runs: list[Run] = []
    with open_servers(settings) as servers:
        if dry_run:
            _show_plan(console, plan)
            console.print(check_connection_budget(servers.database, instances=plan.instances, threads=plan.threads))
            return
        with open_lab(servers, instances=plan.instances, threads=plan.threads) as lab:
            comparison = Comparison(
                bankrun=bankrun_version(),
                seed=plan.seed,
                started=datetime.now(UTC).isoformat(timespec="seconds"),
                command=_command(plan),
                environment=environment(
                    servers.database, servers.app, lab.instances, embedded=servers.endpoints.embedded
                ),
                settings={name: getattr(settings, name) for name in SETTINGS_SAVED},
                workload=plan.workload,
            )
            notes = Console(stderr=True, highlight=False)
            with (
                BarProgress(notes) if notes.is_terminal else LineProgress(notes) as progress,
                _kept(comparison, runs, console),
            ):
                lab.compare(plan, progress, runs)
    comparison.cells = judged(runs)
    _show_comparison(console, comparison, wide=wide)
    written: list[tuple[str | None, Callable[[Comparison], str]]] = [
        (export_json, tables.comparison_json),
        (export_csv, tables.comparison_csv),
        (export_markdown, tables.comparison_markdown),
        (junitxml, tables.comparison_junit),
        (export_svg, tables.comparison_svg),
    ]
    for destination, make in written:
        if destination is not None:
            files.write(destination, make(comparison))
    if comparison.contradictions or (strict and comparison.inconclusive):
        raise typer.Exit(CONTRADICTED)


@contextmanager
def _kept(comparison: Comparison, runs: list[Run], console: Console) -> Iterator[None]:
    """Show what was found so far if the block is cut short: by a server that is lost, or by the user."""
    try:
        yield
    except BaseException:
        comparison.cells = judged(runs)
        if comparison.cells:
            console.print(tables.comparison_table(comparison))
            console.print(f"cut short after {len(runs)} runs; nothing was exported", style="yellow")
        raise


def _strategies(names: Sequence[str]) -> tuple[str, ...]:
    wanted = [name for given in names for name in (STRATEGIES if given == "all" else [given])]
    return tuple(dict.fromkeys(strategy_named(name).name for name in wanted))


def _command(plan: Plan) -> str:
    """Return the command that repeats a comparison."""
    load = plan.workload
    words = ["bankrun", "compare"]
    strategies = ["all"] if plan.strategies == tuple(STRATEGIES) else plan.strategies
    words += [word for name in strategies for word in ("--strategy", name)]
    words += [word for topology in plan.topologies for word in ("--topology", str(topology))]
    words += ["--transfers", str(load.transfers), "--accounts", str(load.accounts), "--opening", str(load.opening)]
    words += ["--skew", load.skew, "--amount-max", str(load.amount_max), "--think-ms", f"{load.think_ms:g}"]
    words += ["--chunk", str(load.chunk), *(["--constraint"] if load.constraint else [])]
    words += ["--repeat", str(plan.repeat), "--warmup", str(plan.warmup), "--seed", str(plan.seed)]
    words += ["--cell-timeout", f"{plan.cell_seconds_max:g}"]
    return shlex.join(words)


def _show_plan(console: Console, plan: Plan) -> None:
    table = Table(
        title=f"{plan.workload.transfers:,} transfers over {plan.workload.accounts} accounts, seed {plan.seed}"
    )
    table.add_column("strategy")
    table.add_column("topology")
    table.add_column("runs", justify="right")
    for strategy, topology in plan.cells():
        table.add_row(strategy, str(topology), str(plan.repeat))
    console.print(table)


def _show_comparison(console: Console, comparison: Comparison, *, wide: bool) -> None:
    load = comparison.workload
    console.print(
        f"{load.transfers:,} transfers over {load.accounts} accounts with {load.opening:,} each, "
        f"up to {load.amount_max:,} at a time; seed {comparison.seed}",
        style="bold",
    )
    console.print(tables.comparison_table(comparison, wide=wide), width=None if not wide else max(console.width, 200))
    for cell in comparison.cells:
        if cell.verdict == "broken":
            for line in explain(cell):
                console.print(line, markup=False, soft_wrap=True)
            console.print()
    for cell in comparison.inconclusive:
        console.print(
            f"warning: {cell.shown.strategy} on {cell.shown.topology} is inconclusive: {cell.reason}", style="yellow"
        )
    for cell in comparison.contradictions:
        console.print(
            f"{cell.shown.strategy} claims to hold on {cell.shown.topology}, and does not: {cell.reason}",
            style="bold red",
        )


@cli.command()
def prove(
    strategy: Annotated[list[str], typer.Option(help="A strategy, or `all`. Repeatable.")] = ALL,
    instances: Annotated[
        Literal["same", "two", "both"], typer.Option(help="In one instance, in two, or both.")
    ] = "both",
    case: Annotated[list[str], typer.Option(help="How they meet, or `all`. Repeatable.")] = ALL,
    transfers: Annotated[int, typer.Option(help="2, or 3 on one pair of accounts.")] = 2,
    preemptions: Annotated[int, typer.Option(help="With 3 transfers: how often one may be interrupted.")] = 2,
    show: Annotated[int, typer.Option(help="Tell this many broken interleavings, the shortest first.")] = 0,
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything; `-` is stdout.")] = None,
    export_markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the matrix.")] = None,
) -> None:
    """Run every order in which two transfers can meet, on a real Postgres, and audit each.

    The same strategies and the same teller as in a worker. Exits with 3 if a claim is refuted.
    """
    exports = [name for name in (export_json, export_markdown) if name is not None]
    files.check_writable(*exports)
    cases = _cases(case, transfers)
    if show < 0 or not 0 <= preemptions <= PREEMPTIONS_MAX:
        raise CannotStart(
            f"show={show}, preemptions={preemptions}: show is 0 or more, preemptions 0 to {PREEMPTIONS_MAX}"
        )
    wanted = [STRATEGIES[name] for name in _strategies(strategy) if not STRATEGIES[name].routed_to_one]
    if not wanted:
        raise CannotStart("nothing to prove: its transfers are routed to one instance, one at a time, and never meet")
    console = Console(stderr=files.STDOUT in exports, highlight=False)
    with open_servers(read_settings()) as servers, hold_bank(servers):
        plan = [
            (one, where, meeting)
            for one in wanted
            for where in (INSTANCES if instances == "both" else (instances,))
            for meeting in cases
            if applies(one, meeting)
        ]
        depends = environment(servers.database, servers.app, [], embedded=servers.endpoints.embedded)
        results = []
        with Prover(servers.database, servers.settings, transfers=transfers) as prover, Steps(len(plan)) as steps:
            for one, where, meeting in plan:
                steps.begin(f"{one.name} on {where}, {meeting.name}")
                results.append(
                    prover.prove(one, where, meeting, preemptions_max=preemptions if transfers > 2 else None)
                )
            told = [name for result in results for name in result.broken_ids][:show]
            stories = [(name, *_replayed(prover, name)) for name in told]
    if export_json is not None:
        proof = {
            "schema": 1,
            "bankrun": bankrun_version(),
            "environment": depends,
            "cases": [as_json(one) for one in results],
        }
        files.write(export_json, json.dumps(proof, indent=1) + "\n")
    if export_markdown is not None:
        files.write(export_markdown, tables.proof_markdown(results))
    _show_proof(console, results)
    for name, execution, found in stories:
        _show_replay(console, name, execution, found)
    if any(result.contradicts for result in results):
        raise typer.Exit(CONTRADICTED)


def _cases(names: Sequence[str], transfers: int) -> list[Case]:
    if transfers not in (2, 3):
        raise CannotStart(f"transfers={transfers}: the proof is for 2 transfers, or for 3 on one pair of accounts")
    if transfers == 3:
        return [THREE]
    for name in names:
        if name != "all" and name not in CASES:
            raise CannotStart(f"there is no case {name!r}: there are {', '.join(CASES)}")
    return [case for case in CASES.values() if "all" in names or case.name in names]


def _show_proof(console: Console, results: Sequence[CaseResult]) -> None:
    total, broken = sum(result.interleavings for result in results), sum(result.broken for result in results)
    seconds = sum(result.seconds for result in results)
    console.print(
        f"{total:,} interleavings run and audited in {seconds:,.0f} s; {broken:,} broken. Broken of all:", style="bold"
    )
    console.print(tables.proof_table(results))
    shortest: dict[tuple[str, str], str] = {}
    for result in results:
        known = shortest.get((result.strategy, result.instances))
        if result.shortest_broken is not None and (known is None or len(result.shortest_broken) < len(known)):
            shortest[result.strategy, result.instances] = result.shortest_broken
    for name in shortest.values():
        console.print(f"bankrun replay {name}", markup=False, soft_wrap=True)
    truncated = sum(result.truncated for result in results)
    if truncated:
        console.print(f"warning: {truncated} were cut short after {RETRIES_MAX} retries", style="yellow")
    for result in results:
        if result.contradicts:
            console.print(
                f"{result.strategy} claims to hold ({result.claim}), and does not: "
                f"{result.shortest_broken} ends with {', '.join(result.kinds)}",
                style="bold red",
                soft_wrap=True,
            )


@cli.command()
def replay(
    interleaving: Annotated[str, typer.Argument(help="An id that `prove` printed.")],
    export_sql: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it for psql windows; `-` is stdout.")
    ] = None,
) -> None:
    """Run exactly one interleaving again, and tell it step by step."""
    parse_id(interleaving)
    if export_sql is not None:
        files.check_writable(export_sql)
    console = Console(stderr=export_sql == files.STDOUT, highlight=False)
    name, _, case, _ = parse_id(interleaving)
    strategy = STRATEGIES[strategy_named(name).name]
    with (
        open_servers(read_settings()) as servers,
        hold_bank(servers),
        Prover(servers.database, servers.settings, transfers=len(case.legs)) as prover,
    ):
        execution, found = _replayed(prover, interleaving)
    if export_sql is not None:
        script = psql_script(execution, case, list(case.orders()), title=interleaving, isolation=strategy.isolation)
        files.write(export_sql, "\n".join(script) + "\n")
    _show_replay(console, interleaving, execution, found)


def _replayed(prover: Prover, interleaving: str) -> tuple[Execution, Audit]:
    name, where, case, choices = parse_id(interleaving)
    return prover.replay(strategy_named(name), where, case, choices)


def _show_replay(console: Console, name: str, execution: Execution, found: Audit) -> None:
    strategy, where, case, _ = parse_id(name)
    console.print(
        f"{strategy}, {'in one instance' if where == 'same' else 'in two instances'}: {case.summary}", style="bold"
    )
    console.print(steps_table(execution, list(case.orders())))
    for line in money(found):
        console.print(line, markup=False, soft_wrap=True, style="green" if found.passed else "red")
    console.print()


@cli.command()
def bench(
    strategy: Annotated[list[str], typer.Option(help="A strategy, or `all`. Repeatable.")] = BENCH_STRATEGIES,
    topology: Annotated[str, typer.Option(help="Instances x threads; pgbench gets as many clients.")] = "2x4",
    transfers: Annotated[int, typer.Option(help="Transfers for each contestant in each round.")] = 3_000,
    accounts: Annotated[int, typer.Option(help="Accounts in the bank: many, so that few wait for each other.")] = 1_000,
    chunk: Annotated[int, typer.Option(help="Transfers in one message.")] = DEFAULT.chunk,
    rounds: Annotated[int, typer.Option(help="Rounds; all contestants run in each.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed sends the same transfers.")] = 1,
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the rates; `-` is stdout.")] = None,
) -> None:
    """Measure transfers a second beside pgbench and beside messages that do nothing, in one run on one machine."""
    if export_json is not None:
        files.check_writable(export_json)
    if not 1 <= rounds <= ROUNDS_MAX:
        raise CannotStart(f"rounds={rounds}: it must be between 1 and {ROUNDS_MAX}")
    wanted, shape = _strategies(strategy), Topology.parse(topology)
    workload = Workload(accounts=accounts, transfers=transfers, chunk=chunk)
    if transfers < shape.instances * shape.threads:
        raise CannotStart(f"transfers={transfers}: each of the {shape.instances * shape.threads} clients needs one")
    console = Console(stderr=export_json == files.STDOUT, highlight=False)
    with (
        open_servers(read_settings()) as servers,
        open_lab(servers, instances=shape.instances, threads=shape.threads) as lab,
    ):
        depends = environment(servers.database, servers.app, lab.instances, embedded=servers.endpoints.embedded)
        with Console(stderr=True).status("measuring"):
            measured = benchmark(lab, wanted, shape, workload, seed=seed, rounds=rounds)
    if export_json is not None:
        result = {
            "schema": 1,
            "bankrun": bankrun_version(),
            "seed": seed,
            "environment": depends,
            "rows": measured.as_json(),
        }
        files.write(export_json, json.dumps(result, indent=1) + "\n")
    console.print(tables.benchmark_table(measured))
    console.print(f"a no-op message and pgbench together bound a transfer to {measured.bound:,.0f}/s: 1/(1/n + 1/p)")
    for row in measured.rows:
        if row.is_noisy:
            console.print(
                f"warning: {row.name} is noisy: {min(row.rates):,.0f} to {max(row.rates):,.0f}/s", style="yellow"
            )


@cli.command()
def audit(
    export_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the findings; `-` is stdout.")] = None,
) -> None:
    """Check the five invariants of whatever is in the bank now. Exits with 3 if one fails."""
    if export_json is not None:
        files.check_writable(export_json)
    console = Console(stderr=export_json == files.STDOUT, highlight=False)
    with open_servers(read_settings()) as servers:
        if bank_id(servers.database) is None:
            raise CannotStart("there is no bank yet: run `bankrun compare` first")
        found = audit_bank(servers.database)
    if export_json is not None:
        files.write(export_json, json.dumps(found.as_json(), indent=1) + "\n")
    _show_audit(console, found)
    if not found.passed:
        raise typer.Exit(CONTRADICTED)


def _show_audit(console: Console, found: Audit) -> None:
    counts = ", ".join(f"{count:,} {status}" for status, count in found.transfers.items() if count)
    console.print(f"{found.accounts:,} accounts, {found.entries:,} entries; transfers: {counts or 'none'}")
    console.print(f"opened with {found.opening_total:,}, holds {found.closing_total:,}: drift {found.drift:+,}")
    for finding in found.findings:
        console.print(f"{finding.invariant}, {finding.kind}: {finding.count:,}", style="red")
        for example in finding.examples:
            console.print(f"  {example}", markup=False, soft_wrap=True)
    if found.passed:
        console.print("all five invariants hold", style="green")


@cli.command()
def worker() -> None:
    """Be one worker instance of the given servers: on any machine, in any number. SIGTERM ends it in good order.

    BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL say where they are, BANKRUN_THREADS how many threads it has, and
    BANKRUN_INSTANCE what it is called, if not by its host.
    """
    become_worker(read_settings())


@cli.command()
def strategies(
    proof: Annotated[Path | None, typer.Option(metavar="JSON", help="A result of `prove`.")] = None,
    comparison: Annotated[Path | None, typer.Option(metavar="JSON", help="A result of `compare`.")] = None,
) -> None:
    """List the strategies: name, claim, one line.

    With a proof and a comparison, as a Markdown table of what those found.
    """
    if (proof is None) != (comparison is None):
        raise CannotStart("give both a proof and a comparison, or neither")
    if proof is not None and comparison is not None:
        print(tables.gallery_markdown(files.read_result(proof), files.read_result(comparison)), end="")
        return
    table = Table("name", "claims to hold", "how", box=None, pad_edge=False)
    for name, strategy in STRATEGIES.items():
        table.add_row(name, strategy.claim.value, strategy.summary)
    Console(highlight=False).print(table)


@cli.command()
def doctor() -> None:
    """Examine the servers, their versions, and the settings that would break a promise. Exits with 1 if one would."""
    console = Console(highlight=False)
    with open_servers(read_settings()) as servers:
        checks = examine(servers)
    for check in checks:
        colour, word = ("green", "ok") if check.ok else ("red", "no")
        console.print(f"[{colour}]{word}[/]  ", end="")
        console.print(
            f"{check.name}: {check.found}" + ("" if check.ok else f" ({check.why})"), markup=False, soft_wrap=True
        )
    if not all(check.ok for check in checks):
        raise typer.Exit(FAILED)


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def main() -> None:
    """Run the command line. Every error that a user can cause ends in one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run())


def _run() -> int:
    try:
        code = cli(standalone_mode=False)
    except typer.Abort:
        return 128 + signal.SIGINT
    except (typer.TyperException, CannotStart) as error:
        # Typer's own errors, for which only this method puts the parameter's name into the sentence.
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        print(f"bankrun: {message}", file=sys.stderr)
        return CANNOT_START
    except (BankError, DBAPIError, psycopg.Error, RedisError, KombuError, OSError) as error:
        return _failed(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Terminated:
        return 128 + signal.SIGTERM
    return code if isinstance(code, int) else OK


def _failed(error: Exception) -> int:
    """Say what went wrong in one sentence. A lost server raises its driver's errors, wherever we happen to be."""
    if isinstance(error, OSError) and not isinstance(error, BankError):
        # The output itself may be what is broken: a pipe that nobody reads, a full disk.
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sentence = str(error) if isinstance(error, BankError) else f"failed while running: {first_line(error)}"
    with suppress(OSError):
        print(f"bankrun: {sentence}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    main()
