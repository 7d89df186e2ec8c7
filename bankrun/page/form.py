"""The form: which fields it has, what an address fills in, and the plan that it stands for.

The address has the same names as the form, so one function reads both, and a link is checked as the form is.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bank.errors import BankError, CannotStart
from bank.strategies import STRATEGIES
from bankrun.errors import BankrunError
from bankrun.results.topology import Topology
from bankrun.results.workload import OPTIONS, Workload
from bankrun.runs.comparison import Plan

LOAD = Workload()
SHOWN = {
    "strategies": "none,thread-lock,row-lock",
    "topologies": "1x8,3x8",
    **{name: f"{getattr(LOAD, name):g}" for name, option in OPTIONS.items() if option.on_page},
    "seed": "",
}
"""Every field, in the order of the form, with what it says where nothing is asked for."""
LENGTH_MAX = 600
SEED_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form for one value: how it is called, what it is for, and what is in it."""

    name: str
    label: str
    help: str
    value: str


@dataclass(frozen=True, slots=True)
class Form:
    """The form as an address fills it in. ``trouble`` says what is wrong with that."""

    strategies: Mapping[str, bool]
    fields: Sequence[Field]
    trouble: str = ""


def read_form(asked: Mapping[str, str], own: Sequence[str] = ()) -> Form:
    """Return the form that an address asks for, with what was asked for also where it is wrong.

    ``own`` are the strategies that the server was started with besides ours; where nothing is asked for, they are
    chosen too.
    """
    values = {name: str(asked.get(name, default))[:LENGTH_MAX] for name, default in _defaults(own).items()}
    trouble = ""
    try:
        read_plan(values, own)
    except (BankError, BankrunError) as error:
        trouble = str(error)
    chosen = _split(values["strategies"])
    fields = [Field(name, name.replace("_", " "), HELP[name], values[name]) for name in values if name != "strategies"]
    return Form({name: name in chosen for name in (*own, *STRATEGIES)}, fields, trouble)


def read_plan(asked: Mapping[str, str], own: Sequence[str] = ()) -> Plan:
    """Return the plan that a form or an address asks for; what it does not name is as in an empty form.

    Only strategies that the form offers can be asked for, ours and ``own``: no name from an address is ever imported.
    Raises CannotStart for anything that makes no plan.
    """
    values = {name: str(asked.get(name, default)) for name, default in _defaults(own).items()}
    chosen = _split(values["strategies"])
    for name in chosen:
        if name not in STRATEGIES and name not in own:
            hint = "; one of your own is named when its server is started" if ":" in name else ""
            raise CannotStart(f"{name!r} is not one of the strategies of this page{hint}")
    return Plan(
        strategies=tuple(name for name in (*STRATEGIES, *own) if name in chosen),
        topologies=tuple(dict.fromkeys(Topology.parse(text) for text in _split(values["topologies"]))),
        workload=replace(
            LOAD, **{name: _read_number(name, values[name]) for name, option in OPTIONS.items() if option.on_page}
        ),
        seed=_read_whole("seed", values["seed"], SEED_MAX) if values["seed"] else secrets.randbelow(SEED_MAX),
    )


def _defaults(own: Sequence[str]) -> dict[str, str]:
    """Return every field with what it says where nothing is asked for."""
    return {**SHOWN, "strategies": ",".join([*own, SHOWN["strategies"]])}


def _split(text: str) -> list[str]:
    return [part.strip() for part in text[:LENGTH_MAX].split(",") if part.strip()]


def _read_number(name: str, text: str) -> Any:
    if isinstance(getattr(LOAD, name), int):
        return _read_whole(name, text, 10**12)
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip(), re.ASCII):
        raise CannotStart(f"{name.replace('_', ' ')}: {text[:40]!r} is not a number of 0 or more")
    return float(text)


def _read_whole(name: str, text: str, most: int) -> int:
    if not re.fullmatch(r"\d{1,13}", text.strip(), re.ASCII) or int(text) > most:
        raise CannotStart(f"{name.replace('_', ' ')}: {text[:40]!r} is not a whole number from 0 to {most:,}")
    return int(text)


HELP = {
    "topologies": "Workers x threads in each, separated by commas.",
    **{name: option.help for name, option in OPTIONS.items() if option.on_page},
    "seed": "The same seed sends the same transfers. Empty: others each time.",
}
