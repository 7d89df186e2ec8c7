"""The lab behind the page: one thread runs what visitors ask for, one thing at a time, and says how far it is.

What is shown to a visitor comes from here, not from the connection: it survives a reload, is the same for all, and the
last result is on the disk for when the server comes back.
"""

from __future__ import annotations

import queue
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import SecretStr

from bank.errors import BankError, CannotStart, Occupied
from bank.postgres.database import first_line
from bank.settings import Settings
from bankrun import errors
from bankrun.page.last import keep, recall
from bankrun.proof.prover import Prover
from bankrun.proof.stepper import Position, Stepped, step
from bankrun.results.models.comparison import Comparison, Run
from bankrun.results.topology import Topology
from bankrun.runs.boundary import LOST_SERVER
from bankrun.runs.comparison import Lab, Plan, judge_all
from bankrun.runs.film import Film, shoot
from bankrun.runs.provenance import begin_comparison
from bankrun.runs.sampling import Overwritten, View, Watch
from bankrun.runs.session import Servers, open_lab, open_servers
from bankrun.servers.state_dir import default_state_dir
from workers.app import broker_of
from workers.control.interruption import PAUSE_SECONDS_MAX
from workers.fleet import InstanceInfo

RETRY_SECONDS = 2.0
JOIN_SECONDS = 2.0
ANSWER_SECONDS = 0.5
READY_SECONDS = 60.0
PROVER_SECONDS = 60.0
CLOSE_SECONDS = 30.0
LOOK_SECONDS = 5.0
SCENES_MAX = 200
IDLE = "Nothing runs."

State = Literal["idle", "waiting", "starting", "running", "stopping"]


