"""``bankrun prove``: every interleaving of two transfers, run and audited."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer
from rich.console import Console

from bank import outside
from bank.errors import CannotStart, StrategyFault
from bank.outside import strategy_named
from bank.settings import read_settings
from bank.strategies import Strategy
from bankrun.cli.app import CONTRADICTED, FAILED, open_console
from bankrun.cli.options import ALL, Strategies, chosen_strategies
from bankrun.cli.replay import show_replay
from bankrun.proof.interleavings import CASES, CHUNKS, INSTANCES, THREE, Case, CaseResult, Prover, applies, as_json
from bankrun.proof.scheduler import RETRIES_MAX
from bankrun.proof.verdicts import replayed
from bankrun.render import tables
from bankrun.results import files
from bankrun.runs.environment import bankrun_version, environment
from bankrun.runs.progress import Steps
from bankrun.runs.rehearsal import rehearse
from bankrun.runs.session import hold_bank, open_servers

PREEMPTIONS_MAX = 10


def prove(
    strategy: Strategies = ALL,
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
    console = open_console(export_json, export_markdown)
    cases = _cases(case, transfers)
    if show < 0 or not 0 <= preemptions <= PREEMPTIONS_MAX:
        raise CannotStart(
            f"show={show}, preemptions={preemptions}: show is 0 or more, preemptions 0 to {PREEMPTIONS_MAX}"
        )
    chosen = [strategy_named(name) for name in chosen_strategies(strategy)]
    wanted = [one for one in chosen if not one.routed_to_one]
    if not wanted:
        raise CannotStart("nothing to prove: its transfers are routed to one instance, one at a time, and never meet")
    with open_servers(read_settings()) as servers, hold_bank(servers):
        plan = [
            (one, where, meeting)
            for one in wanted
            for where in (INSTANCES if instances == "both" else (instances,))
            for meeting in cases
            if applies(one, meeting)
        ]
        started = datetime.now(UTC).isoformat(timespec="seconds")
        depends = environment(servers.database, servers.app, [], embedded=servers.endpoints.embedded)
        most = preemptions if transfers > 2 else None
        with Prover(servers.database, servers.settings, transfers=transfers) as prover, Steps(len(plan)) as steps:
            results, faults = _proved(prover, plan, steps, most)
            told = [name for result in results for name in result.broken_ids][:show]
            stories = [(name, *replayed(prover, name)) for name in told]
    if export_json is not None:
        proof = {
            "schema": 1,
            "bankrun": bankrun_version(),
            "started": started,
            "command": _command([one.name for one in wanted], instances, cases, transfers, preemptions),
            "environment": depends,
            "cases": [as_json(one) for one in results],
            "faults": {name: fault.what for name, fault in faults.items()},
        }
        files.write(export_json, json.dumps(proof, indent=1) + "\n")
    if export_markdown is not None:
        files.write(export_markdown, tables.proof_markdown(results))
    if results:
        _show_proof(console, results)
    for name, execution, found in stories:
        show_replay(console, name, execution, found)
    _show_faults(console, faults.values())
    if any(result.contradicts for result in results):
        raise typer.Exit(CONTRADICTED)
    if faults:
        raise typer.Exit(FAILED)


def _proved(
    prover: Prover, plan: Sequence[tuple[type[Strategy], str, Case]], steps: Steps, preemptions_max: int | None
) -> tuple[list[CaseResult], dict[str, StrategyFault]]:
    """Run the plan. A strategy that fails to be one has a fault for a result, and harms no other."""
    results: list[CaseResult] = []
    faults: dict[str, StrategyFault] = {}
    rehearsed: set[str] = set()
    for one, where, meeting in plan:
        steps.begin(f"{one.name} on {where}, {meeting.name}")
        if one.name in faults:
            continue
        try:
            if one.name not in rehearsed and outside.recall(one.name):
                rehearsed.add(one.name)
                rehearse(prover.database, prover.settings, [one.name])
            results.append(prover.prove(one, where, meeting, preemptions_max=preemptions_max))
        except StrategyFault as fault:
            faults[one.name] = fault
    return results, faults


def _show_faults(console: Console, faults: Iterable[StrategyFault]) -> None:
    for fault in faults:
        console.print(f"no verdict: {fault}", style="bold red", markup=False, soft_wrap=True)


def _command(strategies: Sequence[str], instances: str, cases: Sequence[Case], transfers: int, preemptions: int) -> str:
    """Return the command that repeats a proof."""
    words = ["bankrun", "prove", "--instances", instances, "--transfers", str(transfers)]
    words += [word for name in strategies for word in ("--strategy", name)]
    if transfers == 2:
        words += [word for case in cases for word in ("--case", case.name)]
    else:
        words += ["--preemptions", str(preemptions)]
    return shlex.join(words)


def _cases(names: Sequence[str], transfers: int) -> list[Case]:
    if transfers not in (2, 3):
        raise CannotStart(f"transfers={transfers}: the proof is for 2 transfers, or for 3 on one pair of accounts")
    if transfers == 3:
        return [THREE]
    cases = {**CASES, CHUNKS.name: CHUNKS}
    for name in names:
        if name != "all" and name not in cases:
            raise CannotStart(f"there is no case {name!r}: there are {', '.join(cases)}")
    return [case for case in cases.values() if "all" in names or case.name in names]


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
    for name in dict.fromkeys(result.strategy for result in results if outside.recall(result.strategy)):
        _show_verdict(console, [result for result in results if result.strategy == name])
    for result in results:
        if result.contradicts:
            console.print(
                f"{result.strategy} claims to hold ({result.claim}), and does not: "
                f"{result.shortest_broken} ends with {', '.join(result.kinds)}",
                style="bold red",
                soft_wrap=True,
            )


def _show_verdict(console: Console, results: Sequence[CaseResult]) -> None:
    """Say in one line what was found of a strategy from outside; its author reads nothing else at first."""
    first, broken = results[0], sum(result.broken for result in results)
    total = sum(result.interleavings for result in results)
    where = {"same": "in one instance", "two": "in two instances"}
    if broken:
        places = dict.fromkeys(where[result.instances] for result in results if result.broken)
        console.print(
            f"{first.strategy} is broken {' and '.join(places)}: {broken} of {total}", style="red", soft_wrap=True
        )
    elif first.claim == "nothing":
        console.print(
            f"{first.strategy} was not broken by any of {total}; it claims nothing: set its claim", soft_wrap=True
        )
    else:
        console.print(f"{first.strategy} is safe: none of {total} is broken", style="green", soft_wrap=True)
