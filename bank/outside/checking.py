"""Whether a class does as a strategy: by what Strategy itself says of its attributes and methods, before it is used."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from enum import EnumType
from types import FunctionType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from bank.errors import DoesNotFit
from bank.outside.calling import describe_error, with_article
from bank.strategies.base import Strategy


def fit(found: object, name: str) -> type[Strategy]:
    """Return a class of ours above theirs, with the name by which everybody knows it. Raises DoesNotFit."""
    if not isinstance(found, type):
        raise DoesNotFit(f"{name} is no class, but {with_article(found)}")
    if not issubclass(found, Strategy) and not callable(getattr(found, "move", None)):
        raise DoesNotFit(
            f"{name} is no strategy: it is neither a subclass of bank.strategies.Strategy nor has a method move"
        )
    if found is Strategy:
        raise DoesNotFit(f"{name} is the base of all strategies, and none by itself")
    bases = (found,) if issubclass(found, Strategy) else (found, Strategy)
    summary = getattr(found, "summary", None) or (found.__doc__ or name).strip().partition("\n")[0]
    outline = {"__module__": found.__module__, "__qualname__": found.__qualname__, "__doc__": found.__doc__}
    try:
        made: type[Strategy] = type(found.__name__, bases, {**outline, "name": name, "summary": summary})
    except Exception as error:  # a metaclass, or an __init_subclass__, of theirs
        raise DoesNotFit(f"{name} cannot be subclassed: {describe_error(error)}") from error
    for problem in _find_problems(made):
        raise DoesNotFit(f"{name} does not fit: {problem}")
    return made


def _find_problems(strategy: type[Strategy]) -> Iterable[str]:
    """Compare a class with those of its bases that say what a strategy is."""
    contracts = [base for base in strategy.__mro__ if base.__module__ == Strategy.__module__]
    for contract in contracts:
        for name, hint in get_type_hints(contract).items():
            if get_origin(hint) is ClassVar and name in contract.__annotations__:
                yield from _compare_value(name, getattr(strategy, name), get_args(hint)[0])
    for contract in contracts:
        for name, ours in vars(contract).items():
            if not name.startswith("_") and isinstance(ours, FunctionType | classmethod):
                yield from _compare_method(strategy, name, ours)
    if inspect.getattr_static(strategy, "open") is inspect.getattr_static(Strategy, "open"):
        yield from _compare_call("__init__", strategy, (), is_bound=True)


def _compare_value(name: str, value: object, wanted: Any) -> Iterable[str]:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            yield f"{name} is {value!r}, and not one of {', '.join(get_args(wanted))}"
    elif isinstance(wanted, EnumType):
        if not isinstance(value, wanted):
            members = ", ".join(f"{wanted.__name__}.{one}" for one in wanted.__members__)
            yield f"{name} is {value!r}, and not one of {members}"
    elif wanted is str:
        if not isinstance(value, str):
            yield f"{name} is {with_article(value)}, and no text"
    elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        kinds = [one.__name__ for one in get_args(wanted) or (wanted,)]
        said = {"bool": "neither True nor False", "int": "no whole number"}.get(kinds[0], f"no {kinds[0]}")
        yield f"{name} is {value!r}, and {said}" + (" nor None" if "NoneType" in kinds else "")


def _compare_method(
    strategy: type[Strategy], name: str, ours: FunctionType | classmethod[Any, Any, Any]
) -> Iterable[str]:
    theirs = inspect.getattr_static(strategy, name)
    if isinstance(ours, classmethod):
        _, *parameters = inspect.signature(ours.__func__).parameters
        if isinstance(theirs, classmethod):
            yield from _compare_call(name, getattr(strategy, name), parameters, is_bound=True)
        else:
            yield f"{name} is no classmethod: it is called before there is an object"
        return
    _, *parameters = inspect.signature(ours).parameters
    is_bound = isinstance(theirs, staticmethod | type) or inspect.ismethod(theirs)
    function = theirs.__func__ if isinstance(theirs, staticmethod | classmethod) else theirs
    yield from _compare_call(name, function, parameters, is_bound=is_bound)


def _compare_call(method: str, function: Any, parameters: Iterable[str], *, is_bound: bool) -> Iterable[str]:
    if not callable(function):
        yield f"{method} is {with_article(function)}, and no method"
        return
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield f"{method} is async, and a teller calls it in a thread"
        return
    if inspect.isgeneratorfunction(function):
        yield f"{method} has a yield in it, and so would do nothing when it is called"
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a callable that is not written in Python
        return
    passed = [*(() if is_bound else ("self",)), *parameters]
    try:
        signature.bind(*(object() for _ in passed))
    except TypeError as error:
        yield f"{method}{signature} is called as {method}({', '.join(passed)}): {error}"
