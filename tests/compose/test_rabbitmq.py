"""The profile "rabbitmq": the same stack, with another broker. A project of its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

import docker
import pytest

from tests.compose.conftest import Compose, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(900)
IMAGE = "rabbitmq:4"


@pytest.fixture(scope="module")
def on_rabbitmq(compose: Compose) -> Iterator[Compose]:
    """A stack whose broker is RabbitMQ. Nothing of it is there afterwards."""
    try:
        compose.client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        pytest.skip(f"the profile rabbitmq is not tested: there is no image {IMAGE} here")
    choice = {"BANKRUN_COMPOSE_BROKER": "rabbitmq", "COMPOSE_PROFILES": "rabbitmq"}
    ports = {f"BANKRUN_{name}_PORT": str(free_port()) for name in ("POSTGRES", "REDIS", "RABBITMQ", "PAGE")}
    project = replace(
        compose, project=f"bankrun-test-{secrets.token_hex(4)}", environment=compose.environment | choice | ports
    )
    try:
        done = project("up", "--build", "--detach", "worker", seconds=580)
        assert done.returncode == 0, done.stderr
        yield project
    finally:
        project("--profile", "ports", "down", "--volumes", "--timeout", "5", "--remove-orphans")
        assert project.containers(all=True) == []


def test_the_headline_holds_in_containers_over_rabbitmq(on_rabbitmq: Compose) -> None:
    compared = on_rabbitmq.lab("bankrun", "compare", "--transfers", "600")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    examined = on_rabbitmq.lab("bankrun", "doctor")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert "RabbitMQ: 4" in examined.stdout


def test_triggered_jobs_survive_a_killed_container_and_a_restarted_broker(on_rabbitmq: Compose) -> None:
    on_rabbitmq.sql("DELETE FROM bankrun.entries; DELETE FROM bankrun.transfers")  # of the test before
    jobs = on_rabbitmq.start(
        "run", "--rm", "--no-TTY", "lab", "python", "scripts/trigger.py", "--transfers", "2000", "--reset"
    )
    applied = "SELECT count(*) FROM bankrun.transfers WHERE status = 'applied'"
    assert wait_until(lambda: int(on_rabbitmq.sql(applied)) > 100, 120)
    on_rabbitmq.containers("worker")[0].kill()
    on_rabbitmq.containers("rabbitmq")[0].restart(timeout=30)
    out, err = jobs.communicate(timeout=280)
    assert jobs.returncode == 0, out + err
    assert "audit: all five invariants hold" in out


def test_what_runs_it_is_no_root_and_can_write_nothing_but_its_data(on_rabbitmq: Compose) -> None:
    (broker,) = on_rabbitmq.containers("rabbitmq")
    code, said = broker.exec_run(["sh", "-c", "id -u; touch /etc/there"])
    assert code != 0
    assert said.splitlines()[0] != b"0"
    assert broker.attrs["HostConfig"]["ReadonlyRootfs"]
    assert broker.attrs["HostConfig"]["CapDrop"] == ["ALL"]
