"""What faults act upon: instances, servers, the network between them and the broker, each of which can be made to fail.

    with open_targets(settings, instances=2, threads=4) as targets:
        targets.kill("w1")
        targets.revive("w1")

The servers are embedded ones, and everything belongs to the keeper, as in a comparison.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import LiteralString, TypeVar
from urllib.parse import urlsplit

import psutil
import psycopg
import redis
from pydantic import SecretStr, ValidationError
from sqlalchemy import make_url

from bank.errors import BankError, CannotStart
from bank.postgres.database import psql_url
from bank.postgres.presets import as_options
from bank.postgres.schema import check_connection_budget
from bank.settings import Settings, is_rabbitmq
from bankrun.chaos.messages import Messages, RabbitMQMessages, RedisMessages
from bankrun.errors import BankrunError
from bankrun.runs.boundary import LOST_SERVER
from bankrun.runs.delivery import Delivery, insist
from bankrun.runs.session import Servers, cores_of, hold_bank, open_servers, worker_environment
from bankrun.servers import binaries as embedded
from bankrun.servers.keeper_client import Keeper
from bankrun.servers.network import Proxy, TcpProxy
from workers.control.failpoints import Action, Failpoint, Point
from workers.fleet import InstanceInfo, start_instances

WAITS = {
    "lease_ttl_ms": 300,
    "lock_timeout_ms": 1_000,
    "idle_timeout_ms": 2_500,
    "attempt_timeout_ms": 3_000,
    "visibility_timeout_ms": 6_000,
    "patience_ms": 2_000,
    "reconcile_ms": 300,
    "redeliveries_max": 3,
}
"""The same order as everywhere, and shorter: a fault has to outlast them, and the result says what they were."""
MAX_CONNECTIONS = 80
STEP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.02
FREEZE_SECONDS_MAX = 20
RESTART_SECONDS_MAX = 120.0
AMQP_PORT = 5672
FULL_DISK_LOCK_KEY = 0x66756C6C  # "full", 1718971500 below
FILL_DISK: tuple[LiteralString, ...] = (
    """
    CREATE OR REPLACE FUNCTION bankrun.say_the_disk_is_full() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 1718971500) THEN
            RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE OR REPLACE TRIGGER disk_is_full BEFORE INSERT ON bankrun.entries
    FOR EACH ROW EXECUTE FUNCTION bankrun.say_the_disk_is_full()
    """,
)

T = TypeVar("T")


class Missed(BankError):
    """The fault did not happen."""


class Targets:
    """A bank's servers and instances, and ways to break each. What breaks one returns when that is over.

    ``instances`` is how the instances see the servers: through a network that can fail, for example. Methods raise
    Missed where a fault could not be brought about, and BankError where something does not come back.
    """

    def __init__(
        self,
        servers: Servers,
        keeper: Keeper,
        instances: Servers,
        key: str,
        threads: int,
        *,
        proxy: Proxy | None = None,
        broker_proxy: TcpProxy | None = None,
        restart_broker: Sequence[str] = (),
    ) -> None:
        self.servers = servers
        self.database, self.fleet, self.app = servers.database, servers.fleet, servers.app
        self.settings = instances.settings
        self.environment = worker_environment(instances)
        self.keeper = keeper
        self.threads = threads
        self._cores: dict[str, int] = {}
        self.infos: dict[str, InstanceInfo] = {}
        self._armed: set[str] = set()
        self.delivery: Delivery | None = None
        self.log_path = servers.state_dir / "logs"
        self._proxy = proxy
        self._broker_proxy = broker_proxy
        self._restart_broker = list(restart_broker)
        self._key = key
        url = servers.endpoints.broker_url
        self.messages: Messages = RabbitMQMessages(servers.app) if is_rabbitmq(url) else RedisMessages(url)

    @property
    def proxy(self) -> Proxy:
        """The network between the instances and Postgres."""
        assert self._proxy is not None, "these were opened without a network that can fail"
        return self._proxy

    @property
    def broker_proxy(self) -> TcpProxy:
        """The network between the instances and RabbitMQ."""
        assert self._broker_proxy is not None, "these were opened without a broker that can be cut off"
        return self._broker_proxy

    @property
    def redis(self) -> redis.Redis:
        """The Redis that can be killed."""
        assert isinstance(self.messages, RedisMessages), "another broker takes its place"
        return self.messages.client

    # Waiting: what is away may come back.

    def until(self, condition: Callable[[], object], what: str, seconds_max: float = STEP_SECONDS_MAX) -> None:
        """Wait until something is so; while a server is away, it is not. Raises Missed if it does not become so."""
        deadline = time.monotonic() + seconds_max
        while True:
            with suppress(*LOST_SERVER):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise Missed(f"after {seconds_max:g} s still not so: {what}")
            time.sleep(POLL_SECONDS)

    def insist(self, act: Callable[[], T], seconds_max: float = STEP_SECONDS_MAX) -> T:
        """Return what ``act`` returns, once the servers that it needs are back. Raises its error if they stay away."""
        return insist(act, seconds_max)

    # Instances.

    def start(self, names: list[str]) -> None:
        """Start instances and wait until they answer."""
        self._cores = cores_of(self.servers, names)
        self._spawn(names, {})
        for info in self.fleet.wait_until_ready(names, self.keeper, self.servers.state_dir, lambda: None):
            self.infos[info.instance] = info

    def _spawn(self, names: list[str], extra: Mapping[str, str]) -> None:
        env = {**self.environment, **extra}
        start_instances(
            self.keeper, names, threads=self.threads, env=env, state_dir=self.servers.state_dir, cores=self._cores
        )

    def revive(self, name: str, *, join: bool = True, **extra: str) -> None:
        """Start an instance again, with more in its environment, and let it take part in the delivery that is on."""
        self._spawn([name], extra)
        self._armed.discard(name)

        def find() -> bool:
            (info,) = [one for one in self.fleet.discover(None, 0.5) if one.instance == name]
            self.infos[name] = info
            return True

        def is_back() -> bool:
            with suppress(ValueError):
                return find()
            if self.keeper.returncode(name) is not None:  # it ended again: a server that it needs is away
                self._spawn([name], extra)
            return False

        self.until(is_back, f"{name} is back", 2 * STEP_SECONDS_MAX)
        if join:
            self.join(name)

    def join(self, name: str) -> None:
        """Let an instance take part in the delivery that is on, if there is one."""
        if self.delivery is not None:
            self.delivery.join([self.infos[name]])

    def call(self, name: str) -> None:
        """The same for one in which a failpoint is armed: it may not come to an answer."""
        if self.delivery is not None:
            self.delivery.call([self.infos[name]])

    def kill(self, name: str) -> None:
        """End an instance with SIGKILL."""
        self.keeper.signal(name, signal.SIGKILL)
        self.keeper.wait(name, STEP_SECONDS_MAX)

    def await_death(self, name: str) -> None:
        """Wait until an instance has ended by itself."""
        self.until(lambda: self.keeper.returncode(name) is not None, f"{name} has ended")

    def is_alive(self, name: str) -> bool:
        """Whether an instance's process runs."""
        return self.keeper.returncode(name) is None

    def is_at_work(self, name: str) -> bool:
        """Whether an instance's process runs, and is not stopped."""
        try:
            return psutil.Process(self.infos[name].pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def pause(self, name: str, seconds: float) -> None:
        """Stop an instance for a time, wherever it is."""
        self.keeper.signal(name, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            self.keeper.signal(name, signal.SIGCONT)

    def pause_armed(self, name: str, seconds: float) -> None:
        """Wait until an instance has stopped at the failpoint that is armed in it, and let it go on after a time."""
        process = psutil.Process(self.infos[name].pid)
        try:
            self.until(lambda: process.status() == psutil.STATUS_STOPPED, f"{name} has stopped", 10)
            time.sleep(seconds)
        finally:
            self.keeper.signal(name, signal.SIGCONT)
            self.disarm(name)

    def arm(self, name: str, point: Point, action: Action, transfer: str | None = None, *, passes: int = 0) -> None:
        """Arm a failpoint in an instance."""
        self._armed.add(name)
        self.insist(lambda: self.fleet.arm(self.infos[name], self._key, Failpoint(point, action, transfer, passes)))

    def disarm(self, name: str) -> None:
        """Disarm it."""
        self.insist(lambda: self.fleet.disarm(self.infos[name], self._key))
        self._armed.discard(name)

    def stop_all(self) -> None:
        """End all instances."""
        self.keeper.stop(list(self.infos), grace_seconds=2)

    def find_standing(self, strategy: str) -> str:
        """Say where a strategy from outside hangs in an instance; nothing if it hangs in none."""
        places = self.insist(lambda: self.fleet.find_stuck(list(self.infos.values())))
        stands = [f"{name} stands in {' and in '.join(found)}" for name, found in sorted(places.items())]
        return f"{strategy} hangs: {', '.join(stands)}" if stands else ""

    # Servers.

    def restart_postgres(self, signum: int) -> None:
        """End Postgres and start it again: SIGINT is a fast shutdown, SIGQUIT an immediate one, which must recover."""
        self.keeper.signal("postgres", signum)
        self.keeper.wait("postgres", STEP_SECONDS_MAX)
        self.keeper.start_again("postgres")
        self.until(self.postgres_answers, "Postgres is back")

    def postgres_answers(self) -> bool:
        """Whether a new connection is served."""
        with psycopg.connect(psql_url(self.database.url), connect_timeout=2) as connection:
            return connection.execute("SELECT true").fetchone() == (True,)

    def restart_redis(self, *, kept: bool) -> None:
        """End Valkey with SIGKILL and start it again: with what it had written to its log, or empty."""
        if kept:
            self.redis.config_set("appendfsync", "always")
            self.redis.config_set("appendonly", "yes")
            self.until(lambda: not self.redis.info("persistence")["aof_rewrite_in_progress"], "the log is written")
        self.keeper.signal("valkey", signal.SIGKILL)
        self.keeper.wait("valkey", STEP_SECONDS_MAX)
        if not kept:
            shutil.rmtree(self.servers.state_dir / "valkey" / "appendonlydir", ignore_errors=True)
        self.keeper.start_again("valkey", *(("--appendonly", "yes") if kept else ()))
        self.until(self.redis.ping, "Valkey is back")

    def restart_rabbitmq(self) -> None:
        """Run the command that restarts RabbitMQ. Raises Missed if it fails."""
        done = subprocess.run(
            self._restart_broker,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=RESTART_SECONDS_MAX,
            check=False,
        )
        if done.returncode:
            said = done.stdout.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise Missed(f"{self._restart_broker[0]} ended with code {done.returncode}, and said {said[-1]}")

        def is_back() -> bool:
            self.fleet.check_broker()
            return True

        self.until(is_back, "RabbitMQ is back", RESTART_SECONDS_MAX)

    def freeze_postgres(self, seconds: float) -> None:
        """Stop Postgres and all of its sessions for a time."""
        postmaster = psutil.Process(self.keeper.process_id("postgres"))
        frozen = [postmaster, *postmaster.children()]
        # Should this lab be killed now, they would never be woken, and stopped sessions cannot even end.
        pids = [str(process.pid) for process in frozen]
        alarm = subprocess.Popen(
            ["/bin/sh", "-c", f"sleep {FREEZE_SECONDS_MAX}; kill -CONT {' '.join(pids)} 2>/dev/null"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            for process in frozen:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            time.sleep(seconds)
        finally:
            for process in frozen:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
            os.killpg(alarm.pid, signal.SIGKILL)
            alarm.wait()

    def take_all_connections(self, seconds: float) -> None:
        """Take every connection that Postgres has, and then the instances' own, so that they get none back."""
        self.until(lambda: self.count("applied") >= 0, "the lab has its own connection")
        with ExitStack() as taken:

            def take() -> None:
                while True:
                    try:
                        taken.enter_context(psycopg.connect(psql_url(self.database.url), connect_timeout=5))
                    except psycopg.OperationalError:
                        return

            take()
            self.end_sessions()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                take()
                time.sleep(POLL_SECONDS)

    def fill_disk(self, seconds: float) -> None:
        """Have Postgres answer every new entry as it would on a full disk; not for longer than this lab lives."""
        with psycopg.connect(psql_url(self.database.url), autocommit=True, options=as_options()) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (FULL_DISK_LOCK_KEY,))
            for statement in FILL_DISK:
                connection.execute(statement)
            try:
                time.sleep(seconds)
            finally:
                connection.execute("SELECT pg_advisory_unlock(%s)", (FULL_DISK_LOCK_KEY,))
                connection.execute("DROP FUNCTION bankrun.say_the_disk_is_full() CASCADE")

    def end_sessions(self) -> int:
        """Have Postgres end every instance's sessions; return how many there were."""
        with self.database.transaction() as transaction:
            row = transaction.execute(
                """
                SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE application_name LIKE 'bankrun %%' AND application_name <> 'bankrun lab'
                """,
                {},
            ).fetchone()
        return 0 if row is None else int(row[0])

    # What is in the bank now.

    def count(self, *statuses: str) -> int:
        """Return how many transfers have one of these statuses."""
        with self.database.transaction() as transaction:
            row = transaction.execute(
                "SELECT count(*) FROM transfers WHERE status = ANY(%(statuses)s)", {"statuses": list(statuses)}
            ).fetchone()
        return 0 if row is None else int(row[0])

    def count_by(self, instance: str) -> int:
        """Return how many transfers an instance has decided."""
        with self.database.transaction() as transaction:
            row = transaction.execute(
                "SELECT count(*) FROM transfers WHERE instance = %(instance)s", {"instance": instance}
            ).fetchone()
        return 0 if row is None else int(row[0])

    def count_republished(self, run: str) -> int:
        """Return how many of a run's transfers the reconcilers have published again, each as often as it was."""
        with self.database.transaction() as transaction:
            row = transaction.execute("SELECT republished FROM runs WHERE name = %(run)s", {"run": run}).fetchone()
        return 0 if row is None else int(row[0])

    def restore(self) -> None:
        """Have every instance run, join in, and be armed with nothing."""
        for name in list(self.infos):
            if self.is_alive(name):
                self.keeper.signal(name, signal.SIGCONT)
                if name in self._armed:
                    self.disarm(name)
            else:
                self.revive(name)


@contextmanager
def open_targets(
    settings: Settings,
    *,
    instances: int,
    threads: int,
    with_network: bool = True,
    waits: Mapping[str, int] = WAITS,
    restart_broker: Sequence[str] = (),
) -> Iterator[Targets]:
    """Start servers and instances for the block, with waits that are short except where the environment sets them.

    A RabbitMQ may be given: it is cut off from the instances, and ``restart_broker`` is the command that restarts it.
    Raises CannotStart where other servers are given: they are not ours to break.
    """
    broker_url = "" if settings.broker_url is None else settings.broker_url.get_secret_value()
    if settings.database_url is not None or (broker_url and not is_rabbitmq(broker_url)):
        raise CannotStart("faults need servers that may be broken: unset BANKRUN_DATABASE_URL and BANKRUN_BROKER_URL")
    shorter = {name: value for name, value in waits.items() if name not in settings.model_fields_set}
    try:
        given = Settings.model_validate({**settings.model_dump(exclude_unset=True), **shorter})
    except ValidationError as error:
        why = error.errors(include_url=False, include_context=False)[0]["msg"].removeprefix("Value error, ")
        raise CannotStart(f"the waits that are not set are short here, and then {why}: set that one too") from None
    key = secrets.token_hex(16)
    with ExitStack() as stack:
        servers = stack.enter_context(open_servers(given, max_connections=MAX_CONNECTIONS))
        assert servers.keeper is not None
        stack.enter_context(hold_bank(servers))
        check_connection_budget(servers.database, instances=instances, threads=threads)
        seen = replace(servers, settings=servers.settings.model_copy(update={"failpoint_key": SecretStr(key)}))
        proxy: Proxy | None = None
        if with_network:
            url = make_url(servers.endpoints.worker_database_url)
            directory = Path(tempfile.mkdtemp(prefix="bankrun-"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            name = f".s.PGSQL.{embedded.PORT}"
            proxy = stack.enter_context(Proxy(directory / name, Path(str(url.query["host"])) / name))
            proxied = url.update_query_dict({"host": str(directory)}).render_as_string(hide_password=False)
            seen = replace(seen, endpoints=replace(servers.endpoints, worker_database_url=proxied))
        broker_proxy: TcpProxy | None = None
        if can_be_cut(broker_url):
            broker_proxy, proxied = stack.enter_context(_between_broker(broker_url))
            seen = replace(seen, settings=seen.settings.model_copy(update={"broker_url": SecretStr(proxied)}))
        targets = Targets(
            *(servers, servers.keeper, seen, key, threads),
            proxy=proxy,
            broker_proxy=broker_proxy,
            restart_broker=restart_broker,
        )
        stack.callback(targets.messages.close)
        names = [f"w{number}" for number in range(1, instances + 1)]
        stack.callback(_stop, servers.keeper, names)
        targets.start(names)
        yield targets


def can_be_cut(broker_url: str) -> bool:
    """Whether a network of ours can stand before a broker: a RabbitMQ whose certificate nobody has to verify."""
    return broker_url.startswith("amqp://")


@contextmanager
def _between_broker(broker_url: str) -> Iterator[tuple[TcpProxy, str]]:
    """Stand between the instances and their broker; yield the network, and the address that they are given."""
    url = urlsplit(broker_url)
    user, at, _ = url.netloc.rpartition("@")
    with TcpProxy(url.hostname or "127.0.0.1", url.port or AMQP_PORT) as proxy:
        yield proxy, url._replace(netloc=f"{user}{at}127.0.0.1:{proxy.port}").geturl()


def _stop(keeper: Keeper, names: list[str]) -> None:
    with suppress(BankrunError):  # those that never ran, or have ended
        keeper.stop(names, grace_seconds=2)


def faketime_library() -> Path | None:
    """Return the library that gives a process another time of day, if it is installed (Debian: libfaketime)."""
    if sys.platform != "linux":
        return None
    found = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None
