"""Worker instances: start them, find those that run, and choose which of them take part."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError

from bank import outside
from bank.errors import BankError, CannotStart, NotReady
from bank.settings import without_password
from workers.app import QUEUE
from workers.broker.brokers import broker_at
from workers.control.failpoints import Failpoint
from workers.process.meter import Readings

NODE = "bankrun"
REPLY_SECONDS = 5.0
LOAD_SECONDS = 25.0  # more than an instance gives a strategy to be imported and opened
READY_SECONDS = 60.0
STOP_SECONDS = 10.0


class ProcessHost(Protocol):
    """The owner of the worker processes of a fleet that was started here."""

    def spawn(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> int:
        """Start a process and return its pid."""

    def returncode(self, name: str) -> int | None:
        """Return how a process ended, or None while it runs."""

    def signal(self, name: str, signum: int) -> None:
        """Send a signal to a process."""

    def stop(self, names: Sequence[str], *, grace_seconds: float) -> None:
        """End processes with SIGTERM, and with SIGKILL after ``grace_seconds``."""


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """What a running instance says of itself. ``host`` is where its file locks are shared, ``core`` its only one."""

    node: str
    instance: str
    pid: int
    threads: int
    host: str
    hostname: str
    python: str
    gil: bool
    bank: str | None
    core: int | None = None


def worker_command(name: str, threads: int) -> list[str]:
    """Return the command line of one instance.

    ``-P`` keeps the working directory off the import path: a user's own ``bank/`` or ``workers/`` is not ours. With
    ``PYTHONWARNINGS=error`` in that user's environment, Celery's advice to root would end it: ``-W ignore``.
    """
    return [
        *(sys.executable, "-P", "-W", "ignore", "-m", "celery", "-A", "workers.app", "worker"),
        *("--pool", "threads", "--concurrency", str(threads), "--hostname", f"{name}@{NODE}"),
        *("--queues", f"parking.{name},{QUEUE}", "--loglevel", "WARNING"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def instance_environment(name: str, cores: Mapping[str, int]) -> dict[str, str]:
    """Return what tells a process which instance it is, and which core it stays on."""
    return {"BANKRUN_INSTANCE": name, **({"BANKRUN_CORE": str(cores[name])} if name in cores else {})}


def start_instances(
    processes: ProcessHost,
    names: Sequence[str],
    *,
    threads: int,
    env: Mapping[str, str],
    state_dir: Path,
    cores: Mapping[str, int],
) -> None:
    """Start instances as processes of this machine; ``Fleet.wait_until_ready`` tells when they are up.

    Those that are in ``cores`` stay on theirs.
    """
    (state_dir / "logs").mkdir(exist_ok=True)
    for name in names:
        processes.spawn(
            name,
            worker_command(name, threads),
            env={**env, **instance_environment(name, cores), "BANKRUN_THREADS": str(threads)},
            cwd=state_dir,
            log=state_dir / "logs" / f"{name}.log",
        )


class Fleet:
    """The instances that answer on a broker. Its methods raise CannotStart if the broker does not answer."""

    def __init__(self, app: Celery, broker_url: str) -> None:
        self._app = app
        self._broker = broker_at(broker_url)
        self._place = f"{self._broker.name} at {without_password(broker_url)}"

    def check_broker(self) -> None:
        """Raise CannotStart, in one sentence, unless the broker can be used; NotReady if it may only be starting."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=5)
                self._broker.check(connection.default_channel)
        except Exception as error:  # the transport's errors have no common base but this one
            refusal = self._find_refusal(error)
            if refusal is not None:
                raise CannotStart(f"cannot use {self._place}: {_why(refusal)}") from error
            raise NotReady(f"no {self._place}: {_why(error)}") from error

    def discover(self, expected: int | None = None, timeout_seconds: float = 1.0) -> list[InstanceInfo]:
        """Return the instances that answer in time, by name; at once if ``expected`` of them have."""
        replies = self._ask("bankrun_describe", timeout_seconds=timeout_seconds, limit=expected)
        return sorted(
            (InstanceInfo(node=node, **said) for node, said in replies.items()), key=lambda info: info.instance
        )

    def is_running(self, name: str, timeout_seconds: float = 1.0) -> bool:
        """Whether an instance of this name answers in time."""
        return bool(self._ask("ping", nodes=[f"{name}@{NODE}"], timeout_seconds=timeout_seconds, limit=1))

    def wait_until_ready(
        self, names: Collection[str], processes: ProcessHost, state_dir: Path, check_processes: Callable[[], None]
    ) -> list[InstanceInfo]:
        """Wait until the started instances answer. Raises BankError if one ends, or does not answer in time.

        ``check_processes`` raises that if something that they need has ended.
        """
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            found = [info for info in self.discover(len(names), timeout_seconds=0.5) if info.instance in names]
            if len(found) == len(names):
                return found
            for name in names:
                code = processes.returncode(name)
                if code is not None:
                    log = state_dir / "logs" / f"{name}.log"
                    raise BankError(f"worker {name} ended with code {code} before it was ready: {last_line(log)}")
            check_processes()
        raise BankError(
            f"after {READY_SECONDS:g} s, {len(found)} of {len(names)} workers are ready; see {state_dir / 'logs'}"
        )

    def join(self, queue: str, instances: Sequence[InstanceInfo]) -> None:
        """Let exactly these instances consume a queue, from now on. Raises BankError if one does not answer."""
        destination = [info.node for info in instances]
        replies = self._app.control.add_consumer(queue, destination=destination, reply=True, timeout=REPLY_SECONDS)
        answering = {node for reply in replies or [] for node, said in reply.items() if "ok" in said}
        silent = [info.instance for info in instances if info.node not in answering]
        if silent:
            raise BankError(f"no answer from {', '.join(silent)} within {REPLY_SECONDS:g} s")

    def call(self, queue: str, instances: Sequence[InstanceInfo]) -> None:
        """Tell instances to consume a queue, and wait for no answer: they may end, or stop, before they gave one."""
        self._app.control.add_consumer(queue, destination=[info.node for info in instances])

    def join_again(self, queue: str, instances: Sequence[InstanceInfo], timeout_seconds: float) -> set[str]:
        """Let those of them consume a queue that have been started again meanwhile; return the names that answer."""
        replies = self._app.control.add_consumer(
            queue, destination=[info.node for info in instances], reply=True, timeout=timeout_seconds
        )
        return {node.partition("@")[0] for reply in replies or [] for node in reply}

    def leave(self, queue: str, instances: Sequence[InstanceInfo]) -> None:
        """Stop instances consuming a queue, and remove it with what is left in it."""
        destination = [info.node for info in instances]
        if destination:  # none would be all
            self._app.control.cancel_consumer(queue, destination=destination, reply=True, timeout=REPLY_SECONDS)
        with self._app.connection_for_write() as connection:
            connection.default_channel.queue_delete(queue)

    def arm(self, info: InstanceInfo, key: str, failpoint: Failpoint) -> None:
        """Arm a failpoint in an instance that was started with this key.

        Its answer is not waited for: it may have ended before it could give one.
        """
        arguments = {"key": key, "failpoint": asdict(failpoint)}
        self._app.control.broadcast("bankrun_arm", arguments=arguments, destination=[info.node])

    def disarm(self, info: InstanceInfo, key: str) -> None:
        """Disarm what is armed in an instance. Raises BankError if it refuses, or does not answer."""
        replies = self._app.control.broadcast(
            "bankrun_arm",
            arguments={"key": key},
            destination=[info.node],
            reply=True,
            timeout=REPLY_SECONDS,
            limit=1,
        )
        said = (replies or [{}])[0].get(info.node, {"error": f"no answer within {REPLY_SECONDS:g} s"})
        if "ok" not in said:
            raise BankError(f"{info.instance}: {said['error']}")

    def queue_length(self, queue: str) -> int:
        """Return how many messages wait in a queue. Those that an instance has taken already are not among them."""
        return self._broker.queue_length(self._app, queue)

    def check_strategy(self, strategy: str, instances: Sequence[InstanceInfo]) -> None:
        """Let every instance load a strategy. Raises CannotStart, in one sentence, if one of them cannot use it."""
        replies = self._ask(
            "bankrun_refusal",
            {"strategy": strategy},
            [info.node for info in instances],
            timeout_seconds=LOAD_SECONDS,
            limit=len(instances),
        )
        for info in instances:
            if info.node not in replies:
                raise BankError(f"no answer from {info.instance} within {LOAD_SECONDS:g} s: it was to load {strategy}")
            if replies[info.node]["refusal"] is not None:
                raise CannotStart(f"{info.instance}: {replies[info.node]['refusal']}")
            if replies[info.node]["fingerprint"] != outside.fingerprint(strategy):
                raise CannotStart(
                    f"{info.instance} has loaded another file for {strategy} than the one that is here now: "
                    "restart it, as with docker compose restart worker"
                )

    def renew_sessions(self, instances: Sequence[InstanceInfo]) -> None:
        """Let every instance close its idle sessions. Raises BankError if one does not answer."""
        nodes = [info.node for info in instances]
        replies = self._ask("bankrun_renew", nodes=nodes, timeout_seconds=REPLY_SECONDS, limit=len(nodes))
        silent = [info.instance for info in instances if info.node not in replies]
        if silent:
            raise BankError(
                f"no answer from {', '.join(silent)} within {REPLY_SECONDS:g} s: sessions were to be renewed"
            )

    def find_stuck(self, instances: Sequence[InstanceInfo]) -> dict[str, list[str]]:
        """Return, by instance, where transfers stand that do not come to an end."""
        nodes = [info.node for info in instances]
        replies = self._ask("bankrun_standing", nodes=nodes, timeout_seconds=REPLY_SECONDS, limit=len(nodes))
        return {node.partition("@")[0]: said["places"] for node, said in replies.items() if said["places"]}

    def read_meters(self, run: str, instances: Sequence[InstanceInfo]) -> Readings:
        """Return what a run cost in all instances together. One that does not answer is missing from it."""
        readings = Readings()
        for node, said in self._ask(
            "bankrun_read_meter", {"run": run}, [info.node for info in instances], timeout_seconds=REPLY_SECONDS
        ).items():
            if said.get("reading") is not None:
                readings.add(node.partition("@")[0], said["reading"])
        return readings

    def pause(self, node: str, key: str, seconds: float) -> None:
        """Have an instance stop for so long. Raises BankError if it does not answer, or refuses."""
        self._tell(node, "bankrun_pause", {"key": key, "seconds": seconds})

    def kill(self, node: str, key: str) -> None:
        """Have an instance end with SIGKILL. Raises BankError if it does not answer, or refuses."""
        self._tell(node, "bankrun_kill", {"key": key})

    def _find_refusal(self, error: BaseException | None) -> BaseException | None:
        """Return what the broker answered, if it has refused us: waiting would not help."""
        while error is not None and not isinstance(error, self._broker.refusals):
            error = error.__cause__
        return error

    def _tell(self, node: str, command: str, arguments: dict[str, Any]) -> None:
        try:
            replies = self._app.control.broadcast(
                command, arguments=arguments, destination=[node], reply=True, timeout=REPLY_SECONDS, limit=1
            )
        except (BrokerError, AMQPError, OSError) as error:
            raise BankError(f"no {self._place}: {_why(error)}") from error
        said = next((reply[node] for reply in replies or [] if node in reply), None)
        if said is None:
            raise BankError(f"{node.partition('@')[0]} does not answer: it may be paused, or gone")
        if "error" in said:
            raise BankError(f"{node.partition('@')[0]}: {said['error']}")

    def _ask(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        nodes: Sequence[str] | None = None,
        *,
        timeout_seconds: float,
        limit: int | None = None,
    ) -> dict[str, dict[str, Any]]:
        try:
            replies = self._app.control.broadcast(
                command, arguments=arguments, destination=nodes, reply=True, timeout=timeout_seconds, limit=limit
            )
        except (BrokerError, AMQPError, OSError) as error:
            raise BankError(f"no {self._place}: {_why(error)}") from error
        return {
            node: said
            for reply in replies or []
            for node, said in reply.items()
            if node.endswith(f"@{NODE}") and "error" not in said
        }


def _why(error: BaseException) -> str:
    said = str(getattr(error, "reply_text", None) or error)  # AMQP's errors say numbers, too
    return said.strip().partition("\n")[0] or type(error).__name__


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no log"
    return lines[-1] if lines else "its log is empty"