def check_free(host: str, port: int) -> None:
    """Raise CannotStart unless that port is free to listen on."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise CannotStart(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


class Stopped(BankError):
    """A visitor stopped it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is to see. ``version`` grows with every change; ``trouble`` is why the last thing ended badly.

    ``planned`` are the cells of the comparison, as (strategy, topology); ``films`` shows those that are done.
    """

    version: int = 0
    state: State = "idle"
    sentence: str = IDLE
    trouble: str = ""
    number: int = 0
    total: int = 0
    done: int = 0
    transfers: int = 0
    instances: tuple[str, ...] = ()
    silent: frozenset[str] = frozenset()
    view: View | None = None
    planned: tuple[tuple[str, str], ...] = ()
    comparison: Comparison | None = None
    films: Mapping[tuple[str, str], Film] = field(default_factory=dict)


@dataclass(slots=True)
class _Job:
    run: Callable[[], object]
    future: Future[object] = field(default_factory=Future)


class Live:
    """Runs comparisons, and steps through interleavings, for all visitors together. Thread-safe."""

    def __init__(self, settings: Settings, own: Sequence[str] = ()) -> None:
        """``own`` are names of strategies from outside, loaded already; no others can be asked for."""
        self.own = tuple(own)
        key = settings.control_key or SecretStr(secrets.token_urlsafe(24))
        self._key = key.get_secret_value()
        self._settings = settings.model_copy(update={"control_key": key})
        self._directory = settings.state_dir or default_state_dir()
        self._lock = threading.Lock()
        self._viewers = 0
        self._scenes: deque[Overwritten] = deque(maxlen=SCENES_MAX)
        self._snapshot = replace(Snapshot(), **self._recall())  # type: ignore[arg-type]
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._stop = threading.Event()
        self._lab: Lab | None = None
        self._servers_gone = False
        self._prover: Prover | None = None
        self._thread = threading.Thread(target=self._work, name="lab", daemon=True)
        self._thread.start()

    # What visitors ask for.

    def snapshot(self) -> Snapshot:
        """Return what there is to see now."""
        with self._lock:
            return self._snapshot

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count a visitor while it looks: without any, no films are made."""
        with self._lock:
            self._viewers += 1
        try:
            yield
        finally:
            with self._lock:
                self._viewers -= 1

    @property
    def is_watched(self) -> bool:
        """Whether anybody looks."""
        return self._viewers > 0

    def scene(self, number: int) -> Overwritten | None:
        """Return a posting that was written over, if it is not too long ago."""
        return next((one for one in tuple(self._scenes) if one.number == number), None)

    def start(self, plan: Plan) -> None:
        """Begin a comparison. Raises CannotStart if one is under way."""
        with self._lock:
            if self._snapshot.state != "idle":
                raise CannotStart("a comparison is under way: stop it first")
            self._stop.clear()
            cells = tuple((strategy, str(topology)) for strategy, topology in plan.cells())
            self._set(state="starting", sentence="Servers and workers are starting.", trouble="", view=None)
            self._set(planned=cells, comparison=None, films={})
        self._jobs.put(_Job(lambda: self._compare(plan)))

    def stop(self) -> None:
        """End what runs; nothing is left running."""
        with self._lock:
            if self._snapshot.state != "idle":
                self._stop.set()
                self._set(state="stopping", sentence="It is being stopped.")

    def pause(self, instance: str, seconds: float) -> None:
        """Have an instance stop for so long. Raises BankError if that is impossible."""
        if not 0 < seconds <= PAUSE_SECONDS_MAX:
            raise CannotStart(f"a pause lasts more than 0 and at most {PAUSE_SECONDS_MAX:g} seconds")
        lab, info = self._find_instance(instance)
        lab.fleet.pause(info.node, self._key, seconds)

    def kill(self, instance: str) -> None:
        """Have an instance end with SIGKILL; it is started again. Raises BankError if that is impossible."""
        lab, info = self._find_instance(instance)
        lab.fleet.kill(info.node, self._key)

    def step(self, position: Position) -> Future[object]:
        """Return what two transfers do, one step at a time; a ``Stepped`` or why not."""
        job = _Job(lambda: self._step(position))
        with self._lock:
            state = self._snapshot.state
        if state == "idle":
            self._jobs.put(job)
        else:
            job.future.set_exception(CannotStart("a comparison is under way: stop it, or wait for its end"))
        return job.future

    def close(self) -> None:
        """Stop what runs, and wait until its servers have ended."""
        self.stop()
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)

    # The one thread that works.

    def _work(self) -> None:
        given = self._settings.database_url is not None
        while True:
            wait_seconds = PROVER_SECONDS if self._prover is not None else LOOK_SECONDS if given else None
            try:
                job = self._jobs.get(timeout=wait_seconds)
            except queue.Empty:
                self._end_proving()
                if given:
                    self._look_at_servers()
                continue
            if job is None:
                self._end_proving()
                return
            try:
                job.future.set_result(job.run())
            except BaseException as error:  # noqa: BLE001 - it is the visitor's to see; this thread goes on
                job.future.set_exception(error)

    def _look_at_servers(self) -> None:
        """Say whether servers that are not ours answer, while nothing else is done with them."""
        try:
            with open_servers(self._settings.model_copy(update={"startup_wait_ms": 0})) as servers:
                ready = len(servers.fleet.discover())
                broker = broker_of(servers.app).name
            sentence, trouble = f"Nothing runs. Postgres and {broker} answer, and {ready} workers.", ""
        except LOST_SERVER as error:
            sentence, trouble = "Nothing runs.", str(error) if isinstance(error, BankError) else first_line(error)
        with self._lock:
            now = self._snapshot
            if now.state == "idle" and (trouble or self._servers_gone or now.sentence == IDLE):
                self._set(sentence=sentence, trouble=trouble)
            self._servers_gone = bool(trouble)

    def _compare(self, plan: Plan) -> None:
        self._end_proving()
        trouble = ""
        sentence = IDLE
        try:
            self._compare_when_free(plan)
            sentence = "The comparison is finished."
        except Stopped:
            sentence = "It was stopped."
        except LOST_SERVER as error:
            trouble = str(error) if isinstance(error, BankError) else f"failed while running: {first_line(error)}"
        except Exception as error:
            trouble = f"failed: {type(error).__name__}: {first_line(error)}"
            raise
        finally:
            self._lab = None
            with self._lock:
                if self._snapshot.comparison is None:
                    self._set(**self._recall())
                self._set(state="idle", sentence=sentence, trouble=trouble, instances=(), silent=frozenset(), view=None)

    def _compare_when_free(self, plan: Plan) -> None:
        while True:
            try:
                with open_servers(self._settings) as servers:
                    self._compare_on(servers, plan)
                return
            except Occupied as error:
                with self._lock:
                    self._set(state="waiting", sentence=f"Waiting: {error}")
                if self._stop.wait(RETRY_SECONDS):
                    raise Stopped from None

    def _compare_on(self, servers: Servers, plan: Plan) -> None:
        with open_lab(servers, instances=plan.instances, threads=plan.threads, revive=True) as lab:
            comparison = begin_comparison(servers, lab, plan)
            runs: list[Run] = []
            self._lab = lab
            watcher = _Watcher(self, lab, plan, comparison, runs)
            try:
                lab.compare(plan, watcher, runs)
            finally:
                comparison.cells = judge_all(runs)
                if runs:
                    self._keep(comparison)

    def _step(self, position: Position) -> Stepped:
        try:
            if self._prover is None:
                prover = Prover(self._settings)
                prover.__enter__()
                self._prover = prover
            return step(self._prover, position, self.own)
        except (CannotStart, errors.CannotStart):
            raise
        except LOST_SERVER as error:
            self._end_proving()
            raise BankError(f"failed while running: {first_line(error)}") from error

    def _end_proving(self) -> None:
        prover, self._prover = self._prover, None
        if prover is not None:
            with suppress(*LOST_SERVER):
                prover.__exit__()

    # What they see.

    def _set(self, **changes: object) -> None:
        """Change the snapshot. The caller holds the lock."""
        self._snapshot = replace(self._snapshot, version=self._snapshot.version + 1, **changes)  # type: ignore[arg-type]

    def show(self, **changes: object) -> None:
        """Change what is seen, unless it is being stopped; then raise Stopped. For the thread that works."""
        with self._lock:
            if not self._stop.is_set():
                self._set(**changes)
                return
        raise Stopped

    def remember(self, seen: Sequence[Overwritten]) -> None:
        """Keep what was seen to be written over, for visitors who click on it after it has left the list."""
        last = self._scenes[-1].number if self._scenes else 0
        self._scenes.extend(one for one in seen if one.number > last)

    def _keep(self, comparison: Comparison) -> None:
        with self._lock:
            self._set(comparison=comparison)
        keep(self._directory, comparison, self._snapshot.films)

    def _recall(self) -> dict[str, object]:
        """Return what the last result has to show."""
        comparison, films = recall(self._directory)
        cells = comparison.cells if comparison is not None else ()
        planned = tuple((cell.shown.strategy, cell.shown.topology) for cell in cells)
        return {"comparison": comparison, "films": films, "planned": planned}

    def _find_instance(self, instance: str) -> tuple[Lab, InstanceInfo]:
        lab = self._lab
        for info in lab.instances if lab is not None else ():
            if info.instance == instance and lab is not None:
                return lab, info
        raise CannotStart(f"there is no instance {instance!r} at work")


