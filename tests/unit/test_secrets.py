"""The passwords of a compose stack: made once, each where its readers find it, and carried over from older stacks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

MAKE_SECRETS = Path(__file__).parents[2] / "tools" / "make-secrets"


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """The directories that are volumes in the stack."""
    for name in ("postgres", "rabbitmq", "redis", "lab", "worker"):
        (tmp_path / name).mkdir()
    return tmp_path


def made(volumes: Path) -> dict[str, str]:
    """Make the secrets; return what is there then."""
    subprocess.run(["sh", str(MAKE_SECRETS), str(volumes)], check=True, timeout=30)
    return {str(file.relative_to(volumes)): file.read_text() for file in volumes.rglob("*") if file.is_file()}


def test_secrets_are_made_once_and_a_missing_one_is_made_again(volumes: Path) -> None:
    first = made(volumes)
    assert sorted(first) == [
        "lab/bankrun_broker_url",
        "lab/bankrun_control_key",
        "lab/bankrun_database_url",
        "lab/outside.sh",
        "postgres/bankrun_database_url",
        "postgres/lab_password",
        "postgres/postgres_password",
        "postgres/worker_password",
        "rabbitmq/rabbitmq.conf",
        "rabbitmq/rabbitmq_password",
        "redis/redis.conf",
        "redis/redis_password",
        "worker/bankrun_broker_url",
        "worker/bankrun_control_key",
        "worker/bankrun_database_url",
    ]
    assert len({text for name, text in first.items() if name.endswith("_password")}) == 5
    assert made(volumes) == first
    (volumes / "worker" / "bankrun_database_url").unlink()
    assert made(volumes) == first


def test_an_older_stacks_passwords_stay_and_nobody_else_keeps_them(volumes: Path) -> None:
    older = {
        "postgres_password": "super\n",
        "redis_password": "broker\n",
        "redis.conf": "requirepass broker\n",
        "bankrun_database_url": "postgresql://bankrun:super@postgres:5432/bankrun\n",
        "bankrun_broker_url": "redis://:broker@redis:6379/0\n",
        "outside.sh": "export BANKRUN_DATABASE_URL=postgresql://bankrun:super@127.0.0.1/bankrun\n",
        "complete": "",
    }
    for name, text in older.items():
        (volumes / "postgres" / name).write_text(text)
    found = made(volumes)
    assert found["postgres/postgres_password"] == "super\n"
    assert found["postgres/bankrun_database_url"] == older["bankrun_database_url"]
    assert found["worker/bankrun_broker_url"] == found["lab/bankrun_broker_url"] == older["bankrun_broker_url"]
    assert {name for name, text in found.items() if "super" in text} == {
        "postgres/postgres_password",
        "postgres/bankrun_database_url",
    }
    assert sorted(path.name for path in (volumes / "postgres").iterdir()) == [
        "bankrun_database_url",
        "lab_password",
        "postgres_password",
        "worker_password",
    ]
