"""The manifests in deploy/kubernetes/: valid, contained, and about settings and commands that exist."""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import ValidationError

from bank.errors import CannotStart
from bank.postgres.schema import LAB_CONNECTIONS
from bank.settings import PREFIX, SECRETS_DIR, Settings, read_settings
from bankrun.cli.app import Commands

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
VERSIONS = ("1.31", kubernetes_validate.latest_version())
"""The oldest for which they are meant, and the newest that is known here."""
POSTGRES_CONNECTIONS = 100
"""Postgres' default."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


MANIFESTS = {
    str(path.relative_to(FOLDER)): load(path)
    for path in sorted(FOLDER.rglob("*.yaml"))
    if path.name != "kustomization.yaml"
}
KUSTOMIZATIONS = {path.parent: load(path) for path in sorted(FOLDER.rglob("kustomization.yaml"))}
PODS = {
    name: manifest["spec"]["template"]["spec"]
    for name, manifest in MANIFESTS.items()
    if "template" in manifest.get("spec", {})
}
WORKERS = MANIFESTS["base/workers.yaml"]


def generated(kind: str) -> dict[str, dict[str, Any]]:
    """Return the config maps or secrets that are generated, by name."""
    return {made["name"]: made for kustomization in KUSTOMIZATIONS.values() for made in kustomization.get(kind, [])}


def environment(pod: dict[str, Any]) -> dict[str, str]:
    """Return what a pod's container has in its environment."""
    (container,) = pod["containers"]
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        for file in generated("configMapGenerator")[source["configMapRef"]["name"]]["envs"]:
            found |= dict(line.split("=", 1) for line in (BASE / file).read_text().splitlines())
    return found | {variable["name"]: variable["value"] for variable in container["env"]}


def secret_keys(pod: dict[str, Any]) -> list[str]:
    """Return the files that a pod finds in /run/secrets."""
    (name,) = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    return [file.partition("=")[0] for file in generated("secretGenerator")[name]["files"]]


