"""What is shipped to run the agent with: units systemd accepts, a manifest whose parts fit, settings that exist."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector import config
from collector.jobs.source import HOOK_FOLDER

pytestmark = pytest.mark.contract

AGENT = Path(__file__).resolve().parents[2] / "deploy/agent"
UNIT = AGENT / "wattledger-agent.service"


def section(path: Path, name: str) -> dict[str, list[str]]:
    """Read a unit file, in which a key may come several times."""
    found: dict[str, list[str]] = {}
    inside = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            inside = line == f"[{name}]"
        elif inside and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    manifest = yaml.safe_load((AGENT / "daemonset.yaml").read_text(encoding="utf-8"))
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("with_drop_in", [False, True])
def test_systemd_accepts_the_unit_and_calls_it_well_confined(with_drop_in: bool, tmp_path: Path) -> None:  # noqa: FBT001
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    unit = tmp_path / UNIT.name
    # The program is not installed where the tests run; everything else is checked as shipped.
    unit.write_text(
        re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    if with_drop_in:
        folder = tmp_path / f"{UNIT.name}.d"
        folder.mkdir()
        shutil.copy(AGENT / "unprivileged.conf", folder)
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    # 10 is unconfined. 4.0 leaves room for other versions of systemd, which weigh differently.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(unit)]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" not in judged.stderr:
        assert judged.returncode == 0, judged.stdout[-400:]


def test_the_unit_reloads_by_sighup_and_has_time_to_drain() -> None:
    service = section(UNIT, "Service")
    assert service["Type"] == ["notify"]
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert int(service["TimeoutStopSec"][0]) > 5
    assert int(service["WatchdogSec"][0]) >= 30
    assert service["Restart"] == ["always"]


def test_the_unit_may_write_where_the_defaults_write_and_only_the_capability_it_explains() -> None:
    service = section(UNIT, "Service")
    defaults = config.Settings(node="n")
    assert defaults.spool_path.startswith(f"/var/lib/{service['StateDirectory'][0]}/")
    assert defaults.release_file.startswith(f"/run/{service['RuntimeDirectory'][0]}/")
    (writable,) = service["ReadWritePaths"]
    assert HOOK_FOLDER.is_relative_to(writable.removeprefix("-"))
    assert str(HOOK_FOLDER) in service["ExecStartPre"][0].split()
    text = UNIT.read_text(encoding="utf-8")
    for capability in service["CapabilityBoundingSet"][0].split():
        assert f"# {capability}: " in text
    assert section(AGENT / "unprivileged.conf", "Service")["DynamicUser"] == ["yes"]
    configparser.RawConfigParser(strict=True).read_string((AGENT / "unprivileged.conf").read_text(encoding="utf-8"))


def test_every_setting_in_the_manifest_is_one_and_makes_a_valid_whole(container: dict[str, Any]) -> None:
    given = {entry["name"]: entry.get("value", "node-1") for entry in container["env"]}
    ours = {name: value for name, value in given.items() if name.startswith(config.ENV_PREFIX)}
    assert len(ours) >= 3
    settings = config.load(None, ours, {}).settings
    assert settings.node == "node-1"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for path in (settings.spool_path, settings.token_file, settings.release_file):
        assert any(Path(path).is_relative_to(mount) for mount in mounts), path


def test_the_manifest_s_parts_fit_each_other(pod: dict[str, Any], container: dict[str, Any]) -> None:
    manifest = yaml.safe_load((AGENT / "daemonset.yaml").read_text(encoding="utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("apps/v1", "DaemonSet")
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    assert manifest["spec"]["selector"]["matchLabels"].items() <= labels.items()
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert all(len(volume.keys() - {"name"}) == 1 for volume in pod["volumes"])
    assert pod["hostPID"] is True
    assert pod["terminationGracePeriodSeconds"] > 5


def test_the_manifest_has_no_key_that_kubernetes_does_not_know(pod: dict[str, Any], container: dict[str, Any]) -> None:
    # Of core/v1 PodSpec and Container, what is used here: a misspelt key would be dropped in silence by older servers.
    pod_keys = (
        "nodeSelector tolerations priorityClassName automountServiceAccountToken enableServiceLinks containers volumes"
    )
    pod_keys += " terminationGracePeriodSeconds hostPID hostNetwork dnsPolicy securityContext"
    assert pod.keys() <= set(pod_keys.split())
    assert container.keys() == {"name", "image", "command", "env", "resources", "securityContext", "volumeMounts"}
    assert all(entry.keys() in ({"name", "value"}, {"name", "valueFrom"}) for entry in container["env"])
    assert all(isinstance(entry.get("value", ""), str) for entry in container["env"]), (
        "a value that is no text is refused"
    )
    assert all(mount.keys() <= {"name", "mountPath", "readOnly"} for mount in container["volumeMounts"])
    for volume in pod["volumes"]:
        assert volume.keys() - {"name"} <= {"hostPath", "secret"}
        assert volume.get("hostPath", {}).get("type", "Directory") in ("Directory", "DirectoryOrCreate")
    quantities = [amount for part in container["resources"].values() for amount in part.values()]
    assert all(re.fullmatch(r"[0-9]+(m|Mi)", amount) for amount in quantities)


def test_the_pod_holds_no_power_it_does_not_need(pod: dict[str, Any], container: dict[str, Any]) -> None:
    confined = container["securityContext"]
    assert confined["readOnlyRootFilesystem"] is True
    assert confined["allowPrivilegeEscalation"] is False
    assert confined["capabilities"] == {"drop": ["ALL"]}
    assert not confined.get("privileged", False)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    writable = [mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["spool", "run"]
    resources = container["resources"]
    # The limit must not be what ends an agent that keeps to its own budget of 45 MiB.
    assert (resources["limits"]["memory"], "cpu" in resources["limits"]) == ("128Mi", False)


def test_what_a_node_installs_is_what_the_agent_may_import() -> None:
    lines = (AGENT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = {re.split(r"[\[>=<]", line)[0] for line in lines if line and not line.startswith("#")}
    assert names == {"httpx", "nvidia-ml-py", "zstandard"}


def test_the_image_that_the_manifest_names_is_built_here_from_what_a_node_installs(container: dict[str, Any]) -> None:
    recipe = (AGENT / "Dockerfile").read_text(encoding="utf-8")
    version = tomllib.loads((AGENT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert container["image"] == f"wattledger-agent:{version}"
    assert f"docker build -f deploy/agent/Dockerfile -t {container['image']} ." in recipe
    instructions = [line.split()[0] for line in recipe.splitlines() if line and not line.startswith("#")]
    assert set(instructions) == {"ARG", "FROM", "COPY", "RUN", "CMD"}
    assert "pip install --no-cache-dir -r /tmp/requirements.txt" in recipe
    assert "--no-deps /tmp/wheels/*.whl" in recipe
    assert f"CMD {json.dumps(container['command'])}" in recipe
