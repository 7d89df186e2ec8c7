"""Workers on hosts of their own, with TLS between them and the servers: whom they trust, and the headline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.hosts import servers
from tests.hosts.conftest import THREE, Hosts, Worker
from tests.hosts.network import ADDRESSES, PLACE, SERVERS, python
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(540)

PORTS = {"postgres": 5432, "broker": 6379}


@pytest.fixture(scope="module")
def three(hosts: Hosts) -> Iterator[dict[str, Worker]]:
    """Three instances on two hosts."""
    with hosts.workers(THREE) as running:
        yield running


def can_reach(hosts: Hosts, origin: str, name: str, port: int) -> bool:
    """Whether a connection can be opened from a host to another one, by its name."""
    connect = f"import socket; socket.create_connection(({hosts[name].fqdn!r}, {port}), 3)"
    return hosts[origin].run(*python("-c", connect)).returncode == 0


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_a_workers_host_reaches_both_servers_and_nothing_else(hosts: Hosts) -> None:
    listen = "import http.server as s; s.HTTPServer(('', 80), s.BaseHTTPRequestHandler).serve_forever()"
    for name in ("lab", "worker-2"):
        hosts[name].start(*python("-c", listen), log=PLACE / "listening.log")
        assert wait_until(lambda name=name: can_reach(hosts, name, name, 80), 30)
    try:
        reached = {
            name for name in ADDRESSES if name != "worker-1" and can_reach(hosts, "worker-1", name, PORTS.get(name, 80))
        }
        assert reached == set(SERVERS)
        assert hosts["worker-1"].run("ip", "route", "show", "default").stdout == ""
    finally:
        hosts["lab"].end()
        hosts["worker-2"].end()


UNTRUSTED = (
    ("BANKRUN_DATABASE_URL", "/ca.pem", "/other/ca.pem", "certificate verify failed"),
    ("BANKRUN_BROKER_URL", "/ca.pem", "/other/ca.pem", "certificate verify failed"),
    ("BANKRUN_DATABASE_URL", "postgres.bank.test", ADDRESSES["postgres"], "does not match host name"),
    ("BANKRUN_BROKER_URL", "broker.bank.test", ADDRESSES["broker"], "certificate is not valid for"),
    ("BANKRUN_DATABASE_URL", "sslmode=.*", "sslmode=disable", "no encryption"),
    ("BANKRUN_BROKER_URL", "rediss(.*)[?].*", r"redis\1", "no Redis at"),
    ("BANKRUN_DATABASE_URL", "_lab:", "_lab:not", "password authentication failed"),
    ("BANKRUN_BROKER_URL", "//:", "//:not", "invalid username-password pair"),
    # An address that says nothing about certificates asks for one that the system knows, and ours is not.
    ("BANKRUN_BROKER_URL", "[?].*", "", "certificate verify failed"),
)
"""A setting, what is another in it, and what is then said."""
REACH = """
import json, sys
from bank.errors import CannotStart
from bank.settings import read_settings
from bankrun.runs.session import open_servers
for environ in json.loads(sys.argv[1]):
    try:
        with open_servers(read_settings(environ)):
            print("reached")
    except CannotStart as error:
        print(error)
"""


def test_a_server_that_cannot_be_trusted_is_not_used(hosts: Hosts) -> None:
    servers.make_certificates(servers.CERTIFICATES / "other")
    given = hosts.lab_settings | {"BANKRUN_STARTUP_WAIT_MS": "0"}
    asked = [given, *(given | {name: re.sub(right, wrong, given[name])} for name, right, wrong, _ in UNTRUSTED)]
    done = hosts["lab"].run(*python("-c", REACH, json.dumps(asked)))
    said = done.stdout.splitlines()
    assert said[0] == "reached", done.stderr
    assert len(said) == len(asked)
    for sentence, (name, right, wrong, why) in zip(said[1:], UNTRUSTED, strict=True):
        assert why in sentence, (name, right, wrong)
        assert all(secret not in sentence for secret in hosts.passwords.by_word.values())


# --- The headline ----------------------------------------------------------------------------------------------------


def test_the_headline_is_the_same_across_hosts(hosts: Hosts, three: dict[str, Worker]) -> None:
    wanted = ("thread-lock", "row-lock", "redis-lock")
    words = [word for name in wanted for word in ("--strategy", name)]
    done = hosts.bankrun("compare", *words, "--transfers", "500", "--seed", "7", "--export-json", str(PLACE / "c.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads((PLACE / "c.json").read_text())["cells"]
    verdicts = {(cell["strategy"], cell["topology"]): cell["verdict"] for cell in cells}
    assert verdicts == {
        ("none", "1x8"): "broken",
        ("none", "3x8"): "broken",
        ("thread-lock", "1x8"): "safe",
        ("thread-lock", "3x8"): "broken",
        ("row-lock", "1x8"): "safe",
        ("row-lock", "3x8"): "safe",
        ("redis-lock", "1x8"): "safe",
        ("redis-lock", "3x8"): "safe",
    }


def test_the_doctor_finds_nothing_wrong(hosts: Hosts, three: dict[str, Worker]) -> None:
    done = hosts.bankrun("doctor")
    assert done.returncode == 0, done.stdout
    assert "worker-1 (8 threads), worker-1b (8 threads), worker-2 (8 threads)" in " ".join(done.stdout.split())
    assert "bankrun_worker, no more than it needs" in " ".join(done.stdout.split())
    encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL AND "
    assert hosts.postgres.ask(encrypted + "ssl") >= len(three)
    assert hosts.postgres.ask(encrypted + "NOT ssl") == 0


def test_what_a_script_triggers_is_done_by_all(hosts: Hosts, three: dict[str, Worker]) -> None:
    said = hosts.end_of(hosts.trigger("--transfers", "1000", "--reset"))
    assert "1,000 applied" in said
    assert "all five invariants hold" in said
    assert all(f"  {name}: " in said for name in three)
