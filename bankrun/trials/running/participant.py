"""What runs in the interpreter of the user's program: it imports a function by file and name, and calls it.

Only the standard library is imported here, and nothing of the program is changed. Where Django is configured, its
default database is the one that DATABASE_URL names.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

DEPTH_MAX = 20


def module_of(file: str) -> tuple[str, str]:
    """Return the folder that a file is imported from, and its name there: a package's file has a dotted one."""
    path = Path(file)
    names, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return str(folder), ".".join(names)


def load(file: str, function: str) -> Callable[..., Any]:
    """Import a function by its file and name."""
    folder, name = module_of(file)
    for one in (str(Path.cwd()), folder):
        if one not in sys.path:
            sys.path.insert(0, one)
    redirect_django()
    module = importlib.import_module(name)
    found = Path(getattr(module, "__file__", "") or "").resolve()
    if found != Path(file).resolve():
        raise ImportError(f"{name} is {found}, and not {file}: rename the file, or run it from another folder")
    return getattr(module, function)  # type: ignore[no-any-return]


def prepare(file: str, function: str) -> None:
    """Import what will be called, in a process that is about to be forked. Raises ImportError for what cannot be.

    What is made once in any process is made here: mappers, and what an engine asks at its first connection. No
    connection is left open: a socket cannot be shared by forks.
    """
    try:
        load(file, function)
    except Exception as error:
        raise ImportError(f"{Path(file).name}: {type(error).__name__}: {error}") from error
    _warm_sqlalchemy()
    _close_django()
    others = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
    if others:
        raise ImportError(
            f"{Path(file).name} starts a thread when it is imported ({others[0]}), and a process with threads cannot "
            "be forked: open pools inside the function, or give a --command"
        )


def call(file: str, function: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """Call a function and return its result as JSON has it."""
    try:
        result = load(file, function)(*arguments, **keywords)
        if inspect.isawaitable(result):
            result = asyncio.run(_wait_for(result))
    except SystemExit as error:
        if error.code in (None, 0):
            return None  # it ended, and ended well
        raise
    return encode(result)


async def _wait_for(result: Any) -> Any:
    return await result


def encode(value: Any, depth: int = 0) -> Any:
    """Return a result as JSON has it; what JSON does not know is text, and an object is what it consists of."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): encode(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(one, depth + 1) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted((encode(one, depth + 1) for one in value), key=repr)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: encode(getattr(value, one.name), depth + 1) for one in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        try:
            return encode(dump(), depth + 1)
        except Exception:  # noqa: BLE001 - an object that its session has left behind
            return f"<{type(value).__name__}>"
    text = str(value)
    return f"<{type(value).__name__}>" if text == object.__repr__(value) else text  # an address says nothing


def redirect_django() -> None:
    """Let Django's default database be the one that DATABASE_URL names, where Django is configured at all."""
    if "DJANGO_SETTINGS_MODULE" not in os.environ or "DATABASE_URL" not in os.environ:
        return
    try:
        import django
        from django.conf import settings
    except ImportError:
        return
    url = urlsplit(os.environ["DATABASE_URL"])
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    default = settings.DATABASES.setdefault("default", {})
    options = {k: v for k, v in default.get("OPTIONS", {}).items() if k not in ("service", "passfile")}
    default.update(
        ENGINE=default.get("ENGINE") if "postg" in str(default.get("ENGINE")) else "django.db.backends.postgresql",
        NAME=unquote(url.path[1:]),
        USER=unquote(url.username or ""),
        PASSWORD=unquote(url.password or ""),
        HOST=query.get("host") or url.hostname or "",
        PORT=query.get("port") or str(url.port or ""),
        OPTIONS=options,
    )
    django.setup()


def _warm_sqlalchemy() -> None:
    if "sqlalchemy" not in sys.modules:
        return
    import gc

    from sqlalchemy.engine import Engine

    if "sqlalchemy.orm" in sys.modules:
        from sqlalchemy.orm import configure_mappers

        configure_mappers()
    for engine in [one for one in gc.get_objects() if isinstance(one, Engine)]:
        if engine.dialect.name == "postgresql" and not engine.dialect.is_async:
            with suppress(Exception):  # it may be meant for another server: its own use will tell
                engine.connect().close()
        engine.dispose()


def _close_django() -> None:
    if "django.db" in sys.modules:
        sys.modules["django.db"].connections.close_all()


def main() -> None:
    """Call a function by the command line: file, name, arguments and keywords as JSON, and where the result goes."""
    file, function, given, fd = sys.argv[1:5]
    arguments, keywords = json.loads(given)
    result = call(file, function, arguments, keywords)
    if int(fd) >= 0:
        os.write(int(fd), json.dumps(result).encode())


if __name__ == "__main__":
    main()
