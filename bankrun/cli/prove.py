"""``bankrun prove``: every interleaving of two transfers, run and audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import typer
from rich.console import Console

from bank import outside
from bank.settings import read_settings
from bankrun.cli.app import CONTRADICTED, FAILED, open_console, reserve_stdout, told_if_cut
from bankrun.cli.options import ALL, DatabaseUrl, ExportJson, Strategies, choose_strategies, find_files
from bankrun.cli.replay import show_replay
from bankrun.proof.matrix import ProofPlan, begin_proof, choose_cases, prove_matrix, replay_broken
from bankrun.proof.prover import Prover
from bankrun.render import tables
from bankrun.render.terminal import Terminal, counted
from bankrun.results import store
from bankrun.results.models.proof import CaseResult, ProofResult
from bankrun.runs.progress import Steps
from bankrun.schedule.cast.control import RETRIES_MAX


def prove(
    strategy: Strategies = ALL,
    instances: Annotated[
        Literal["same", "two", "both"], typer.Option(help="In one instance, in two, or both.")
    ] = "both",
    case: Annotated[list[str], typer.Option(help="How they meet, or `all`. Repeatable.")] = ALL,
    transfers: Annotated[int, typer.Option(help="2, or 3 on one pair of accounts.")] = 2,
    preemptions: Annotated[int, typer.Option(help="With 3 transfers: how often one may be interrupted.")] = 2,
    show: Annotated[int, typer.Option(help="Tell this many broken interleavings, the shortest first.")] = 0,
    database_url: DatabaseUrl = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 also where a proof is inconclusive.")] = False,
    export_json: ExportJson = None,
    export_markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the matrix.")] = None,
) -> None:
    """Run every order in which two transfers can meet, on a real Postgres, and audit each.

    The same strategies and the same teller as in a worker. Exits with 3 if a claim is refuted.
    """
    reserve_stdout(export_json, export_markdown)
    strategies = choose_strategies(strategy)
    console = open_console(export_json, export_markdown, inputs=find_files(strategies))
    plan = ProofPlan(strategies, instances, tuple(choose_cases(case)), transfers, preemptions, show)
    with Prover(read_settings(), transfers=plan.transfers, database_url=database_url) as prover:
        able, left_out = outside.leave_out_too_new(strategies, prover.bank.keeper.info.server_version)
        plan = replace(plan, strategies=able)
        for sentence in left_out:
            Terminal(stderr=True).print(sentence, style="yellow", soft_wrap=True)
        result = begin_proof(prover, plan)

        def tell() -> None:
            _tell(console, plan, result, export_json, export_markdown)

        with told_if_cut(result, tell), Steps(plan.count_steps()) as steps:
            prove_matrix(prover, plan, steps, result)
            stories = replay_broken(prover, plan, result)
    tell()
    for name, judged in stories:
        show_replay(console, name, judged)
    is_open = any(case.verdict == "inconclusive" for case in result.cases)
    if result.contradictions or (strict and (is_open or left_out)):
        raise typer.Exit(CONTRADICTED)
    if result.faults:
        raise typer.Exit(FAILED)


def _tell(
    console: Console, plan: ProofPlan, result: ProofResult, export_json: str | None, export_markdown: str | None
) -> None:
    if result.cases:
        _show_proof(console, plan, result)
    for name, what in result.faults.items():
        console.print(f"no verdict: {name} {what}", style="bold red", markup=False, soft_wrap=True)
    if result.provenance.cut_short:
        console.print(f"cut short after {counted(len(result.cases), 'case')}", style="yellow")
    if export_json is not None and (result.cases or not result.provenance.cut_short):
        store.save(export_json, result)
        if export_json != store.STDOUT and any(case.steps for case in result.cases):
            console.print(f"bankrun page {export_json}", markup=False, soft_wrap=True)
    if export_markdown is not None and (result.cases or not result.provenance.cut_short):
        store.write(export_markdown, tables.proof_markdown(result.cases))


def _show_proof(console: Console, plan: ProofPlan, proof: ProofResult) -> None:
    results = proof.cases
    total, broken = sum(result.interleavings for result in results), sum(result.broken for result in results)
    seconds = sum(result.seconds for result in results)
    console.print(
        f"{total:,} interleavings run and audited in {seconds:,.0f} s; {broken:,} broken. Broken of all:", style="bold"
    )
    console.print(*tables.proof_tables(results, console.width), sep="")
    shortest: dict[tuple[str, str], str] = {}
    for result in results:
        known = shortest.get((result.strategy, result.instances))
        if result.shortest_broken is not None and (known is None or len(result.shortest_broken) < len(known)):
            shortest[result.strategy, result.instances] = result.shortest_broken
    for name in shortest.values():
        console.print(f"bankrun replay {name}", markup=False, soft_wrap=True)
    beyond = sum(result.truncated for result in results)
    if beyond:
        console.print(
            f"{beyond:,} went beyond {RETRIES_MAX} retries of a transfer: not explored further", style="yellow"
        )
    for strategy in plan.list_strategies():
        found = [result for result in results if result.strategy == strategy.name]
        if found:
            _show_verdict(console, found, is_whole=len(found) >= plan.count_cases(strategy))


def _show_verdict(console: Console, results: Sequence[CaseResult], *, is_whole: bool) -> None:
    """Say what was found of a strategy: of one from outside in any case, of ours what is no verdict, or refutes it.

    What was not broken in some of its cases alone is not called safe.
    """
    name, claim = results[0].strategy, results[0].claim
    total, broken = sum(result.interleavings for result in results), sum(result.broken for result in results)
    open_ones = [result for result in results if result.verdict == "inconclusive"]
    where = {"same": "in one instance", "two": "in two instances"}
    if outside.recall(name):
        if broken:
            places = dict.fromkeys(where[result.instances] for result in results if result.broken)
            console.print(f"{name} is broken {' and '.join(places)}: {broken} of {total}", style="red", soft_wrap=True)
        elif not is_whole:
            console.print(f"{name} was not broken by any of {total}, and there are more cases", soft_wrap=True)
        elif claim == "nothing":
            console.print(f"{name} was not broken by any of {total}; it claims nothing: set its claim", soft_wrap=True)
        elif not open_ones:
            console.print(f"{name} is safe: none of {total} is broken", style="green", soft_wrap=True)
    for result in results:
        if result.contradicts:
            why = f" ({result.reason})" if result.reason else ""
            console.print(
                f"{name} claims to hold ({claim}), and does not: "
                f"{result.shortest_broken} ends with {', '.join(result.kinds)}{why}",
                style="bold red",
                soft_wrap=True,
            )
    for result in open_ones:
        case = f"{result.case}, {where[result.instances]}"
        console.print(f"{name} is not proved safe: {case}: {result.reason}", style="yellow", soft_wrap=True)
