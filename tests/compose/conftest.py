"""One compose stack for all tests here: a project of its own, from the image as it is built now."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

ROOT = Path(__file__).parents[2]


def why_not() -> str | None:
    """Return why these tests cannot run here, or None if they can."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    for words, without in (
        (["version"], "no Docker engine answers"),
        (["compose", "version"], "docker has no compose"),
    ):
        asked = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
        if asked.returncode != 0:
            return f"{without}: {asked.stderr.strip() or 'it does not say why'}"
    return None


@dataclass(frozen=True)
class Compose:
    """A project: what a user types, and what the engine says of it."""

    project: str
    environment: dict[str, str]
    client: docker.DockerClient

    def command(self, *words: str) -> list[str]:
        """Return the command line."""
        return ["docker", "compose", "--project-name", self.project, *words]

    def __call__(self, *words: str, seconds: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(*words),
            cwd=ROOT,
            env=self.environment | extra,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Run it beside the test."""
        return subprocess.Popen(
            self.command(*words),
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def lab(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run something in a lab container."""
        named = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        return self("run", "--rm", "--no-TTY", *named, "lab", *words, seconds=280)

    def containers(self, service: str | None = None, *, all: bool = False) -> list[Container]:  # noqa: A002
        """Return the project's containers, as the engine sees them."""
        labels = [f"com.docker.compose.project={self.project}", "com.docker.compose.oneoff=False"]
        if service is not None:
            labels.append(f"com.docker.compose.service={service}")
        return self.client.containers.list(all=all, filters={"label": labels})

    def sql(self, statement: str) -> str:
        """Ask the stack's own psql."""
        words = [
            "psql",
            "--host=/var/run/postgresql",
            "--username=bankrun",
            "--no-align",
            "--tuples-only",
            f"--command={statement}",
        ]
        code, output = self.containers("postgres")[0].exec_run(words)
        assert code == 0, output
        return output.decode().strip()


@pytest.fixture(scope="session")
def compose() -> Iterator[Compose]:
    """A project that does not exist yet. Whatever has become of it, nothing of it is there afterwards."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"the compose stack is not tested: {reason}")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BANKRUN_", "COMPOSE_"))}
    ports = {f"BANKRUN_{name}_PORT": str(free_port()) for name in ("POSTGRES", "REDIS", "RABBITMQ", "PAGE")}
    client = docker.from_env()
    project = Compose(f"bankrun-test-{secrets.token_hex(4)}", clean | ports, client)
    try:
        yield project
    finally:
        project("--profile", "ports", "down", "--volumes", "--timeout", "5", "--remove-orphans")
        left = project.containers(all=True)
        client.close()
        assert left == []


@pytest.fixture(scope="session")
def stack(compose: Compose) -> Compose:
    """The project, once `docker compose up` has been run for the first time."""
    if not compose.containers("worker"):
        done = compose("up", "--build", "--detach", "worker", seconds=280)
        assert done.returncode == 0, done.stderr
    return compose


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
