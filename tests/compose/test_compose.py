"""What `docker compose` users do, for real: worker containers, kills, outages, and nothing that others can reach."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.compose.conftest import ROOT, Compose
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

NAMES = ("thread-lock", "striped-lock", "file-lock", "row-lock", "atomic-update", "version-check")
COMPARISON = (
    *(word for name in NAMES for word in ("--strategy", name)),
    *("--topology", "1x4", "--topology", "3x4", "--transfers", "300", "--warmup", "20", "--seed", "7"),
    *("--export-json", "-"),
)


def sentences(stderr: str) -> list[str]:
    """Return what bankrun said, without compose's own lines."""
    return [line for line in stderr.splitlines() if line.startswith(("bankrun: ", "trigger: ")) or "Traceback" in line]


def verdicts(result: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    return {(cell["strategy"], cell["topology"]): (cell["expected"], cell["verdict"]) for cell in result["cells"]}


def shape(value: Any) -> Any:
    """Return a JSON value with its keys, and types in place of its values."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


# The first test: it brings the stack up as a user does.
def test_up_alone_builds_compares_three_containers_prints_the_table_and_leaves_the_stack_up(compose: Compose) -> None:
    up = compose("up", "--build", seconds=390)
    assert up.returncode == 0, up.stdout + up.stderr
    rows = {
        (found[1], found[2]): found[3]
        for found in re.finditer(r"lab-1 +\|  (\S+) +(\dx8) .* (\w+) *$", up.stdout, re.MULTILINE)
    }
    assert rows == {
        ("none", "1x8"): "broken",
        ("thread-lock", "1x8"): "safe",
        ("row-lock", "1x8"): "safe",
        ("none", "3x8"): "broken",
        ("thread-lock", "3x8"): "broken",
        ("row-lock", "3x8"): "safe",
    }
    said = [line for line in up.stdout.splitlines() if "|" in line]
    assert [line for line in said if not line.startswith("lab-1")] == []
    (lab,) = compose.containers("lab", all=True)
    assert lab.wait()["StatusCode"] == 0
    assert [worker.status for worker in compose.containers("worker")] == ["running"] * 3


def test_the_table_fits_a_terminal_of_80_columns_behind_the_name_of_the_container(stack: Compose) -> None:
    (lab,) = stack.containers("lab", all=True) or pytest.skip("up was not run")
    table = [line for line in lab.logs().decode().splitlines() if re.match(r" (strategy|\S+ +\dx8) ", line)]
    assert len(table) == 7
    assert not [line for line in table if len("lab-1  | " + line.rstrip()) > 80 or "…" in line]


def test_compose_config_is_clean(stack: Compose) -> None:
    for profile in ((), ("--profile", "ports")):
        done = stack(*profile, "config", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verdicts_and_json_are_those_of_the_embedded_stack_but_for_what_a_host_is(
    stack: Compose, tmp_path: Path
) -> None:
    inside = stack.lab("bankrun", "compare", *COMPARISON)
    assert inside.returncode == 0, inside.stderr
    containers = json.loads(inside.stdout)
    state = tmp_path / "state"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BANKRUN_")}
    if os.geteuid() == 0:  # whoever runs the embedded servers then must be able to enter
        state = Path(f"/var/tmp/{stack.project}")
    try:
        embedded = subprocess.run(
            [sys.executable, "-P", "-m", "bankrun", "compare", *COMPARISON],
            cwd=tmp_path,
            env=environment | {"BANKRUN_STATE_DIR": str(state)},
            capture_output=True,
            text=True,
            timeout=280,
            check=True,
        )
    finally:
        subprocess.run(["rm", "-rf", str(state)], check=True)
    processes = json.loads(embedded.stdout)
    inside_verdicts, outside_verdicts = verdicts(containers), verdicts(processes)
    # A file lock reaches over processes and not over containers: each instance says where its own is.
    assert inside_verdicts.pop(("file-lock", "3x4"))[0] == "unsafe"
    assert outside_verdicts.pop(("file-lock", "3x4")) == ("safe", "safe")
    assert inside_verdicts == outside_verdicts
    assert containers.keys() == processes.keys()
    # Only processes of this machine are kept to a core.
    assert all(info.pop("core") is None for info in containers["environment"]["instances"])
    for info in processes["environment"]["instances"]:
        del info["core"]
    assert shape(containers["environment"]["instances"]) == shape(processes["environment"]["instances"])
    assert containers["environment"].keys() == processes["environment"].keys()
    for one, other in zip(containers["cells"], processes["cells"], strict=True):
        assert {key: type(value) for key, value in one.items()} == {key: type(value) for key, value in other.items()}
    instances = containers["environment"]["instances"]
    assert len({info["host"] for info in instances}) == len(instances) == 3
    assert len({info["host"] for info in processes["environment"]["instances"]}) == 1


def test_five_workers_serve_5x4_and_six_are_asked_for_in_one_sentence(stack: Compose) -> None:
    scaled = stack("up", "--detach", "--scale", "worker=5", "worker")
    assert scaled.returncode == 0, scaled.stderr
    five = stack.lab("bankrun", "compare", "--strategy", "row-lock", "--topology", "5x4", "--transfers", "300")
    assert five.returncode == 0, five.stderr
    six = stack.lab("bankrun", "compare", "--topology", "6x4", BANKRUN_STARTUP_WAIT_MS="2000")
    assert six.returncode == 2
    waited, refused = sentences(six.stderr)
    assert "5 of 6 instances answer; waiting up to 2 s" in waited
    assert refused == (
        "bankrun: the topology asks for 6 instances, but 5 are running: "
        "start more, as with docker compose up --detach --scale worker=6 worker"
    )
    assert len(stack.containers("worker")) == 5
    stack("up", "--detach", "--scale", "worker=3", "worker")


def test_the_script_that_compares_runs_in_the_stack(stack: Compose) -> None:
    done = stack.lab("python", "scripts/compare.py", "--topology", "3x8", "--transfers", "300")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^thread-lock +3x8 .* broken ", done.stdout, re.MULTILINE)
    assert re.search(r"^row-lock +3x8 .* safe", done.stdout, re.MULTILINE)


def test_a_strategy_is_proved_in_the_stack(stack: Compose) -> None:
    done = stack.lab("bankrun", "prove", "--strategy", "atomic-update", "--case", "same-pair")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\s*atomic-update +two +0/\d+ ", done.stdout, re.MULTILINE), done.stdout


def test_a_worker_that_is_killed_amid_5000_transfers_costs_none_of_them(stack: Compose) -> None:
    one, two, _ = stack.containers("worker")
    stack.lab("python", "scripts/trigger.py", "--transfers", "1", "--reset")
    trigger = stack.start(
        *("run", "--rm", "--no-TTY", "lab", "python", "scripts/trigger.py", "--transfers", "5000", "--reset")
    )
    try:
        # From 5,000 pending on: before that the bank is still the one from above.
        pending = "SELECT count(*) FROM bankrun.transfers WHERE status = 'pending'"
        assert wait_until(lambda: 3_000 < int(stack.sql(pending)) < 4_900, 60)
        one.kill()
        two.exec_run(["sh", "-c", "kill -9 -1"])  # the process in it; the engine then restarts the container
        time.sleep(1)
        one.start()
        out, err = trigger.communicate(timeout=240)
    finally:
        trigger.kill()
        trigger.communicate()
    assert trigger.returncode == 0, out + err
    assert "5,000 applied" in out
    assert "audit: all five invariants hold" in out
    twice = "SELECT count(*) FROM bankrun.entries GROUP BY transfer_id HAVING count(*) <> 2"
    assert stack.sql(f"SELECT count(*) FROM ({twice})") == "0"
    assert wait_until(lambda: two.reload() or two.attrs["RestartCount"] == 1, 20)
    assert wait_until(lambda: all(worker.health == "healthy" for worker in stack.containers("worker")), 60), (
        "a killed worker is up again"
    )


def test_every_container_is_held_in(stack: Compose) -> None:
    assert stack("--profile", "ports", "up", "--detach", "ports", "page").returncode == 0
    services = {}
    for container in stack.containers(all=True):
        services[container.labels["com.docker.compose.service"]] = container
        host = container.attrs["HostConfig"]
        assert host["ReadonlyRootfs"], container.name
        assert host["CapDrop"] == ["ALL"], container.name
        assert not host["CapAdd"], container.name
        assert "no-new-privileges:true" in host["SecurityOpt"], container.name
        assert host["Init"], container.name
        assert host["Memory"], container.name
        assert not host["Privileged"], container.name
        assert container.attrs["Config"]["User"] not in ("", "root", "0"), container.name
        secret = re.compile("password=|://[^@]*:[^@]+@", re.IGNORECASE)
        assert not [line for line in container.attrs["Config"]["Env"] if secret.search(line)], container.name
    assert services.keys() >= {"secrets", "roles", "postgres", "redis", "worker", "page", "ports"}
    for name in ("postgres", "redis", "worker", "page", "ports"):
        # Process 1 is the engine's init, which keeps nothing but the user.
        code, uid = services[name].exec_run("id -u")
        assert code == 0
        assert uid.strip() != b"0", name
        code, said = services[name].exec_run("touch /file")
        assert code != 0, name
        assert b"Read-only file system" in said, name
    assert services["worker"].attrs["Config"]["StopTimeout"] >= 40


def test_every_container_sees_its_own_secrets_only(stack: Compose) -> None:
    assert stack("--profile", "ports", "up", "--detach", "ports", "page").returncode == 0
    seen, passwords = {}, {}
    for name in ("postgres", "redis", "worker", "page", "ports"):
        (container, *_) = stack.containers(name)
        code, listed = container.exec_run(["sh", "-c", "cd /run/secrets && grep -H . *"])
        assert code == 0, listed
        lines = [line.partition(":")[::2] for line in listed.decode().splitlines()]
        seen[name] = sorted({file for file, _ in lines})
        passwords[name] = {found[1] for _, line in lines for found in re.finditer(r"//bankrun\w*:([^@]+)@", line)}
    assert seen == {
        "postgres": ["bankrun_database_url", "lab_password", "postgres_password", "worker_password"],
        "redis": ["redis.conf", "redis_password"],
        "worker": ["bankrun_broker_url", "bankrun_control_key", "bankrun_database_url"],
        "page": ["bankrun_broker_url", "bankrun_control_key", "bankrun_database_url", "outside.sh"],
        "ports": ["bankrun_broker_url", "bankrun_control_key", "bankrun_database_url", "outside.sh"],
    }
    # The superuser's, the lab's and the workers' differ.
    assert [len(passwords[name]) for name in ("postgres", "worker", "ports")] == [1, 1, 1]
    assert len(passwords["postgres"] | passwords["worker"] | passwords["ports"]) == 3


def test_workers_can_do_no_more_than_transfers_take(stack: Compose) -> None:
    stack.lab("python", "scripts/trigger.py", "--transfers", "1", "--reset")
    said = stack.lab("bankrun", "doctor")
    assert said.returncode == 0, said.stdout
    assert "ok  workers' role: bankrun_worker, no more than it needs" in said.stdout
    assert stack.sql("SELECT rolname FROM pg_roles WHERE rolsuper") == "bankrun"
    owner = "SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'bankrun'"
    assert stack.sql(owner) == "bankrun_lab"
    (redis,) = stack.containers("redis")
    for words in ("flushall", "config get dir", "shutdown nosave", "acl list"):
        ask = f'REDISCLI_AUTH="$(cat /run/secrets/redis_password)" redis-cli {words}'
        assert b"NOPERM" in redis.exec_run(["sh", "-c", ask]).output, words


def test_nothing_listens_outside_the_loopback_interface(stack: Compose) -> None:
    assert stack("--profile", "ports", "up", "--detach", "ports", "page").returncode == 0
    published = {
        (container.labels["com.docker.compose.service"], binding["HostIp"], binding["HostPort"])
        for container in stack.containers()
        for bindings in container.attrs["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    }
    ports = {stack.environment[f"BANKRUN_{name}_PORT"] for name in ("POSTGRES", "REDIS", "RABBITMQ")}
    page = stack.environment["BANKRUN_PAGE_PORT"]
    assert published == {("page", "127.0.0.1", page), *(("ports", "127.0.0.1", port) for port in ports)}
    table = Path("/proc/net/tcp")
    if table.exists():  # the engine may be on another machine, as on macOS
        listening = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
        ours = {where for where in listening if str(int(where.partition(":")[2], 16)) in ports | {page}}
        assert {where.partition(":")[0] for where in ours} <= {"0100007F"}
    for network in stack.client.networks.list(filters={"label": f"com.docker.compose.project={stack.project}"}):
        network.reload()
        assert network.attrs["Internal"] or network.name.endswith("_outside")
        inside = {info["Name"] for info in network.attrs["Containers"].values()}
        assert network.attrs["Internal"] or inside == {f"{stack.project}-ports-1", f"{stack.project}-page-1"}


def test_the_page_answers_this_machine_by_its_own_name_only(stack: Compose) -> None:
    assert stack("up", "--detach", "--wait", "page").returncode == 0

    def answer(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(stack.environment["BANKRUN_PAGE_PORT"]), timeout=30)
        with closing(connection):
            connection.request("GET", "/", headers={"Host": host})
            return connection.getresponse().status

    assert [answer(host) for host in ("127.0.0.1:8080", "localhost", "page:8080", "evil.example")] == [
        200,
        200,
        403,
        403,
    ]


def test_a_script_outside_uses_the_workers_inside(stack: Compose) -> None:
    assert stack("--profile", "ports", "up", "--detach", "ports", "page").returncode == 0
    printed = stack("exec", "--no-TTY", "ports", "cat", "/run/secrets/outside.sh").stdout
    words = f"exec {shlex.quote(sys.executable)} scripts/trigger.py --transfers 200 --reset"
    script = f"{printed}\nunset BANKRUN_POSTGRES_PORT BANKRUN_REDIS_PORT\n{words}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, env=stack.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "200 applied" in done.stdout
    assert all(worker.short_id in done.stdout for worker in stack.containers("worker"))


def test_the_image_holds_no_secret_no_build_tool_and_no_history_of_ours(stack: Compose) -> None:
    (found,) = stack.containers("worker")[:1]
    history = json.dumps(found.image.history())
    assert not re.search("password|PIP_INDEX|https?://", history, re.IGNORECASE)
    look = "ls /run/secrets /app; python -c 'import hatchling' 2>&1 | tail -1; command -v gcc cc make git; id -un"
    seen = stack.client.containers.run(found.image.id, ["sh", "-c", look], remove=True, network_mode="none").decode()
    assert seen.split("\n\n") == [
        "/app:\nscripts",
        "/run/secrets:\nModuleNotFoundError: No module named 'hatchling'\nbankrun\n",
    ]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("BANKRUN_DATABASE_URL", "postgresql://bankrun:wrong@postgres/bankrun", "password authentication failed"),
        ("BANKRUN_BROKER_URL", "redis://:wrong@redis:6379/0", "invalid username-password pair"),
    ],
)
@pytest.mark.parametrize("words", [("worker",), ("audit",)], ids=" ".join)
def test_a_wrong_password_ends_it_at_once_with_one_sentence(
    stack: Compose, words: tuple[str, ...], name: str, value: str, reason: str
) -> None:
    done = stack.lab("bankrun", *words, **{name: value})
    assert done.returncode == 2
    (sentence,) = sentences(done.stderr)
    assert reason in sentence
    assert "wrong" not in sentence


def test_redis_that_is_down_is_waited_for_and_then_named_and_workers_find_it_again(stack: Compose) -> None:
    (redis,) = stack.containers("redis")
    redis.stop()
    for words in (("worker",), ("audit",)):
        command = ("--no-deps", "--env", "BANKRUN_STARTUP_WAIT_MS=3000", "lab", "bankrun", *words)
        down = stack("run", "--rm", "--no-TTY", *command)
        assert down.returncode == 2
        *waiting, sentence = sentences(down.stderr)
        assert "no Redis at redis://:***@redis:6379/0" in sentence
        assert "waiting up to" not in sentence
        assert waiting or "resolve" in sentence or "name" in sentence
    redis.start()
    again = stack.lab("bankrun", "compare", "--strategy", "row-lock", "--topology", "3x4", "--transfers", "300")
    assert again.returncode == 0, again.stderr


def test_postgres_that_is_still_starting_is_waited_for(stack: Compose) -> None:
    (postgres,) = stack.containers("postgres")
    postgres.stop()
    lab = stack.start("run", "--rm", "--no-TTY", "--no-deps", "lab", "bankrun", "audit")
    assert lab.stderr is not None
    said = ""
    while "waiting up to" not in said:
        line = lab.stderr.readline()
        assert line, said
        said += line
    assert "no Postgres at" in said
    postgres.start()
    out, err = lab.communicate(timeout=60)
    assert lab.returncode == 0, err
    assert "all five invariants hold" in out


def test_a_strategy_of_ones_own_is_found_in_the_mounted_folder_by_the_lab_and_by_every_worker(stack: Compose) -> None:
    name = f"mine_{secrets.token_hex(4)}"
    file = ROOT / "strategies" / f"{name}.py"
    file.write_text(
        "from bank.strategies import Claim, Strategy\n\n\nclass Mine(Strategy):\n    claim = Claim.EVERYWHERE\n"
        '    READ = Strategy.READ + " FOR UPDATE"\n'
    )
    words = ("--strategy", f"{name}:Mine", "--topology", "3x2", "--transfers", "300", "--export-json", "-")
    try:
        done = stack.lab("bankrun", "compare", *words)
        assert done.returncode == 0, done.stderr
        cell = next(cell for cell in json.loads(done.stdout)["cells"] if cell["strategy"] == f"{name}:Mine")
        assert (cell["applied"], cell["lost_postings"], cell["verdict"]) == (300, 0, "safe")
        assert len(cell["working_max"]) == 3
        # Workers that run keep the file that they have loaded, and the lab says so.
        file.write_text(file.read_text() + "# changed\n")
        changed = stack.lab("bankrun", "compare", *words)
        assert changed.returncode == 2
        assert "has loaded another file" in changed.stderr, changed.stderr
    finally:
        file.unlink()
