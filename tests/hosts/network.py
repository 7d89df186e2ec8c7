"""Hosts of our own: network namespaces on one switch, in a network that is private to this run.

``tools/private-network`` has made that one. Nothing here is on the machine's own network, and nothing outlives the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = Path("/run/hosts")
"""In a file system of this run alone."""
SWITCH = "switch"
DOMAIN = "bank.test"
ADDRESSES = {
    "postgres": "10.83.19.11",  # as deploy/hosts/ has them
    "broker": "10.83.19.12",
    "lab": "10.83.19.20",
    "worker-1": "10.83.19.21",
    "worker-2": "10.83.19.22",
}
SERVERS = ("postgres", "broker")
"""All others reach these two, and not each other."""
END_SECONDS = 60


def ip(*words: str) -> None:
    """Change a network. Raises CalledProcessError, with what ip said, if that is not possible."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"


@dataclass
class Host:
    """One of them: its processes have a network and a host name of their own, and share the machine's files."""

    name: str
    address: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def fqdn(self) -> str:
        """The name by which the others know it."""
        return f"{self.name}.{DOMAIN}"

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs a command there. What it execs has the pid of what is started."""
        rename = ["unshare", "--uts", "sh", "-c", 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.name, *rename, *words]

    def run(
        self, *words: str, env: Mapping[str, str] | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words),
            env=environment(env),
            cwd=PLACE,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *words: str, env: Mapping[str, str] | None = None, log: Path) -> subprocess.Popen[str]:
        """Start a process that stays. What it says goes to the end of a file."""
        with log.open("a") as output:
            process = subprocess.Popen(
                self.command(*words),
                env=environment(env),
                cwd=PLACE,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
            )
        self.processes.append(process)
        return process

    def cut(self) -> None:
        """Take its cable out. Nobody is told: what is on its way is lost, and connections stay as they are."""
        ip("-netns", SWITCH, "link", "set", self.name, "down")

    def mend(self) -> None:
        """Put its cable in again."""
        ip("-netns", SWITCH, "link", "set", self.name, "up")

    def vanish(self) -> None:
        """Be gone for good, without a word to the others: the cable first, so that no connection is closed."""
        self.cut()
        self.end()
        ip("-netns", SWITCH, "link", "delete", self.name)
        ip("netns", "delete", self.name)

    def end(self) -> None:
        """Kill what still runs there."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(END_SECONDS)
        self.processes.clear()


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which nothing is set that would reach a server of somebody else's."""
    foreign = ("BANKRUN_", "PG", "CELERY_", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "COLUMNS": "120", **(more or {})}


def python(*words: str) -> tuple[str, ...]:
    """Return the command line of our interpreter, as `make` calls it."""
    return (sys.executable, "-P", *words)


def add(host: Host) -> None:
    """Make a host, and connect it to the switch."""
    ip("netns", "add", host.name)
    ip("-netns", SWITCH, "link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    ip("-netns", SWITCH, "link", "set", host.name, "master", "ports", "up")
    if host.name not in SERVERS:
        ip("-netns", SWITCH, "link", "set", host.name, "type", "bridge_slave", "isolated", "on")
    ip("-netns", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    ip("-netns", host.name, "link", "set", "eth0", "up")
    ip("-netns", host.name, "link", "set", "lo", "up")


def connect() -> dict[str, Host]:
    """Make the switch and the hosts, and let all of them know each other's names.

    A port that is isolated passes nothing on to another one that is, so the hosts that are no servers reach the servers
    and nothing else. There is no way out: no host has a route, and the switch is connected to nothing.
    """
    ip("netns", "add", SWITCH)
    ip("-netns", SWITCH, "link", "add", "ports", "type", "bridge")
    ip("-netns", SWITCH, "link", "set", "ports", "up")
    hosts = {name: Host(name, address) for name, address in ADDRESSES.items()}
    for host in hosts.values():
        add(host)
    known = PLACE / "etc-hosts"
    lines = ["127.0.0.1 localhost", *(f"{host.address} {host.fqdn}" for host in hosts.values())]
    known.write_text("\n".join(lines) + "\n")
    # In this run's own mounts: the machine's file stays as it is.
    subprocess.run(["mount", "--bind", str(known), "/etc/hosts"], check=True)
    return hosts
