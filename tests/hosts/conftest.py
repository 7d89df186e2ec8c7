"""Five hosts for all tests here: two with servers, the lab, and two with workers, which reach the two servers only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.hosts import network, servers
from tests.hosts.network import PLACE, Host, python
from tests.hosts.servers import Passwords, Postgres
from tests.waiting import wait_until

THREE = (("worker-1", "worker-1"), ("worker-1", "worker-1b"), ("worker-2", "worker-2"))
"""Three instances on two hosts: each its host, and what it is called."""
REDELIVERIES = "SELECT sum(redeliveries) FROM bankrun.transfers"
"""How often a transfer was delivered again that had no outcome yet."""
READY_SECONDS = 120
STOP_SECONDS_MAX = 120
LAB_SECONDS = 400


def why_not() -> str | None:
    """Return why these tests cannot run here, or None if they can."""
    if os.environ.get("PRIVATE_NETWORK") != "yes":
        return os.environ.get("NO_PRIVATE_NETWORK") or "they need a network of their own: run make test-hosts"
    if servers.find_postgres() is None:
        return servers.NO_POSTGRES
    if servers.find_broker() is None:
        return servers.NO_BROKER
    return None


@dataclass
class Worker:
    """An instance on one of the hosts: started, stopped with SIGTERM, and started again, as a Deployment does it."""

    host: Host
    name: str
    settings: dict[str, str]
    process: subprocess.Popen[str] | None = None

    @property
    def heartbeat(self) -> Path:
        """The file that it touches while it listens: what a readiness probe looks at."""
        return PLACE / f"{self.name}.alive"

    @property
    def log(self) -> Path:
        """What it said."""
        return PLACE / f"{self.name}.log"

    def start(self) -> None:
        """Start it."""
        self.heartbeat.unlink(missing_ok=True)
        env = {**self.settings, "BANKRUN_HEARTBEAT_FILE": str(self.heartbeat)}
        if self.name != self.host.name:  # else it is called by its host
            env["BANKRUN_INSTANCE"] = self.name
        self.process = self.host.start(*python("-m", "bankrun", "worker"), env=env, log=self.log)

    def wait_until_ready(self) -> None:
        """Wait until it listens."""
        assert self.process is not None
        assert wait_until(lambda: self.heartbeat.exists() or self.process.poll() is not None, READY_SECONDS)
        assert self.process.poll() is None, self.log.read_text()

    def stop(self) -> float:
        """End it with SIGTERM, in good order; return how many seconds that took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_SECONDS_MAX) == 0, self.log.read_text()
        self.host.processes.remove(self.process)
        return time.monotonic() - began


@dataclass
class Hosts:
    """What is there: the hosts by name, and the servers on two of them."""

    by_name: dict[str, Host]
    passwords: Passwords
    postgres: Postgres
    logs: list[Path] = field(default_factory=list)

    def __getitem__(self, name: str) -> Host:
        return self.by_name[name]

    @property
    def lab_settings(self) -> dict[str, str]:
        """The environment of the lab's host."""
        return {**self.passwords.settings("lab"), "BANKRUN_STATE_DIR": str(PLACE / "state")}

    def bankrun(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the lab's host."""
        command = python("-m", "bankrun", *words)
        return self["lab"].run(*command, env=self.lab_settings | settings, seconds=LAB_SECONDS)

    def script(self, name: str, *words: str) -> tuple[str, ...]:
        """Return the command line of one of the scripts."""
        return python(str(network.ROOT / "scripts" / name), *words)

    def trigger(self, *words: str) -> subprocess.Popen[str]:
        """Start scripts/trigger.py on the lab's host. What it says goes to a file."""
        log = PLACE / f"trigger-{len(self.logs)}.log"
        self.logs.append(log)
        return self["lab"].start(*self.script("trigger.py", *words), env=self.lab_settings, log=log)

    def end_of(self, trigger: subprocess.Popen[str]) -> str:
        """Wait until the latest one is done; return what it said."""
        code = trigger.wait(LAB_SECONDS)
        self["lab"].processes.remove(trigger)
        said = self.logs[-1].read_text()
        assert code == 0, said
        return said

    def wait_for_the_middle(self, total: int) -> None:
        """Wait until some of the transfers are done, and most are not."""
        assert wait_until(lambda: 0 < self.postgres.pending < total - 300, READY_SECONDS)
        assert self.postgres.pending > total // 3, "what is to happen now comes too late to meet anything"

    @contextmanager
    def workers(self, places: Sequence[tuple[str, str]], **settings: str) -> Iterator[dict[str, Worker]]:
        """Run workers for the block: each a host and a name. All of them listen when it begins."""
        env = self.passwords.settings("worker") | settings
        running = {name: Worker(self[host], name, env) for host, name in places}
        for worker in running.values():
            worker.start()
        try:
            for worker in running.values():
                worker.wait_until_ready()
            yield running
        finally:
            for worker in running.values():
                worker.host.end()


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """Five hosts on a switch. They end with the block; what is left if it does not end, ends with its network."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"many hosts are not tested: {reason}")
    postgres, broker = servers.find_postgres(), servers.find_broker()
    assert postgres is not None
    assert broker is not None
    PLACE.mkdir()
    by_name = network.connect()
    try:
        servers.make_certificates()
        passwords = Passwords.make()
        servers.start_broker(by_name["broker"], broker, passwords)
        running = Hosts(by_name, passwords, Postgres(by_name["postgres"], postgres, passwords))
        said = running.bankrun("audit").stderr
        if "bankrun needs" in said:
            pytest.skip(f"many hosts are not tested: {said.strip()}")
        yield running
    finally:
        for host in by_name.values():
            host.end()


@pytest.fixture(autouse=True)
def _show_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that has failed, show what the workers and the servers said: nothing is left of it later."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed and PLACE.is_dir():
        for log in sorted(PLACE.glob("*.log")):
            print(f"--- {log.name}", *log.read_text().splitlines()[-15:], sep="\n")  # noqa: T201
