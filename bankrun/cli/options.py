"""What several commands ask for in the same words."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from bank.errors import CannotStart
from bank.outside import user_strategy
from bank.settings import Settings
from bank.strategies import STRATEGIES, check_settings
from bankrun.results.workload import OPTIONS, Workload
from bankrun.runs.session import tell

ALL = ["all"]
DEFAULT = Workload()
Strategies = Annotated[
    list[str], typer.Option(help="A strategy, `all` of ours, or your own as module:Class. Repeatable.")
]
ExportJson = Annotated[str | None, typer.Option(metavar="FILE", help="Write everything; `-` is stdout.")]
DatabaseUrl = Annotated[str | None, typer.Option(metavar="URL", help="Use scratch databases on this server.")]


def choose_strategies(names: Sequence[str]) -> tuple[str, ...]:
    """Return the strategies' names, each once. Raises CannotStart for one that does not exist, or that is none."""
    wanted = [name for given in names for name in (STRATEGIES if given == "all" else [given])]
    return tuple(dict.fromkeys(user_strategy(name).name for name in wanted))


def leave_out_unusable(names: Sequence[str], asked: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """Return the strategies without those of `all` that cannot run with these settings, and say why on stderr.

    What was asked for by its own name stays: it is refused when it is to run.
    """
    if settings.broker_url is None:  # the embedded servers are all that ours need
        return tuple(names)
    kept = []
    for name in names:
        try:
            check_settings(name, settings)
        except CannotStart as error:
            if name in asked:
                raise
            tell(f"left out: {error}")
        else:
            kept.append(name)
    return tuple(kept)


def find_files(names: Sequence[str]) -> list[Path]:
    """Return the files that these strategies are defined in: no export is written over one."""
    modules = (sys.modules.get(user_strategy(name).__module__) for name in names)
    return [Path(file) for module in modules if (file := getattr(module, "__file__", None)) is not None]


def takes_workload(*names: str, defaults: Workload = DEFAULT) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command have an option for each of these parameters of a workload, or for all.

    The command's own parameter ``workload`` becomes those options, with the words that the workload's declaration has.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        wanted = names or tuple(OPTIONS)

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(workload=replace(defaults, **{name: given.pop(name) for name in wanted}), **given)

        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += _parameters(wanted, defaults) if parameter.name == "workload" else [parameter]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameters(names: Sequence[str], defaults: Workload) -> list[inspect.Parameter]:
    types = get_type_hints(Workload)
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(defaults, name),
            annotation=Annotated[types[name], typer.Option(*_flags(name, types[name]), help=OPTIONS[name].help)],
        )
        for name in names
    ]


def _flags(name: str, kind: Any) -> tuple[str, ...]:
    """Return how a flag is written; without it, Typer would add a ``--no-…`` that says nothing new."""
    return (f"--{name.replace('_', '-')}",) if kind is bool else ()
