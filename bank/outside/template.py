"""What `bankrun new` writes: a strategy to edit, and a test that says that it is safe."""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import re
import sys
from pathlib import Path
from string import Template

from bank.errors import CannotStart

NAME_CHARACTERS_MAX = 60

STRATEGY = Template('''"""A transfer of my own, on trial:

    bankrun prove --strategy $module:$name      every order in which two transfers can meet
    bankrun compare --strategy $module:$name    under load, on one instance and on three
    pytest test_$module.py                       the first of these, as a test

Two lines are to be edited. As it stands, this is the naive transfer: it reads, computes and writes.
"""

from bankrun import Claim, Strategy


class $name(Strategy):
    """Say what it does, how far it protects a balance, and what it costs."""

    summary = "one line for the tables"

    # 1. How far it claims to hold: Claim.NOTHING, .PROCESS (one instance), .HOST or .EVERYWHERE.
    claim = Claim.NOTHING

    # 2. What keeps others out. Here: the statement that reads both accounts. With FOR UPDATE after its last word,
    # a second transfer waits in it, and then reads what the first one has written.
    READ = """
        SELECT id, balance, last_entry, version, clock_timestamp() FROM accounts
        WHERE id IN (%(debit)s, %(credit)s) ORDER BY id
    """

    # What else there is to override; leave out what you don't need.
    #
    # isolation = "SERIALIZABLE"                   or "REPEATABLE READ"; the teller runs it again after a conflict
    #
    # def guard(self, order):                      a lock from before BEGIN until after COMMIT: a ThreadGuard(lock) made
    #     return self._guard                       in __init__, or enter(timeout_seconds), try_enter() and leave()
    #
    # def read(self, transaction, attempt):        what is to come before the read; both accounts, in id order
    #     for account in attempt.order.accounts:
    #         transaction.execute("SELECT pg_advisory_xact_lock(7, %(account)s)", {"account": account})
    #     return super().read(transaction, attempt)
    #
    # def move(self, transaction, attempt):        all of it, if it does not read before it writes
''')

TEST = Template('''"""Is $module:$name safe on two instances? Needs pytest beside bankrun, which brings the fixture."""


def test_it_is_safe_on_two_instances(bankrun):
    bankrun.prove("$module:$name")
''')


def write_starter(name: str, folder: Path) -> tuple[Path, Path, str]:
    """Write a strategy and its test into a folder; return both files and what the strategy is called.

    Raises CannotStart, and has written nothing, for a name that cannot be a module's, or is taken.
    """
    _check(name, folder)
    class_name = "".join(part.capitalize() for part in name.split("_"))
    files = (folder / f"{name}.py", folder / f"test_{name}.py")
    for file in files:
        if file.exists() or file.is_symlink():
            raise CannotStart(f"{file.name} is there already: nothing was written")
    for file, template in zip(files, (STRATEGY, TEST), strict=True):
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(template.substitute(module=name, name=class_name))
        except OSError as error:
            raise CannotStart(f"{file.name} cannot be written: {error.strerror}") from error
    return (*files, f"{name}:{class_name}")


def _check(name: str, folder: Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > NAME_CHARACTERS_MAX:
        raise CannotStart(f"{name!r} is no name for a module: use lower-case letters, digits and _, as in my_lock")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name):
        raise CannotStart(f"{name!r} is a word of Python's own: choose another name, as in {name}_lock")
    if name.startswith("test_"):
        raise CannotStart(f"{name!r} is what pytest would take for a test: choose another name")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        where = "Python itself" if name in sys.stdlib_module_names else "an installed package"
        raise CannotStart(f"{name!r} is a module of {where}, which would be found first: choose another name")
    if (folder / name).exists():
        raise CannotStart(f"{name} is there already: a package is found before a module of its name")