# --- The schema, and what belongs together ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_the_api_server_takes(name: str, version: str) -> None:
    assert kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_a_misspelt_field_is_found() -> None:
    wrong = copy.deepcopy(WORKERS)
    wrong["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(ValidationError, match="resource"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_each_file_belongs_to_one_kustomization() -> None:
    named = [folder / file for folder, kustomization in KUSTOMIZATIONS.items() for file in kustomization["resources"]]
    assert sorted(named) == sorted(FOLDER / name for name in MANIFESTS)
    assert {kustomization["namespace"] for kustomization in KUSTOMIZATIONS.values()} == {"bankrun"}
    for kustomization in KUSTOMIZATIONS.values():
        assert [image["name"] for image in kustomization["images"]] == ["bankrun"]


def test_nothing_secret_is_kept_in_the_tree() -> None:
    for secret in generated("secretGenerator").values():
        assert set(secret) == {"name", "files"}
        assert all(file.partition("=")[2].startswith("secrets/") for file in secret["files"])
    assert "deploy/kubernetes/base/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert not [name for name, manifest in MANIFESTS.items() if manifest["kind"] == "Secret"]


def test_selectors_find_the_workers() -> None:
    labels = WORKERS["spec"]["template"]["metadata"]["labels"].items()
    spread = WORKERS["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]
    budget = MANIFESTS["base/disruption-budget.yaml"]["spec"]["selector"]
    for selector in (WORKERS["spec"]["selector"], spread, budget):
        assert selector["matchLabels"].items() <= labels


def test_pods_reach_names_and_the_two_servers_and_are_reached_by_nobody() -> None:
    policy = MANIFESTS["base/network-policy.yaml"]["spec"]
    assert policy["podSelector"] == {}
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert "ingress" not in policy
    names, servers = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert {(port["protocol"], port["port"]) for port in servers["ports"]} == {("TCP", 5432), ("TCP", 6379)}


# --- Containment: the same as in compose.yaml ------------------------------------------------------------------------


def loosened(pod: dict[str, Any]) -> Iterator[str]:
    """Yield what a pod may do that it need not."""
    security = pod["securityContext"]
    if not (security["runAsNonRoot"] and security["runAsUser"] == security["runAsGroup"] == 10001):
        yield "it is not the image's user"
    if security["seccompProfile"] != {"type": "RuntimeDefault"}:
        yield "it may use every system call"
    if pod["automountServiceAccountToken"] is not False:
        yield "it has a key to the API server"
    if any(name.startswith("host") for name in pod):
        yield "it shares something with its node"
    if not all({"emptyDir", "secret"} & volume.keys() for volume in pod["volumes"]):
        yield "it mounts something else than what is its own"
    for container in pod["containers"] + pod.get("initContainers", []):
        security = container["securityContext"]
        if security != {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }:
            yield "its container is not contained"
        if not {"cpu", "memory"} <= container["resources"]["requests"].keys() or (
            "memory" not in container["resources"]["limits"]
        ):
            yield "it may use all of a node"


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_what_it_needs_and_no_more(name: str) -> None:
    assert list(loosened(PODS[name])) == []


@pytest.mark.parametrize(
    "change",
    [
        {"hostNetwork": True},
        {"automountServiceAccountToken": True},
        {"securityContext": {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": 0, "seccompProfile": {}}},
        {"volumes": [{"name": "docker", "hostPath": {"path": "/var/run/docker.sock"}}]},
    ],
)
def test_a_pod_that_may_do_more_is_found(change: dict[str, Any]) -> None:
    assert list(loosened(PODS["base/workers.yaml"] | change))


def test_the_namespace_refuses_what_is_not_contained() -> None:
    labels = MANIFESTS["base/namespace.yaml"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


# --- Settings and commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PODS)
def test_a_pods_environment_is_made_of_settings(name: str) -> None:
    settings = read_settings(environment(PODS[name]))
    given = {variable for variable in environment(PODS[name]) if variable.startswith(PREFIX)}
    assert given <= {PREFIX + field.upper() for field in settings.model_fields_set}
    fields = {PREFIX.lower() + field for field in Settings.model_fields}
    assert {key for key in secret_keys(PODS[name]) if key != "ca.pem"} <= fields


def test_a_misspelt_setting_is_found() -> None:
    pod = copy.deepcopy(PODS["base/workers.yaml"])
    pod["containers"][0]["env"].append({"name": "BANKRUN_HARTBEAT_FILE", "value": "/tmp/alive"})
    with pytest.raises(CannotStart, match="did you mean BANKRUN_HEARTBEAT_FILE"):
        read_settings(environment(pod))


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_writes_and_reads_is_mounted(name: str) -> None:
    pod = PODS[name]
    settings = read_settings(environment(pod))
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/tmp": False, str(SECRETS_DIR): True}
    for path in filter(None, (settings.heartbeat_file, settings.state_dir)):
        assert PurePosixPath("/tmp") in PurePosixPath(path).parents


@pytest.mark.parametrize("name", PODS)
def test_secrets_are_read_from_where_kubernetes_puts_them(name: str, tmp_path: Path) -> None:
    """The kubelet shows each key as a link into ..data, a link to a folder that it makes anew for each change."""
    values = {
        "bankrun_database_url": "postgresql://me:secret@postgres.bank.test/bank?sslmode=verify-full",
        "bankrun_broker_url": "rediss://:secret@broker.bank.test/0?ssl_ca_certs=/run/secrets/ca.pem",
        "ca.pem": "a certificate",
    }
    folder = tmp_path / "..2026_11_26"
    folder.mkdir()
    (tmp_path / "..data").symlink_to(folder.name)
    for key in secret_keys(PODS[name]):
        (folder / key).write_text(values[key] + "\n")
        (tmp_path / key).symlink_to(f"..data/{key}")
    settings = Settings(_secrets_dir=tmp_path)
    assert settings.database_url is not None
    assert settings.broker_url is not None
    assert "@postgres.bank.test/" in settings.database_url.get_secret_value()


def test_commands_and_their_options_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = []
    for pod in PODS.values():
        program, first, *words = pod["containers"][0]["command"]
        programs.append(f"{program} {first}")
        if program == "bankrun":
            command = Commands().get_command(None, first)
            with command.make_context(first, words):
                pass
        else:
            spec = importlib.util.spec_from_file_location("script", ROOT / first)
            assert spec is not None
            assert spec.loader is not None
            script = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(script)
            monkeypatch.setattr("sys.argv", [first, *words])
            assert script.arguments()
    assert sorted(programs) == ["bankrun compare", "bankrun worker", "python scripts/trigger.py"]


# --- Rolling out -----------------------------------------------------------------------------------------------------


def test_a_worker_that_ends_has_the_time_for_what_it_holds() -> None:
    pod = PODS["base/workers.yaml"]
    settings = read_settings(environment(pod))
    one_delivery = (settings.patience_ms + settings.attempt_timeout_ms) / 1000
    assert pod["terminationGracePeriodSeconds"] > settings.prefetch * one_delivery


def test_as_many_workers_as_are_asked_for_fit_into_postgres_also_while_they_are_replaced() -> None:
    spec, threads = WORKERS["spec"], read_settings(environment(PODS["base/workers.yaml"])).threads
    most = spec["replicas"] + spec["strategy"]["rollingUpdate"]["maxSurge"]
    assert most * (threads + 1) + LAB_CONNECTIONS <= POSTGRES_CONNECTIONS


def test_probes_look_at_the_file_that_a_worker_touches() -> None:
    (container,) = PODS["base/workers.yaml"]["containers"]
    settings = read_settings(environment(PODS["base/workers.yaml"]))
    probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    assert all(f"find {settings.heartbeat_file} " in probe["exec"]["command"][2] for probe in probes)
    starts = probes[0]["periodSeconds"] * probes[0]["failureThreshold"]
    assert starts > (settings.startup_wait_ms or 0) / 1000
    ages = [int(probe["exec"]["command"][2].partition('-newermt "-')[2].partition(" ")[0]) for probe in probes]
    assert all(earlier <= later for earlier, later in itertools.pairwise(ages))
