"""docs/deployment.md and docs/upgrading.md: commands that are understood, files that are there, an overlay that renders."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.deploy_words import DEPLOY, REPOSITORY, refused, unknown_variables

pytestmark = pytest.mark.contract
PAGES = [REPOSITORY / "docs" / name for name in ("deployment.md", "upgrading.md", "operations.md", "databases.md")]
STAND_INS = {"ID": "1", "DAY": "2026-11-01", "FILE": "f"}
COMPOSE_S_OWN = {"WATTLEDGER_SERVE_PORTS", "WATTLEDGER_METRICS_PORT", "WATTLEDGER_BACKUPS", "WATTLEDGER_IMAGE"}
"""Read by the compose file, not by a program."""
TESTS_OWN = {"WATTLEDGER_TEST_SERVER", "WATTLEDGER_TEST_CACHE"}


def commands(page: Path) -> list[str]:
    """Return what follows each `wattledger ` in code, and each command given to a container of ours."""
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    code += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) + re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)
    found = []
    for line in "\n".join(code).splitlines():
        said = re.sub(r"\s+#.*| > \S+$| && .*", "", line)
        inside = re.search(r"(?:^|/|-- |exec worker )wattledger (?=[a-z-])(.*)|run --rm (?:-T )?migrate (\S.*)", said)
        if inside:
            found.append(inside.group(1) or inside.group(2))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path) -> None:
    told = commands(page)
    assert len(told) >= 6
    for command in told:
        words = [STAND_INS.get(word, word) for word in shlex.split(command)]
        assert refused(words) is None, command
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\bWATTLEDGER_[A-Z_]*[A-Z]\b", text))
    assert unknown_variables(named - COMPOSE_S_OWN - TESTS_OWN) == set()
    compose = (DEPLOY / "compose/compose.yaml").read_text(encoding="utf-8")
    assert all(f"${{{variable}" in compose for variable in named & COMPOSE_S_OWN)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_it_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"\bdeploy/[\w./@-]*\w", text):
        assert (REPOSITORY / path).exists(), path


def overlays(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Write the files the page shows as it lays them out, and return what each overlay renders to."""
    text = PAGES[0].read_text(encoding="utf-8")
    shown = dict(re.findall(r"^```\n# (\w+)/kustomization.yaml.*\n((?s:.*?))^```", text, flags=re.MULTILINE))
    (folder / "wattledger").symlink_to(REPOSITORY)
    made = {}
    for name, content in shown.items():
        (folder / name).mkdir()
        (folder / name / "kustomization.yaml").write_text(content)
    for name in sorted(shown.keys() - {"cluster"}):
        kubectl = Path(sys.executable).parent / "kubectl"
        done = subprocess.run([kubectl, "kustomize", folder / name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "https://ledger.yours.org" in done.stdout
        made[name] = list(yaml.safe_load_all(done.stdout))
    return made


def test_the_overlays_it_shows_name_image_address_and_cluster_of_a_site(tmp_path: Path) -> None:
    made = overlays(tmp_path)
    assert made.keys() == {"ledger", "agents"}
    for name, image in (("ledger", "wattledger"), ("agents", "wattledger-agent")):
        pods = [thing["spec"]["template"]["spec"] for thing in made[name] if "template" in thing.get("spec", {})]
        (found,) = {container["image"] for pod in pods for container in pod["containers"]}
        assert found == f"registry.example.org/{image}:0.1.0"
        (named,) = [thing["data"] for thing in made[name] if "cluster" in thing.get("data", {})]
        assert named == {"cluster": "fra1-a"}
