"""Disks, directories, servers and roles that will not do: one sentence, exit code 2, and nothing is changed."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from bank.postgres.database import Database, psql_url
from bank.postgres.schema import bank_id, create_schema, open_for_lab
from bankrun.servers.embedded import Endpoints
from bankrun.servers.keeper_client import Keeper
from tests.acceptance.conftest import Bankrun, command, environment, processes_of
from tests.places import make_place

AS_ROOT = os.geteuid() == 0
SMALL = ("compare", "--strategy", "row-lock", "--topology", "1x1", "--transfers", "5", "--warmup", "0")


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence of a run that did not start."""
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr + done.stdout
    assert done.stderr.startswith("bankrun: ")
    return done.stderr


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the servers' user can reach."""
    path = make_place("place")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    """A file system of its own, too small for the embedded servers."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0755", "none", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


# ---- disks and directories


def test_a_full_disk_is_named(bankrun: Bankrun, disk: Path) -> None:
    state = disk / "state"
    said = sentence(bankrun(*SMALL, BANKRUN_STATE_DIR=str(state)))
    assert "No space left on device" in said or "no space is left on the disk" in said
    assert str(state) in said
    assert processes_of(state) == []


def test_a_limit_that_stops_the_database_from_being_made_is_named(place: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(*SMALL),
        cwd=tmp_path,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)),
    )
    assert "File too large" in sentence(done)
    assert not (place / "postgres").exists()
    assert processes_of(place) == []


def test_a_read_only_file_system_is_named(bankrun: Bankrun, disk: Path, tmp_path: Path) -> None:
    (disk / "before").mkdir(mode=0o755)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for state in (disk / "new", disk / "before"):
        said = sentence(bankrun(*SMALL, BANKRUN_STATE_DIR=str(state)))
        assert f"cannot use {state} as the state directory: Read-only file system" in said
    assert "Read-only file system" in sentence(bankrun(*SMALL, "--export-json", str(disk / "result.json")))


@pytest.mark.skipif(AS_ROOT, reason="root writes where it likes")
@pytest.mark.parametrize("closed", ["state", "state/logs"])
def test_a_directory_that_cannot_be_written_is_named(
    bankrun: Bankrun, place: Path, tmp_path: Path, closed: str
) -> None:
    (place / "state" / "logs").mkdir(parents=True)
    (place / closed).chmod(0o555)
    try:
        assert "cannot use" in sentence(bankrun(*SMALL, BANKRUN_STATE_DIR=str(place / "state")))
        assert "cannot write" in sentence(bankrun(*SMALL, "--export-json", str(place / closed / "result.json")))
    finally:
        (place / closed).chmod(0o755)


# ---- roles and schemas


Given = tuple[psycopg.Connection[tuple[object, ...]], Database, dict[str, str]]


@pytest.fixture
def given(stack: tuple[Keeper, Endpoints], database: Database) -> Iterator[Given]:
    """A database of its own: the superuser's session, the superuser's access, and a powerless role's settings."""
    _, endpoints = stack
    url = make_url(database.url).set(database="given")
    powerless = {
        "BANKRUN_DATABASE_URL": psql_url(url.set(username="powerless").render_as_string(hide_password=False)),
        "BANKRUN_BROKER_URL": endpoints.broker_url,
    }
    with psycopg.connect(psql_url(database.url), autocommit=True) as server:
        server.execute("CREATE DATABASE given")
        server.execute("CREATE ROLE powerless LOGIN")
        owner = open_for_lab(url.render_as_string(hide_password=False))
        try:
            with psycopg.connect(psql_url(owner.url), autocommit=True) as superuser:
                yield superuser, owner, powerless
        finally:
            owner.close()
            server.execute("DROP DATABASE given WITH (FORCE)")
            server.execute("DROP ROLE powerless")


def test_a_role_that_may_not_make_the_schema_is_told_what_to_grant(bankrun: Bankrun, given: Given) -> None:
    _, owner, powerless = given
    assert "GRANT CREATE ON DATABASE given TO powerless" in sentence(bankrun(*SMALL, **powerless))
    assert bank_id(owner) is None


def test_a_role_without_rights_on_the_bank_is_told_so(bankrun: Bankrun, given: Given) -> None:
    _, owner, powerless = given
    create_schema(owner)
    assert "belongs to the role bankrun, and powerless is no member" in sentence(bankrun(*SMALL, **powerless))
    assert "the role powerless lacks USAGE on schema bankrun, SELECT on" in sentence(bankrun("audit", **powerless))
    assert "workers log in as powerless, which lacks" in sentence(bankrun("worker", **powerless))


def test_a_schema_that_is_not_ours_is_left_alone(bankrun: Bankrun, given: Given) -> None:
    superuser, _, powerless = given
    superuser.execute("CREATE SCHEMA bankrun AUTHORIZATION powerless")
    for words in (SMALL, ("worker",)):
        assert "holds a schema 'bankrun' that bankrun did not make" in sentence(bankrun(*words, **powerless))
    superuser.execute("DROP SCHEMA bankrun")  # which fails unless it is empty


def test_a_role_that_may_not_connect_is_told_so_at_once(bankrun: Bankrun, given: Given) -> None:
    superuser, _, powerless = given
    superuser.execute("REVOKE CONNECT ON DATABASE given FROM PUBLIC")
    assert 'permission denied for database "given"' in sentence(bankrun(*SMALL, **powerless))
    superuser.execute("ALTER ROLE powerless NOLOGIN")
    assert 'role "powerless" is not permitted to log in' in sentence(bankrun("worker", **powerless))
