"""What is around us: which packages are found under our names, and which processes are alive."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from bankrun.errors import CannotStart

HOME = Path(__file__).resolve().parent.parent
PACKAGES = ("bank", "workers")


def check_packages() -> None:
    """Raise CannotStart where a project's own ``bank`` or ``workers`` is found in place of ours.

    Both names are generic: a project that has one of them first on its path can use trials and the saved results, and
    not what needs our bank.
    """
    for name in PACKAGES:
        found = _find(name)
        if found is None:
            raise CannotStart(f"bankrun's package {name!r} is missing beside bankrun itself: install bankrun again")
        if found != HOME / name:
            raise CannotStart(
                f"this needs bankrun's own package {name!r}, and {found} comes first on the path: "
                "run it from another folder, or with python -P (pytest: with --import-mode=importlib, too)"
            )


def _find(name: str) -> Path | None:
    """Return the folder of a package (the file of a module), or None if there is none."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) if module is not None else importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def is_alive(pid: int) -> bool:
    """Whether there is a process with this pid, ours or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
