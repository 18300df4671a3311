"""The agent stays light: running it loads none of the heavy packages the server is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = [
    "adbc_driver_manager",
    "alembic",
    "analytics",
    "click",
    "dataframely",
    "fastapi",
    "google.protobuf",
    "grpc",
    "ingest",
    "numpy",
    "opentelemetry",
    "pandas",
    "polars",
    "psycopg",
    "pyarrow",
    "pydantic",
    "rich",
    "sqlalchemy",
    "streamlit",
    "uvicorn",
    "wattledger",
]
_IMPORT_ALL = """
import importlib, pkgutil, sys
import collector
for module in pkgutil.walk_packages(collector.__path__, "collector."):
    if module.name != "collector.__main__":
        importlib.import_module(module.name)
print(",".join(sorted(sys.modules)))
"""


def test_importing_every_module_of_the_agent_loads_nothing_heavy() -> None:
    run = subprocess.run([sys.executable, "-c", _IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.strip().split(","))
    written = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "collector").rglob("*.py")
    }
    assert written - {"collector.__main__"} <= loaded, "a module was left out: is an __init__.py missing?"
    assert not loaded.intersection(FORBIDDEN)


def test_the_agent_s_help_is_quick_and_carries_examples() -> None:
    command = [sys.executable, "-m", "collector", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "examples:" in run.stdout
    assert "--spool-path" in run.stdout
