"""All of it over RabbitMQ: the headline, a long run with faults, and what is told of a server that will not do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import amqp
import pytest
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from bank.audit import audit
from bank.postgres.database import Database
from bank.settings import Settings
from bankrun.results.workload import Workload
from bankrun.runs.adhoc import decided_by, open_fresh_bank, trigger, watch
from bankrun.runs.comparison import Lab
from bankrun.runs.delivery import Delivery
from bankrun.runs.session import open_lab, open_servers
from bankrun.servers.embedded import Endpoints
from bankrun.servers.keeper_client import Keeper
from tests.places import make_place
from tests.rabbitmq.server import Server
from workers.app import QUEUE, create_app
from workers.broker.rabbitmq import declare_queue, make_queue
from workers.submission import Submission

SECONDS_MAX = 280
LONG = pytest.mark.timeout(400)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """The state directory of all commands."""
    path = make_place("cli")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def run(place: Path, rabbitmq: Server) -> Run:
    """Return a function that runs bankrun as a user types it, with a RabbitMQ and the embedded Postgres."""

    def call(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("BANKRUN_", "COLUMNS"))}
        given = {"BANKRUN_STATE_DIR": str(place), "BANKRUN_BROKER_URL": rabbitmq.url(), "PYTHONWARNINGS": "ignore"}
        return subprocess.run(
            [sys.executable, "-P", "-m", "bankrun", *words],
            env=clean | given | extra,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return call


@pytest.fixture
def settings_here(stack: tuple[Keeper, Endpoints], rabbitmq: Server, tmp_path: Path) -> Settings:
    """Both servers given: the test session's Postgres, and RabbitMQ."""
    return Settings(
        database_url=SecretStr(stack[1].database_url),
        broker_url=SecretStr(rabbitmq.url()),
        state_dir=tmp_path,
        reconcile_ms=500,
    )


@pytest.fixture
def empty(rabbitmq: Server) -> Iterator[amqp.Channel]:
    """A channel; the queue that all instances share is gone before and after."""
    with amqp.Connection(f"127.0.0.1:{rabbitmq.port}", "bankrun", str(rabbitmq.plan["password"])) as connection:
        with connection.channel() as channel:
            channel.queue_delete(QUEUE)
        yield connection.channel()
        with connection.channel() as channel:
            channel.queue_delete(QUEUE)


