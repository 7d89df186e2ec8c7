"""Instances that are far from Postgres: a delay in each direction, by a proxy for each of them."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psycopg
from sqlalchemy import make_url

from bank.postgres.database import psql_url
from bankrun.results.distance import Distance
from bankrun.servers.binaries import PORT
from bankrun.servers.network import Proxy

NAME = f".s.PGSQL.{PORT}"
TRIES = 9
ROUNDS = 4
ADJUSTMENTS_MAX = 3
MS_CLOSE = 0.3
MS_OFF_MAX = 1.0
"""A measured round trip may differ so much from what was asked for; with more, the distance is not that one."""
SELECTED_MAX = 800  # descriptors: select() takes fewer than 1,024


class Network:
    """The ways from instances to Postgres' own socket. Use as a context manager; everybody is near at first."""

    def __init__(self, worker_url: str, names: Sequence[str], *, threads: int) -> None:
        self._url = make_url(worker_url)
        self._names = names
        self._precise = 2 * len(names) * (threads + 4) < SELECTED_MAX
        self._resources = ExitStack()
        self._proxies: dict[str, Proxy] = {}

    def __enter__(self) -> Self:
        with self._resources:
            self._directory = Path(tempfile.mkdtemp(prefix="bankrun-far-"))
            self._resources.callback(shutil.rmtree, self._directory, ignore_errors=True)
            target = Path(str(self._url.query["host"])) / NAME
            for name in self._names:
                (self._directory / name).mkdir()
                proxy = Proxy(self._directory / name / NAME, target, precise=self._precise)
                self._proxies[name] = self._resources.enter_context(proxy)
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def url(self, name: str) -> str:
        """Return Postgres' address for an instance."""
        return self._url.update_query_dict({"host": str(self._directory / name)}).render_as_string(hide_password=False)

    def place(self, distance: Distance) -> None:
        """Let round trips take so long from now on. Nothing may be on its way."""
        for name, proxy in self._proxies.items():
            proxy.delay_seconds = distance.of(name) / 2_000

    def adjust(self, distance: Distance, names: Sequence[str]) -> dict[str, float]:
        """Let round trips take so long from now on, what the way itself takes included; return what was measured."""
        self.place(distance)
        measured = self.measure(names)
        for _ in range(ADJUSTMENTS_MAX):
            off = {name: ms - distance.of(name) for name, ms in measured.items() if distance.of(name)}
            if all(abs(ms) < MS_CLOSE for ms in off.values()):
                break
            for name, ms in off.items():
                proxy = self._proxies[name]
                proxy.delay_seconds = max(0.0, proxy.delay_seconds - ms / 2_000)
            measured |= self.measure(off)
        return measured

    def measure(self, names: Iterable[str]) -> dict[str, float]:
        """Return how long a SELECT takes from these instances' places: the least of a few medians, in milliseconds."""
        return {name: min(self._measure(name) for _ in range(ROUNDS)) for name in names}

    def _measure(self, name: str) -> float:
        found = []
        with psycopg.connect(psql_url(self.url(name)), autocommit=True, application_name="bankrun distance") as session:
            for _ in range(TRIES):
                began = time.perf_counter()
                session.execute("SELECT 1")
                found.append(1_000 * (time.perf_counter() - began))
        return round(statistics.median(found), 2)


def find_off(distance: Distance, measured: Mapping[str, float]) -> list[str]:
    """Return a sentence for each instance whose round trips do not take what was asked for."""
    return [
        f"a round trip of {name} took {ms:.1f} ms where {distance.of(name):g} were asked for"
        for name, ms in measured.items()
        if abs(ms - distance.of(name)) > MS_OFF_MAX
    ]
