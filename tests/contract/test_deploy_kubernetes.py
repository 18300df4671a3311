"""deploy/kubernetes and deploy/agent as `kubectl kustomize` renders them: schemas hold, and every name that is used is there."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector import config
from tests.contract.deploy_words import DEPLOY, refused, unknown_variables

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_validate  # type: ignore[import-untyped]

pytestmark = pytest.mark.contract
KUBECTL = Path(sys.executable).parent / "kubectl"
FOLDERS = ("kubernetes", "agent")
OLDEST = "1.27"
"""What docs/schedulers.md promises."""
Thing = dict[str, Any]
WORKLOADS = {"Deployment", "Job", "DaemonSet", "CronJob"}


@cache
def rendered(folder: str) -> list[Thing]:
    done = subprocess.run([KUBECTL, "kustomize", DEPLOY / folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def everything() -> list[Thing]:
    return [thing for folder in FOLDERS for thing in rendered(folder)]


def template(thing: Thing) -> Thing:
    """Return what a workload makes its pods from."""
    spec = thing["spec"]["jobTemplate"]["spec"] if thing["kind"] == "CronJob" else thing["spec"]
    made: Thing = spec["template"]
    return made


def workloads() -> Iterator[tuple[Thing, Thing]]:
    for thing in everything():
        if thing["kind"] in WORKLOADS:
            yield thing, template(thing)["spec"]


def port_of(words: list[str], option: str) -> int:
    return int(words[words.index(option) + 1])


def named(kind: str) -> dict[str, Thing]:
    return {thing["metadata"]["name"]: thing for thing in everything() if thing["kind"] == kind}


@pytest.mark.parametrize("version", [OLDEST, "1.37"])
def test_each_thing_keeps_to_the_schema_of_the_oldest_and_the_newest_kubernetes(version: str) -> None:
    for thing in everything():
        kubernetes_validate.validate(thing, version, strict=True)


def test_what_it_needs_is_listed_and_nothing_lies_about_unused() -> None:
    for folder in FOLDERS:
        listed = set(yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text())["resources"])
        there = {path.name for path in (DEPLOY / folder).glob("*.yaml")} - {"kustomization.yaml"}
        assert listed == there
    kinds = [thing["kind"] for thing in everything()]
    assert kinds.count("PodDisruptionBudget") == 1
    assert {name for name, _ in named("Deployment").items()} == {
        "wattledger-server",
        "wattledger-worker",
        "wattledger-commands",
        "wattledger-dashboard",
        "wattledger-watcher",
    }


def test_each_thing_has_a_namespace_that_is_made_here() -> None:
    cluster_wide = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
    for folder, namespace in (("kubernetes", "wattledger"), ("agent", "wattledger-agent")):
        assert namespace in named("Namespace")
        for thing in rendered(folder):
            if thing["kind"] not in cluster_wide:
                assert thing["metadata"]["namespace"] == namespace, thing["metadata"]["name"]


def test_selectors_find_the_pods_they_mean() -> None:
    pods = [template(thing)["metadata"]["labels"] for thing, _ in workloads()]

    def found(labels: dict[str, str]) -> int:
        return sum(labels.items() <= each.items() for each in pods)

    for thing, pod in workloads():
        if thing["kind"] in {"Deployment", "DaemonSet"}:
            assert found(thing["spec"]["selector"]["matchLabels"]) == 1
        for beside in pod.get("affinity", {}).get("podAffinity", {}).values():
            assert all(found(term["labelSelector"]["matchLabels"]) == 1 for term in beside)
        for spread in pod.get("topologySpreadConstraints", []):
            assert found(spread["labelSelector"]["matchLabels"]) == 1
    assert found(named("PodDisruptionBudget")["wattledger-server"]["spec"]["selector"]["matchLabels"]) == 1
    for service in named("Service").values():
        assert found(service["spec"]["selector"]) == 1
    for policy in named("NetworkPolicy").values():
        selector = policy["spec"]["podSelector"]
        if "matchLabels" in selector:
            assert found(selector["matchLabels"]) == 1
        for rule in selector.get("matchExpressions", []):
            assert all(found({rule["key"]: value}) == 1 for value in rule["values"])


def test_ports_volumes_accounts_and_settings_that_are_named_are_there() -> None:
    ports = {
        thing["metadata"]["name"]: {
            port["name"]: port["containerPort"] for port in pod["containers"][0].get("ports", [])
        }
        for thing, pod in workloads()
    }
    for name, service in named("Service").items():
        (port,) = service["spec"]["ports"]
        assert ports[name][port["targetPort"]] == port["port"]
    for thing, pod in workloads():
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        for source in container.get("envFrom", []):
            assert source["configMapRef"]["name"] in named("ConfigMap")
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in named("PersistentVolumeClaim")
        if "serviceAccountName" in pod:
            assert pod["serviceAccountName"] in named("ServiceAccount")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["port"] in ports[thing["metadata"]["name"]]
    for binding in named("ClusterRoleBinding").values():
        assert binding["roleRef"]["name"] in named("ClusterRole")
        (subject,) = binding["subjects"]
        account = named("ServiceAccount")[subject["name"]]
        assert account["metadata"]["namespace"] == subject["namespace"]


def test_commands_and_variables_are_ones_that_the_programs_know() -> None:
    for thing, pod in workloads():
        (container,) = pod["containers"]
        words = [*container.get("command", ["wattledger"]), *container.get("args", [])]
        if words[0] == "wattledger":
            assert refused(words[1:]) is None, thing["metadata"]["name"]
        elif thing["metadata"]["name"] == "wattledger-commands":
            assert words == ["sleep", "infinity"]
        else:
            assert words == ["wattledger-agent", "run"]
        assert unknown_variables(entry["name"] for entry in container.get("env", [])) == set()
        for entry in container.get("env", []):
            path = str(entry.get("value", ""))
            if path.startswith("/run/secrets/"):
                assert any(path.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
    for settings in named("ConfigMap").values():
        assert unknown_variables(settings["data"]) == set()
    assert config.ENV_PREFIX == "WATTLEDGER_AGENT_"


def test_the_server_s_pods_keep_to_the_restricted_level_that_their_namespace_demands() -> None:
    assert named("Namespace")["wattledger"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for thing in rendered("kubernetes"):
        if thing["kind"] not in WORKLOADS:
            continue
        pod = template(thing)["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostPID", "hostNetwork", "hostIPC", "hostUsers"} & pod.keys()
        allowed = {"emptyDir", "secret", "persistentVolumeClaim", "configMap"}
        assert {key for volume in pod["volumes"] for key in volume} <= {"name", *allowed}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


def test_the_agents_have_a_namespace_of_their_own_because_they_see_the_host() -> None:
    (daemon_set,) = named("DaemonSet").values()
    pod = daemon_set["spec"]["template"]["spec"]
    assert pod["hostPID"] is True
    level = named("Namespace")["wattledger-agent"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "privileged"


def test_a_replica_that_ends_has_time_to_be_left_alone_and_then_to_finish() -> None:
    deployment = named("Deployment")["wattledger-server"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program, pause_s = container["lifecycle"]["preStop"]["exec"]["command"]
    service = (DEPLOY.parent / "wattledger/service.py").read_text(encoding="utf-8")
    (graceful_s,) = re.findall(r"timeout_graceful_shutdown=(\d+)", service)
    assert program == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(pause_s) + int(graceful_s)
    assert deployment["spec"]["replicas"] >= 2
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_traffic_is_refused_but_for_what_is_said() -> None:
    policies = named("NetworkPolicy")
    assert policies["wattledger-nothing-else"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (to_database,) = policies["wattledger-database"]["spec"]["egress"]
    assert [port["port"] for port in to_database["ports"]] == [5432]
    (names,) = policies["wattledger-names"]["spec"]["egress"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in names["to"], "NodeLocal DNSCache"
    assert {port["port"] for port in names["ports"]} == {53}
    (from_outside,) = policies["wattledger-server"]["spec"]["ingress"]
    (http,) = from_outside["ports"]
    assert http["port"] == named("Service")["wattledger-server"]["spec"]["ports"][0]["port"]


def test_what_has_metrics_is_scraped_there_and_let_through_to_whoever_scrapes() -> None:
    for name, option in (("wattledger-server", "--port"), ("wattledger-worker", "--metrics-port")):
        deployment = named("Deployment")[name]
        (container,) = template(deployment)["spec"]["containers"]
        annotations = template(deployment)["metadata"]["annotations"]
        port = port_of(container["args"], option)
        assert annotations == {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(port),
            "prometheus.io/path": "/metrics",
        }
        assert [each["containerPort"] for each in container["ports"]] == [port]
        (rule,) = named("NetworkPolicy")[name]["spec"]["ingress"]
        assert [each["port"] for each in rule["ports"]] == [port]
    (rule,) = named("NetworkPolicy")["wattledger-worker"]["spec"]["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    worker = template(named("Deployment")["wattledger-worker"])["spec"]["containers"][0]
    assert "0.0.0.0" in worker["args"], "a pod's loopback is nobody else's"


def test_the_backup_reads_what_the_worker_has_and_writes_to_a_claim_of_its_own() -> None:
    cron = named("CronJob")["wattledger-backup"]
    pod = template(cron)["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    claims = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
    assert (claims["home"], mounts["home"]["readOnly"]) == ("wattledger-worker", True)
    assert container["args"][1] == mounts["backup"]["mountPath"]
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets == {"wattledger-backup"}, "the services' login cannot dump, and this one cannot write"
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    for name in ("wattledger-database", "wattledger-outside"):
        (rule,) = named("NetworkPolicy")[name]["spec"]["podSelector"]["matchExpressions"]
        assert "wattledger-backup" in rule["values"]


def test_no_service_has_the_url_of_another_or_the_owner_s() -> None:
    logins = {
        ("Deployment", "wattledger-server"): "wattledger-serve-database",
        ("Deployment", "wattledger-worker"): "wattledger-worker-database",
        ("Deployment", "wattledger-commands"): "wattledger-database",
        ("Job", "wattledger-migrate"): "wattledger-database",
    }
    for (kind, name), secret in logins.items():
        volumes = template(named(kind)[name])["spec"]["volumes"]
        assert [volume["secret"]["secretName"] for volume in volumes if "secret" in volume] == [secret]
    assert named("Deployment")["wattledger-commands"]["spec"]["replicas"] == 0, "made one for as long as it is needed"


def test_everybody_has_requests_secrets_are_files_and_folders_in_memory_are_bounded() -> None:
    for thing, pod in workloads():
        (container,) = pod["containers"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}, thing["metadata"]["name"]
        assert "cpu" not in container["resources"]["limits"], "throttled for nothing"
        assert not [entry for entry in container.get("env", []) if "secretKeyRef" in entry.get("valueFrom", {})]
        assert not [source for source in container.get("envFrom", []) if "secretRef" in source]
        assert all(volume["emptyDir"].get("sizeLimit") for volume in pod["volumes"] if "emptyDir" in volume)
        assert pod.get("enableServiceLinks") is False
        if thing["metadata"]["name"] != "wattledger-watcher":
            assert pod["automountServiceAccountToken"] is False
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        if thing["kind"] != "DaemonSet":  # the agent's own folders are on the node
            assert "/tmp" in writable, (
                f"{thing['metadata']['name']} has a read-only root and nowhere for temporary files"
            )
    assert named("DaemonSet")["wattledger-agent"]["spec"]["template"]["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_who_ends_is_given_longer_than_it_takes() -> None:
    work = (DEPLOY.parent / "wattledger/work.py").read_text(encoding="utf-8")
    (sealing_s,) = re.findall(r"_SEALING_ENDS_WITHIN_S: Final = (\d+)", work)
    grace_s = template(named("Deployment")["wattledger-worker"])["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > 2 * int(sealing_s)


def test_watcher_and_agents_have_the_cluster_s_name_from_one_place() -> None:
    # Under two names a pod is two jobs that claim one device, and its energy is nobody's.
    names = {}
    for folder, kind, variable in (
        ("kubernetes", "Deployment", "CLUSTER"),
        ("agent", "DaemonSet", "WATTLEDGER_AGENT_CLUSTER"),
    ):
        maps = {
            (thing["metadata"]["namespace"], thing["metadata"]["name"]): thing["data"]
            for thing in rendered(folder)
            if thing["kind"] == "ConfigMap"
        }
        (taken,) = [
            (thing["metadata"]["namespace"], entry["valueFrom"]["configMapKeyRef"])
            for thing in rendered(folder)
            if thing["kind"] == kind
            for entry in template(thing)["spec"]["containers"][0].get("env", [])
            if entry["name"] == variable
        ]
        names[folder] = maps[taken[0], taken[1]["name"]][taken[1]["key"]]
    assert names["kubernetes"] == names["agent"]
    watcher = template(named("Deployment")["wattledger-watcher"])["spec"]["containers"][0]
    assert watcher["args"][:2] == ["--cluster", "$(CLUSTER)"]
    for folder in FOLDERS:
        assert yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text())["components"] == ["../cluster"]
