"""Postgres and a broker that speak TLS, set up with the files in deploy/hosts/ as they are."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bankrun.servers.binaries import find_binaries
from tests.hosts.network import PLACE, ROOT, Host, environment, python
from tests.waiting import wait_until

FILES = ROOT / "deploy" / "hosts"
CERTIFICATES = PLACE / "certificates"
READY_SECONDS = 60
SERVER_USER = "nobody"
AS_SERVER = ("setpriv", f"--reuid={SERVER_USER}", "--regid=nogroup", "--clear-groups")
DISTRIBUTIONS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")
NO_POSTGRES = (
    "there is no Postgres with TLS: the one from the wheel has none. "
    "Install Debian's postgresql, or name a directory with POSTGRES_BIN"
)
NO_BROKER = "there is no redis-server with TLS: the Valkey from the wheel has none. Install Debian's redis-tools"


def find_postgres() -> Path | None:
    """Return the directory of the newest Postgres on this machine that speaks TLS."""
    given = os.environ.get("POSTGRES_BIN")
    places = [Path(given)] if given else [path for pattern in DISTRIBUTIONS for path in Path("/").glob(pattern[1:])]
    return max((place for place in places if speaks_tls(place / "postgres")), key=version_of, default=None)


def version_of(place: Path) -> int:
    """Return a Postgres' major version."""
    said = subprocess.run([place / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+", said)
    assert found is not None, said
    return int(found[0])


def find_broker() -> Path | None:
    """Return a Redis that speaks TLS. Debian's program is in redis-tools, by another name; redis-server is a link."""
    for name in ("valkey-server", "redis-server", "redis-check-rdb"):
        found = shutil.which(name)
        if found is not None and speaks_tls(Path(found)):
            return Path(found)
    return None


def speaks_tls(program: Path) -> bool:
    """Whether a program is linked with OpenSSL."""
    if not program.is_file():
        return False
    return "libssl" in subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout


def fill_in(name: str, secrets_by_word: Mapping[str, str]) -> str:
    """Return a file of deploy/hosts/ with our passwords, and our place of the authority's certificate."""
    text = (FILES / name).read_text().replace("/etc/bankrun/", f"{CERTIFICATES}/")
    for word, secret in secrets_by_word.items():
        text = text.replace(word, secret)
    return text


@dataclass(frozen=True)
class Passwords:
    """What is made up for this run."""

    lab: str
    worker: str
    broker: str

    @classmethod
    def make(cls) -> Passwords:
        """Make them up."""
        return cls(*(secrets.token_urlsafe(18) for _ in range(3)))

    @property
    def by_word(self) -> dict[str, str]:
        """The words that stand for them in deploy/hosts/."""
        return {"LAB_PASSWORD": self.lab, "WORKER_PASSWORD": self.worker, "BROKER_PASSWORD": self.broker}

    def settings(self, who: str) -> dict[str, str]:
        """Return the environment of the lab's or of a worker's host."""
        words = shlex.split(fill_in(f"{who}.env", self.by_word))  # as a shell reads it
        return dict(word.split("=", 1) for word in words)


def make_certificates(directory: Path = CERTIFICATES) -> None:
    """Make an authority, and a certificate for each server."""
    directory.mkdir()
    made = subprocess.run([FILES / "certificates.sh"], cwd=directory, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def place_for(host: Host) -> Path:
    """Make a server's directory with its certificate and its key. The servers' user owns it, and nobody else reads."""
    directory = PLACE / host.name
    directory.mkdir(mode=0o700)
    for name in (f"{host.name}.pem", f"{host.name}.key", "ca.pem"):
        shutil.copy(CERTIFICATES / name, directory)
    hand_over(directory)
    return directory


def hand_over(directory: Path) -> None:
    """Give a directory and the files in it to the servers' user."""
    for path in (directory, *directory.iterdir()):
        shutil.chown(path, SERVER_USER, "nogroup")


class Postgres:
    """A Postgres on a host, and the way in that its administrator has: the socket, which no network reaches."""

    def __init__(self, host: Host, binaries: Path, passwords: Passwords) -> None:
        place = place_for(host)
        data = place / "data"
        init = [binaries / "initdb", "-U", "root", "-A", "peer", "-E", "UTF8", "--no-locale", "--no-sync", "-D", data]
        done = host.run(*AS_SERVER, *map(str, init), env={"LC_ALL": "C"})
        assert done.returncode == 0, done.stderr
        for name in ("postgres.pem", "postgres.key"):
            (place / name).rename(data / name)
        # The parallel workers' memory is in files of their own there: /dev/shm is the machine's.
        ours = f"unix_socket_directories = '{place}'\ndynamic_shared_memory_type = mmap\n"
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(ours + (FILES / "postgresql.conf").read_text())
        (data / "pg_hba.conf").write_text((FILES / "pg_hba.conf").read_text())
        self._place = place
        self.log = PLACE / "postgres.log"
        self.process = host.start(*AS_SERVER, str(binaries / "postgres"), "-D", str(data), log=self.log)
        assert wait_until(self._answers, READY_SECONDS), self.log.read_text()
        psql = [str(find_binaries().postgres / "bin" / "psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1"]
        psql += [f"--host={place}", "--username=root", "--dbname=postgres", f"--file={FILES / 'roles.sql'}"]
        psql += [f"--set=lab_password={passwords.lab}", f"--set=worker_password={passwords.worker}"]
        done = subprocess.run(psql, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.ask("SELECT 1", database="postgres")
        except psycopg.OperationalError:
            return False
        return True

    def ask(self, question: str, database: str = "bankrun") -> int:
        """Return the number that a query gives."""
        with psycopg.connect(host=str(self._place), user="root", dbname=database, autocommit=True) as connection:
            row = connection.execute(question.encode()).fetchone()
        assert row is not None
        return int(row[0] or 0)

    @property
    def pending(self) -> int:
        """How many transfers have no outcome yet."""
        try:
            return self.ask("SELECT count(*) FROM bankrun.transfers WHERE status = 'pending'")
        except psycopg.errors.UndefinedTable:  # nobody has opened a bank so far
            return 0


def start_broker(host: Host, program: Path, passwords: Passwords) -> Path:
    """Start a Redis on a host, and return its log once it answers there."""
    place = place_for(host)
    for name in ("redis.conf", "users.acl"):
        (place / name).write_text(fill_in(name, passwords.by_word))
    server = PLACE / "redis-server"  # what it is called says what it does
    server.symlink_to(program)
    hand_over(place)
    log = PLACE / "broker.log"
    process = host.start(*AS_SERVER, "sh", "-c", f"cd {place} && exec {server} redis.conf", log=log)
    connect = f"import socket; socket.create_connection(({host.address!r}, 6379), 5)"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        return host.run(*python("-c", connect)).returncode == 0

    assert wait_until(answers, READY_SECONDS), log.read_text()
    return log