@LONG
def test_the_headline_holds_over_rabbitmq(run: Run) -> None:
    done = run("compare", "--transfers", "1000", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert "inconclusive" not in done.stdout
    verdicts = [
        line.split()[0::6] for line in done.stdout.splitlines() if line.startswith((" thread-lock", " row-lock"))
    ]
    assert [words[0] for words in verdicts] == ["thread-lock", "row-lock"] * 2


def wait_for_all(lab: Lab, faults: dict[int, Callable[[], None]]) -> None:
    """Watch until nothing is pending; each fault strikes once, when no more than so many are."""
    left = dict(faults)
    for pending in watch(lab):
        lab.look_after()
        for most in [number for number in left if pending <= number]:
            left.pop(most)()
    assert not left


@LONG
def test_5000_triggered_jobs_survive_a_killed_worker_and_a_killed_broker(
    settings_here: Settings, rabbitmq: Server, database: Database
) -> None:
    load = Workload(accounts=50, transfers=5_000)
    with open_servers(settings_here) as servers, open_lab(servers, instances=3, threads=4, revive=True) as lab:
        open_fresh_bank(lab, load)
        trigger(lab, load, "row-lock", seed=21)
        victim = lab.instances[0].pid
        wait_for_all(
            lab,
            {4_000: lambda: os.kill(victim, signal.SIGKILL), 2_500: lambda: rabbitmq.restart(signal.SIGKILL)},
        )
        found = audit(lab.database)
        assert sum(decided_by(lab).values()) == 5_000
    assert found.passed, found.findings
    assert found.transfers["applied"] + found.transfers["refused"] == 5_000
    assert (found.transfers["pending"], found.lost_postings, found.duplicates) == (0, 0, 0)


def test_jobs_are_published_to_the_end_though_rabbitmq_ends_meanwhile(
    settings_here: Settings, rabbitmq: Server, database: Database
) -> None:
    load = Workload(accounts=8, transfers=1_500)
    orders = list(load.orders(3))
    reports: list[int] = []
    back = threading.Thread(target=rabbitmq.start)

    def end_broker(published: int) -> None:
        reports.append(published)
        if len(reports) == 1:
            rabbitmq.stop(signal.SIGKILL)
            back.start()

    with open_servers(settings_here) as servers, open_lab(servers, instances=2, threads=4) as lab:
        open_fresh_bank(lab, load)
        delivery = Delivery(lab, Submission("insisting", "row-lock"), insist_seconds=120)
        delivery.accept(orders)
        delivery.publish(orders, progress=end_broker)
        back.join()
        wait_for_all(lab, {})
        found = audit(lab.database)
    assert (reports[0], reports[-1]) == (500, 1_500)
    assert found.passed, found.findings
    assert found.transfers["applied"] + found.transfers["refused"] == 1_500


def test_a_queue_that_is_gone_when_it_is_consumed_ends_no_worker(
    settings_here: Settings, database: Database, empty: amqp.Channel
) -> None:
    """A queue of another kind, that cannot be declared, stands for it: what the broker says ends the channel, too."""
    with open_servers(settings_here) as servers, open_lab(servers, instances=1, threads=4) as lab:
        (instance,) = lab.instances
        empty.queue_declare("foreign", durable=True, auto_delete=False)
        lab.fleet.join("foreign", [instance])  # it is answered before it is done
        time.sleep(1)
        empty.queue_delete("foreign")
        deadline = time.monotonic() + 60
        while not lab.fleet.is_running("w1", timeout_seconds=2):
            lab.check_processes()
            assert time.monotonic() < deadline, "it answers no more"
        lab.fleet.leave("foreign", [instance])


def test_a_damaged_queue_takes_no_worker_from_the_others(
    settings_here: Settings, rabbitmq: Server, database: Database
) -> None:
    """As RabbitMQ has them after it was killed while they were made: whoever consumes one loses the connection."""
    with open_servers(settings_here) as servers, open_lab(servers, instances=1, threads=4) as lab:
        (instance,) = lab.instances
        with lab.app.connection_for_write() as connection:
            declare_queue(connection.default_channel, "damaged")
        rabbitmq.control("eval", "ra:stop_server(quorum_queues, {'%2F_damaged', node()}).")
        lab.fleet.call("damaged", [instance])
        time.sleep(1)
        deadline = time.monotonic() + 60
        while not lab.fleet.is_running("w1", timeout_seconds=2):
            lab.look_after()
            assert time.monotonic() < deadline, "it answers no more"
        lab.fleet.leave("damaged", [instance])


def test_a_strategy_that_needs_redis_is_refused_in_a_sentence_and_left_out_of_all(run: Run) -> None:
    named = run("compare", "--strategy", "redis-lock")
    assert (named.returncode, named.stderr.count("\n")) == (2, 1)
    assert "redis-lock needs Redis" in named.stderr
    every = run("compare", "--strategy", "all", "--dry-run")
    assert every.returncode == 0, every.stderr
    assert every.stderr.count("left out: redis-lock") == 3
    assert "redis-lock" not in every.stdout
    assert "row-lock" in every.stdout


def test_nothing_is_published_that_is_not_confirmed(settings_here: Settings, empty: amqp.Channel) -> None:
    app = create_app(settings_here)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        with pytest.raises(OperationalError, match="did not take 1 messages: NO_ROUTE: nowhere"):
            channel.basic_publish(channel.prepare_message(b"lost"), routing_key="nowhere")
        arguments = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish", "x-expires": 60_000}
        empty.queue_declare("short", durable=True, auto_delete=False, arguments=arguments)
        batch = channel.create_publish_batch(10)

        def fill() -> None:
            for _ in range(200):
                batch.publish(channel.prepare_message(b"one"), routing_key="short")
            batch.flush()

        with pytest.raises(OperationalError, match="it could not keep them"):
            fill()
        empty.queue_delete("short")
    app.close()


def test_a_pool_gives_no_connection_whose_other_end_is_gone(settings_here: Settings, rabbitmq: Server) -> None:
    app = create_app(settings_here)
    with app.producer_or_acquire() as producer:
        producer.maybe_declare(make_queue("pooled"))
    rabbitmq.restart()
    with app.producer_or_acquire() as producer:
        producer.publish({}, routing_key="pooled", retry=False)
        producer.channel.queue_delete("pooled")
    app.close()


def test_a_queue_that_is_not_ours_is_named_before_anything_starts(run: Run, empty: amqp.Channel) -> None:
    empty.queue_declare(QUEUE, durable=True, auto_delete=False)
    for command in ("doctor", "compare"):
        done = run(command)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "x-queue-type" in done.stderr
        assert QUEUE in done.stderr


def test_a_wrong_password_and_a_missing_host_are_told_apart(run: Run, rabbitmq: Server) -> None:
    wrong = run("doctor", BANKRUN_BROKER_URL=rabbitmq.url().replace(str(rabbitmq.plan["password"]), "wrong"))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "cannot use RabbitMQ at amqp://bankrun:***@127.0.0.1" in wrong.stderr
    assert "ACCESS_REFUSED" in wrong.stderr
    host = run("doctor", BANKRUN_BROKER_URL=rabbitmq.url("nowhere"))
    assert (host.returncode, host.stderr.count("\n")) == (2, 1)
    assert "vhost nowhere not found" in host.stderr


@LONG
def test_doctor_is_content_and_names_what_breaks_a_promise(run: Run, rabbitmq: Server, empty: amqp.Channel) -> None:
    well = run("doctor")
    assert well.returncode == 0, well.stdout + well.stderr
    for words in ("ok  RabbitMQ: ", "ok  publisher confirms: ", "ok  delivery limit: none", "ok  consumer_timeout: "):
        assert words in well.stdout
    rabbitmq.control("set_policy", "few", ".*", '{"delivery-limit": 3}', "--apply-to", "queues")
    try:
        limited = run("doctor")
    finally:
        rabbitmq.control("clear_policy", "few")
    assert limited.returncode == 1
    assert "no  delivery limit: less than 25" in limited.stdout
    rabbitmq.control("set_vm_memory_high_watermark", "0.000001")
    try:
        blocked = run("doctor")
    finally:
        rabbitmq.control("set_vm_memory_high_watermark", "0.4")
    assert blocked.returncode == 1
    assert "an alarm is on: it is short of memory or disk" in blocked.stdout + blocked.stderr
    rabbitmq.control("set_permissions", "bankrun", ".*", "", ".*")
    try:
        mute = run("doctor")
    finally:
        rabbitmq.control("set_permissions", "bankrun", ".*", ".*", ".*")
    assert mute.returncode == 1
    assert "ACCESS_REFUSED" in mute.stdout + mute.stderr


@LONG
def test_a_benchmark_has_rows_for_rabbitmq_and_says_which_one_it_was(run: Run, tmp_path: Path) -> None:
    load = ("--quick", "--transfers", "64", "--topology", "1x2", "--strategy", "single-statement")
    page, file = tmp_path / "b.md", tmp_path / "b.json"
    done = run("bench", *load, "--export-json", str(file), "--export-markdown", str(page))
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())
    assert saved["environment"]["rabbitmq"].keys() == {"server", "version"}
    rates = {row["name"]: row["transfers_per_s"]["median"] for row in saved["rows"]}
    assert all(rates[name] > 0 for name in ("rabbitmq celery-noop", "rabbitmq single-statement"))
    assert f"from rabbitmq {saved['environment']['rabbitmq']['version']}:" in page.read_text()


