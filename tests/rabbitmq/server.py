"""A RabbitMQ of the tests' own: an ordinary process of an ordinary user, on ports of the loopback interface.

python tests/rabbitmq/server.py restart DIRECTORY     # what `bankrun chaos --restart-broker` is given
python tests/rabbitmq/server.py kill DIRECTORY        # the same, without a goodbye
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import amqp
import psutil

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
READY_SECONDS = 90.0
STOP_SECONDS = 60.0
CONTROL_SECONDS = 60.0
NOBODY = 65534
QUIET = "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
"""No scheduler that waits by running, and nodes that only this machine can reach."""


def why_not() -> str | None:
    """Return why no server can be started here, or None if one can."""
    if not SERVER.exists():
        return "RabbitMQ is not installed (Debian: apt install rabbitmq-server)"
    if shutil.which("epmd") is None:
        return "there is no epmd, which RabbitMQ needs"
    return None


class Server:
    """A server that keeps what it has in a directory, its settings too: so that others can restart it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[subprocess.Popen[bytes]] = []

    @classmethod
    def make(cls, directory: Path, settings: Mapping[str, str]) -> Server:
        """Set a server up; ``settings`` go into its configuration."""
        server = cls(directory)
        plan: dict[str, int | str | None] = {
            "port": free_port(),
            "epmd_port": free_port(),
            "dist_port": free_port(),
            "password": secrets.token_hex(8),
            "user": NOBODY if os.geteuid() == 0 else None,
        }
        lines = {
            "listeners.tcp.1": f"127.0.0.1:{plan['port']}",
            "default_user": "bankrun",
            "default_pass": plan["password"],
            "log.console": "true",
            "log.file": "false",
            **settings,
        }
        if shutil.which("openssl"):
            plan["tls_port"] = free_port()
            lines |= make_certificate(directory, int(plan["tls_port"] or 0))
        (directory / "plan.json").write_text(json.dumps(plan))
        (directory / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (directory / "enabled_plugins").write_text("[].\n")
        if plan["user"] is not None:
            for path in (directory, *directory.iterdir()):
                os.chown(path, NOBODY, NOBODY)
        return server

    @property
    def plan(self) -> dict[str, int | str | None]:
        """What was decided when it was set up."""
        found: dict[str, int | str | None] = json.loads((self.directory / "plan.json").read_text())
        return found

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.plan["port"] or 0)

    def url(self, virtual_host: str = "") -> str:
        """Its address, as bankrun takes it."""
        return f"amqp://bankrun:{self.plan['password']}@127.0.0.1:{self.port}/{virtual_host}"

    def environment(self) -> dict[str, str]:
        """What its programs are told."""
        plan, place = self.plan, self.directory
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(place),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(plan["epmd_port"]),
            "RABBITMQ_NODENAME": f"bankrun-{plan['port']}@localhost",
            "RABBITMQ_DIST_PORT": str(plan["dist_port"]),
            "RABBITMQ_CONFIG_FILE": str(place / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(place / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(place / "data"),
            "RABBITMQ_LOG_BASE": str(place / "log"),
            "RABBITMQ_PID_FILE": str(place / "rabbit.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": QUIET,
        }

    def start(self) -> None:
        """Start it, in a session of its own, and wait until it serves."""
        user = self.plan["user"]
        words = {"user": int(user), "group": int(user), "extra_groups": []} if user is not None else {}
        common = {
            "cwd": self.directory,
            "env": self.environment(),
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            "start_new_session": True,
            **words,
        }
        with (self.directory / "server.log").open("ab") as log:
            if not self._runs("epmd"):  # our own, in the foreground: who starts it can end it
                epmd = ["epmd", "-address", "127.0.0.1", "-port", str(self.plan["epmd_port"])]
                self._note("epmd", subprocess.Popen(epmd, stdout=log, **common))  # type: ignore[call-overload]
            self._note("server", subprocess.Popen([str(SERVER)], stdout=log, **common))  # type: ignore[call-overload]
        deadline = time.monotonic() + READY_SECONDS
        while not self.serves():
            said = (self.directory / "server.log").read_text(errors="replace")[-2_000:]
            assert self._runs("server"), f"RabbitMQ ended: {said}"
            assert time.monotonic() < deadline, f"RabbitMQ does not serve: {said}"
            time.sleep(0.1)

    def serves(self) -> bool:
        """Whether it lets us in."""
        try:
            with amqp.Connection(
                f"127.0.0.1:{self.port}", "bankrun", str(self.plan["password"]), connect_timeout=5
            ) as connection:
                return bool(connection.connected)
        except (OSError, amqp.AMQPError):
            return False

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End it, and wait until it has ended; what it has written stays."""
        self._end("server", signum)

    def end(self) -> None:
        """End all of it."""
        self._end("server", signal.SIGKILL)
        self._end("epmd", signal.SIGKILL)

    def restart(self, signum: int = signal.SIGTERM) -> None:
        """End it and start it again."""
        self.stop(signum)
        self.start()

    def control(self, *words: str) -> None:
        """Run rabbitmqctl."""
        user = self.plan["user"]
        subprocess.run(
            [str(SERVER.with_name("rabbitmqctl")), *words],
            cwd=self.directory,
            env=self.environment() | {"ERL_MAX_PORTS": "1024"},
            check=True,
            capture_output=True,
            timeout=CONTROL_SECONDS,
            user=None if user is None else int(user),
            group=None if user is None else int(user),
            extra_groups=None if user is None else [],
        )

    def restart_command(self, how: str = "restart") -> list[str]:
        """Return the command that does that."""
        return [sys.executable, str(Path(__file__)), how, str(self.directory)]

    # Processes are known by their ids and when they began: another one may restart what this one has started.

    def _note(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self._started.append(process)
        began = psutil.Process(process.pid).create_time()
        (self.directory / f"{name}.process").write_text(json.dumps([process.pid, began]))

    def _processes(self, name: str) -> list[psutil.Process]:
        """Return the process that was started, and those that it has started."""
        try:
            pid, began = json.loads((self.directory / f"{name}.process").read_text())
            process = psutil.Process(pid)
            if process.create_time() != began or process.status() == psutil.STATUS_ZOMBIE:
                return []
            return [*process.children(recursive=True), process]
        except (FileNotFoundError, psutil.NoSuchProcess):
            return []

    def _runs(self, name: str) -> bool:
        return bool(self._processes(name))

    def _end(self, name: str, signum: int) -> None:
        processes = self._processes(name)
        # The server's script waits for Erlang, which is told itself.
        told = [one for one in processes if one.name().startswith("beam")] or processes
        for process in told if signum == signal.SIGTERM else processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
        deadline = time.monotonic() + STOP_SECONDS
        while left := [one for one in processes if is_alive(one)]:
            if time.monotonic() > deadline:
                for process in left:
                    process.kill()
            time.sleep(0.05)
        self._started = [one for one in self._started if one.poll() is None]


def make_certificate(directory: Path, port: int) -> dict[str, str]:
    """Make a certificate for `localhost` that is its own authority; return the settings for a listener with it."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *files], check=True, capture_output=True)
    return {
        "listeners.ssl.1": f"127.0.0.1:{port}",
        "ssl_options.cacertfile": str(certificate),
        "ssl_options.certfile": str(certificate),
        "ssl_options.keyfile": str(key),
        "ssl_options.verify": "verify_none",
    }


@contextmanager
def running_server(directory: Path, **settings: str) -> Iterator[Server]:
    """Run a server for the block; underscores in the names of its settings are dots."""
    server = Server.make(directory, {name.replace("__", "."): value for name, value in settings.items()})
    try:
        server.start()
        yield server
    finally:
        server.end()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs: a zombie is its parent's business, and that may be another process than this one."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    how, where = sys.argv[1:]
    Server(Path(where)).restart(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    os._exit(0)  # what was started goes on
