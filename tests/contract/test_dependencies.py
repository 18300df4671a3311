"""What our packages import is what pyproject.toml declares: nothing is there only because something else brings it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

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


def test_every_third_party_package_we_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {normalized(requirement) for requirement in project["dependencies"]}
    sources: dict[str, str] = {}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(ast.parse(path.read_bytes())):
                sources.setdefault(name, str(path.relative_to(ROOT)))
    assert {"google", "httpx", "polars"} <= sources.keys()  # else nothing was read
    providers = packages_distributions()
    undeclared = {
        name: f"imported by {source}, provided by {sorted(set(providers.get(name, [])))}"
        for name, source in sources.items()
        if name not in sys.stdlib_module_names
        and name not in (*OURS, NOT_AT_RUN_TIME)
        and not declared.intersection(map(normalized, providers.get(name, [])))
    }
    assert undeclared == {}
