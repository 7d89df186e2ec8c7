"""Strategies that are not ours: found by name, loaded, checked, and called so that each fault of theirs has a name.

Nothing that a user's code does here ends the process or keeps it from ending, and no fault goes without its place in
the user's file. What others may use is listed here.
"""

from bank.outside.calling import check_guard, close_strategy, install, name_fault, open_strategy, place_in
from bank.outside.leaks import Borrowed, take_back
from bank.outside.loading import (
    announce,
    fingerprint,
    folders_in,
    imported_anew,
    is_announced,
    is_reference,
    recall,
)
from bank.outside.lookup import (
    find_installed,
    known_strategy,
    leave_out_too_new,
    load_strategies,
    make_importable,
    strategy_named,
    user_strategy,
)
from bank.outside.template import write_starter

__all__ = [
    "Borrowed",
    "announce",
    "check_guard",
    "close_strategy",
    "find_installed",
    "fingerprint",
    "folders_in",
    "imported_anew",
    "install",
    "is_announced",
    "is_reference",
    "known_strategy",
    "leave_out_too_new",
    "load_strategies",
    "make_importable",
    "name_fault",
    "open_strategy",
    "place_in",
    "recall",
    "strategy_named",
    "take_back",
    "user_strategy",
    "write_starter",
]
