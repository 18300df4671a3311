"""The manifest of the watcher grants it to read, and its command is one that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from wattledger.cli import cli

pytestmark = pytest.mark.contract
MANIFEST = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "watcher.yaml"


def things() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


def test_the_watcher_may_read_and_nothing_else() -> None:
    rules = things()["ClusterRole"]["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"list", "watch"}
    granted = {(group, resource) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"]}
    assert granted == {("", "pods"), ("", "nodes"), ("batch", "jobs"), ("kueue.x-k8s.io", "workloads")}


def test_its_container_is_confined_and_its_command_is_understood() -> None:
    pod = things()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    words = [*container["command"][1:], *container["args"], "--help"]
    assert CliRunner().invoke(cli, words).exit_code == 0