class _Watcher:
    """Tells the page how far a comparison is, and keeps its instances in it."""

    def __init__(self, live: Live, lab: Lab, plan: Plan, comparison: Comparison, runs: Sequence[Run]) -> None:
        self._live = live
        self._lab = lab
        self._plan = plan
        self._comparison = comparison
        self._runs = runs
        self._watch: Watch | None = None
        self._joins_at = 0.0

    def cell_begins(self, strategy: str, topology: Topology, number: int, total: int) -> None:
        """Wait until all instances answer: one of them may just be starting again."""
        self._live.show(
            state="running",
            sentence=f"{strategy} on {topology}",
            number=number,
            total=total,
            done=0,
            transfers=0,
            instances=tuple(info.instance for info in self._lab.instances[: topology.instances]),
            silent=frozenset(),
            view=None,
        )
        wanted = {info.instance for info in self._lab.instances[: topology.instances]}
        deadline = time.monotonic() + READY_SECONDS
        while missing := wanted - {info.instance for info in self._lab.fleet.discover(len(self._lab.instances))}:
            self._live.show(silent=frozenset(missing))
            self._lab.look_after()
            if time.monotonic() > deadline:
                raise BankError(f"no answer from {', '.join(sorted(missing))} for {READY_SECONDS:g} s")
        load = self._plan.workload
        self._watch = Watch(
            self._lab.database,
            strategy,
            str(topology),
            accounts=load.accounts,
            opening=load.opening,
            boxes=self._live.snapshot().instances,
            is_watched=lambda: self._live.is_watched,
        )
        self._joins_at = time.monotonic() + JOIN_SECONDS

    def transfers(self, done: int, total: int) -> None:
        """Look, if it is time."""
        if self._watch is not None and self._watch.look():
            self._live.remember(self._watch.view.overwritten)
            self._live.show(done=done, transfers=total, view=self._watch.view.copy())
        else:
            self._live.show(done=done, transfers=total)
        if time.monotonic() > self._joins_at:
            answering = self._lab.join_again(ANSWER_SECONDS)
            self._live.show(silent=frozenset(self._live.snapshot().instances) - answering)
            self._joins_at = time.monotonic() + JOIN_SECONDS

    def cell_ends(self, run: Run) -> None:
        """Show the verdicts so far."""
        self._watch = None
        self._comparison.cells = judge_all(self._runs)
        seen = self._live.snapshot()
        with self._lab.database.transaction() as transaction:
            film = shoot(transaction, run.strategy, run.topology, seen.instances, run.threads, telling=True)
        films = {**seen.films, (run.strategy, run.topology): film} if film else seen.films
        self._live.show(comparison=replace(self._comparison), films=films)
