"""Settings that nobody meant: one sentence that names the variable, exit code 2, and nothing is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import redis
from hypothesis import strategies as st

from bank.errors import CannotStart
from bank.postgres.database import psql_url
from bank.settings import PREFIX, SECRETS_DIR, Settings, read_settings
from bank.strategies.redis_lock import redis_url
from tests.acceptance.conftest import Bankrun, environment
from tests.hostile import drawn
from workers.app import create_app

EXAMPLES = 1_000 if os.environ.get("SOUNDNESS") else 60
PASSWORD = "hunter2"

NAMES = [PREFIX + name.upper() for name in Settings.model_fields]
schemes = st.sampled_from(
    ["postgresql", "postgres", "postgresql+asyncpg", "mysql", "redis", "rediss", "redis+socket", "http", "", "REDIS"]
)
hosts = st.sampled_from(["", "db", "a b", "[::1]", "[::1", "127.0.0.1", "a,b", "é", "%00", "%zz", "-", "x" * 300])
ports = st.sampled_from(["", ":", ":5432", ":0", ":99999", ":-1", ":abc", ":5432,5433", ":" + "9" * 400])
paths = st.sampled_from(["", "/", "/0", "/bank", "/a/b", "/a b", "/%00", "/" + "9" * 400, "/run/x.sock"])
queries = st.sampled_from(
    ["", "?", "?sslmode=require", "?nonsense=1", "?host=/tmp", "?virtual_host=3", "?ssl_cert_reqs=banana", "?a=1&a=2"]
)
logins = st.sampled_from(["", "me@", f"me:{PASSWORD}@", f":{PASSWORD}@", f"me:{PASSWORD} x@", f"me:{PASSWORD}@@", "@"])
addresses = st.builds("{}://{}{}{}{}{}".format, schemes, logins, hosts, ports, paths, queries)
numbers = st.integers().map(str) | st.floats().map(str) | st.sampled_from(["9" * 400, "9" * 5_000, "-" + "9" * 400])
words = st.sampled_from(
    [
        *("", " ", "\t", "\n", "5s", "1_000", " 8 ", "0x10", "1e3", "1.5", "true", "maybe", "*", ":", "~", "~nobody/x"),
        *("\udcff", "a\udc80b", "a\nb", "\x1b[31m", "\x7f", "a b", " a", "a ", "/dev/null/x", "٣", "x" * 10_000, "{}"),
    ]
)
values = numbers | words | addresses | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
names = st.sampled_from(NAMES) | st.sampled_from(["BANKRUN_TREADS", "bankrun_threads", "BANKRUN_", "BANKRUN_\udcff"])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BANKRUN_STARTUP_WAIT_MS", "9" * 400, "it should be less than or equal to 2147483647"),
        ("BANKRUN_STARTUP_WAIT_MS", "9" * 5_000, "exceeded maximum size"),
        ("BANKRUN_STARTUP_WAIT_MS", "5s", "it should be a valid integer"),
        ("BANKRUN_STARTUP_WAIT_MS", "1.5", "it should be a valid integer"),
        ("BANKRUN_STARTUP_WAIT_MS", "-1", "it should be greater than or equal to 0"),
        ("BANKRUN_STATE_DIR", " ", "it is blank"),
        ("BANKRUN_STATE_DIR", " state", "it begins or ends with a space"),
        ("BANKRUN_STATE_DIR", "state\n", "there is a control character in it"),
        ("BANKRUN_STATE_DIR", "\udcff", "it is no valid UTF-8"),
        ("BANKRUN_START_WORKERS", "maybe", "it should be a valid boolean"),
        ("BANKRUN_DATABASE_URL", "mysql://me@host/db", "mysql:// is not Postgres"),
        ("BANKRUN_DATABASE_URL", f"postgresql://me:{PASSWORD}@a b/db", "there is a space in the host's name"),
        (
            "BANKRUN_DATABASE_URL",
            f"postgresql://me:{PASSWORD}@h/db?nonsense=1",
            'invalid URI query parameter: "nonsense"',
        ),
        ("BANKRUN_DATABASE_URL", f"postgresql://me:{PASSWORD}@h:99999/db", "there is no port 99999"),
        ("BANKRUN_DATABASE_URL", f"postgresql://me:{PASSWORD}@h:abc/db", "not an address; it should look like"),
        ("BANKRUN_DATABASE_URL", "host=db", "not an address; it should look like"),
        ("BANKRUN_BROKER_URL", "kafka://host", "'kafka' is not an address of Redis or RabbitMQ"),
        ("BANKRUN_BROKER_URL", f"amqp://me:{PASSWORD}@h:abc/", "not an address; it should look like amqp://"),
        ("BANKRUN_BROKER_URL", f"amqp://me:{PASSWORD}@h/a/b", "'a/b' is no name of a virtual host"),
        ("BANKRUN_BROKER_URL", f"amqp://me:{PASSWORD}@h/?heartbeat=1", "'heartbeat' is no parameter"),
        ("BANKRUN_BROKER_URL", f"amqp://me:{PASSWORD}@h/?ssl_cert_reqs=none", "'ssl_cert_reqs' is no parameter"),
        ("BANKRUN_BROKER_URL", f"amqps://me:{PASSWORD}@h/?ssl_cert_reqs=maybe", "ssl_cert_reqs is none or required"),
        ("BANKRUN_BROKER_URL", f"redis://:{PASSWORD}@h:abc/0", "not an address; it should look like"),
        ("BANKRUN_BROKER_URL", f"redis://:{PASSWORD}@h/bank", "'bank' is no number of a database"),
        ("BANKRUN_BROKER_URL", f"redis://:{PASSWORD}@h/0?nonsense=1", "'nonsense' is no parameter of a Redis address"),
        ("BANKRUN_BROKER_URL", "redis+socket://", "it names no socket"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_value_that_nobody_meant_is_one_sentence_with_the_variables_name(
    typed: Bankrun, tmp_path: Path, name: str, value: str, said: str
) -> None:
    done = typed("doctor", **{name: value})
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"bankrun: {name}: ")
    assert said in done.stderr
    assert PASSWORD not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(900 if os.environ.get("SOUNDNESS") else 120)
def test_of_any_settings_each_is_taken_or_refused_in_one_sentence(
    typed: Bankrun, tmp_path: Path, cli_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0
    for given in drawn(st.dictionaries(names, values, min_size=1, max_size=3), EXAMPLES):
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(PREFIX)]:
                patch.delenv(name)
            for name, value in given.items():
                patch.setenv(name, value)
            try:
                settings = read_settings()
            except CannotStart:
                refused += 1
            else:
                use(settings)
                continue
        done = typed("doctor", **given)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), (given, done.stderr)
        assert any(name.upper().rstrip("\udcff") in done.stderr for name in given), (given, done.stderr)
        assert PASSWORD not in done.stderr, given
    assert EXAMPLES / 10 < refused < EXAMPLES
    assert list(tmp_path.iterdir()) == []


def use(settings: Settings) -> None:
    """Do with settings what needs no server: nothing that was taken may fail here."""
    if settings.database_url is not None:
        psql_url(settings.database_url.get_secret_value())
    if settings.broker_url is not None:
        app = create_app(settings)
        app.connection_for_write()
        app.close()
        redis.Redis.from_url(redis_url(settings.broker_url.get_secret_value())).close()
    for name in Settings.model_fields:
        if name.endswith("_ms") and getattr(settings, name) is not None:
            assert getattr(settings, name) / 1000 >= 0


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "--strategy", "bank.strategies.row_lock:RowLock"),
        ("prove", "--strategy", "bank.strategies.row_lock:RowLock"),
        ("chaos", "--strategy", "bank.strategies:RowLock"),
        ("soak", "--strategy", "bank.strategies:RowLock"),
        ("replay", "bank.strategies.row_lock:RowLock/two/same-pair/AABB"),
    ],
    ids=" ".join,
)
def test_a_strategy_of_ours_named_as_one_of_theirs_is_told_its_name(typed: Bankrun, words: tuple[str, ...]) -> None:
    done = typed(*words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert "is bankrun's own: write row-lock" in done.stderr


def test_a_blank_state_directory_is_refused_where_there_is_no_bank_too(typed: Bankrun, tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text("SELECT 1")
    done = typed("try", "a.sql", BANKRUN_STATE_DIR=" ")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "BANKRUN_STATE_DIR" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.sql"]


def test_a_secret_that_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli_state: Path) -> None:
    (tmp_path / "bankrun_database_url").write_bytes(b"\xff\xfe")
    for name in os.environ.keys() - environment(cli_state).keys():
        monkeypatch.delenv(name)
    monkeypatch.setattr("bank.settings.SECRETS_DIR", tmp_path)
    with pytest.raises(CannotStart, match=r"a secret in .* cannot be read"):
        read_settings()
    assert tmp_path != SECRETS_DIR