def test_a_benchmark_is_not_begun_with_a_rabbitmq_that_is_not_there(run: Run, rabbitmq: Server) -> None:
    done = run("bench", "--quick", BANKRUN_BROKER_URL=rabbitmq.url("nowhere"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "vhost nowhere not found" in done.stderr


def test_soak_needs_redis(run: Run) -> None:
    done = run("soak")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "unset BANKRUN_BROKER_URL" in done.stderr


@LONG
def test_tls_verifies_the_certificate_and_the_name_unless_it_is_told_not_to(run: Run, rabbitmq: Server) -> None:
    port = rabbitmq.plan.get("tls_port")
    if port is None:
        pytest.skip("openssl is not installed: no certificate")

    def ask(host: str, query: str) -> subprocess.CompletedProcess[str]:
        url = f"amqps://bankrun:{rabbitmq.plan['password']}@{host}:{port}/?{query}"
        return run(
            "compare", "--topology", "1x4", "--transfers", "200", "--strategy", "row-lock", BANKRUN_BROKER_URL=url
        )

    authority = f"ssl_ca_certs={rabbitmq.directory / 'certificate.pem'}"
    assert ask("localhost", authority).returncode == 0
    assert ask("127.0.0.1", "ssl_cert_reqs=none").returncode == 0
    for host, query in (("localhost", ""), ("127.0.0.1", authority)):
        refused = ask(host, query)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "certificate" in refused.stderr.lower()
