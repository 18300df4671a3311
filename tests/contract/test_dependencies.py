"""What our packages import is what pyproject.toml declares: nothing is there only because something else brings it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
NOT_AT_RUN_TIME = "_typeshed"  # a fiction of type checkers, behind TYPE_CHECKING
OURS = ("analytics", "collector", "dashboard", "ingest", "wattledger")


def normalized(requirement: str) -> str:
    """Return the distribution's name as packaging writes it, without extras and versions."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found.group()).lower()


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level names a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def undeclared(packages: Iterable[str], requirements: Iterable[str]) -> dict[str, str]:
    """Return what packages of ours import that none of the requirements provides, with where."""
    declared = {normalized(requirement) for requirement in requirements}
    sources: dict[str, str] = {}
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(ast.parse(path.read_bytes())):
                sources.setdefault(name, str(path.relative_to(ROOT)))
    assert "httpx" in sources  # else nothing was read
    providers = packages_distributions()
    return {
        name: f"imported by {source}, provided by {sorted(set(providers.get(name, [])))}"
        for name, source in sources.items()
        if name not in sys.stdlib_module_names
        and name not in (*OURS, NOT_AT_RUN_TIME)
        and not declared.intersection(map(normalized, providers.get(name, [])))
    }


def test_every_third_party_package_we_import_is_declared() -> None:
    assert undeclared(OURS, project()["dependencies"]) == {}


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("agent", ("collector",)),
        ("server", ("collector", "ingest", "analytics", "wattledger")),
        ("dashboard", ("dashboard",)),
    ],
)
def test_an_extra_names_all_that_its_part_imports(extra: str, packages: tuple[str, ...]) -> None:
    assert undeclared(packages, project()["optional-dependencies"][extra]) == {}


def test_the_extras_together_are_the_dependencies_and_a_node_s_list_is_the_agent_s() -> None:
    table = project()
    parts = [set(table["optional-dependencies"][extra]) for extra in ("agent", "server", "dashboard")]
    without_http2 = {requirement.replace("[http2]", "") for requirement in set.union(*parts)}
    assert without_http2 == set(table["dependencies"])
    lines = (ROOT / "deploy" / "agent" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} == parts[0]
