"""The wheel, installed outside the checkout, is a whole installation: migrations, pages and their settings are in it.

The new environment borrows the dependencies of this one and gets nothing of ours but the wheel.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    """The interpreter of a new environment with the wheel in it."""
    target = folder / "venv"
    venv.create(target, with_pip=False)
    interpreter = target / "bin" / "python"
    ours, borrowed = (
        subprocess.run(
            [path, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
            env=EMPTY_ENVIRONMENT,
        ).stdout.strip()
        for path in (interpreter, sys.executable)
    )
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(interpreter),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True, env=EMPTY_ENVIRONMENT)
    # A plain path, not a site folder: the .pth of the editable install in there is not followed.
    (Path(ours) / "borrowed.pth").write_text(f"{borrowed}\n{sysconfig.get_path('platlib')}\n")
    return interpreter


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=EMPTY_ENVIRONMENT,
        timeout=120,
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


def test_up_once_works_from_the_wheel_outside_the_checkout(python: Path, folder: Path) -> None:
    command = (
        "-m",
        "wattledger",
        "--home",
        str(folder / "home"),
        "up",
        "--once",
        "--port",
        "0",
        "--dashboard-port",
        "0",
    )
    done = run(python, folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"state           {folder / 'home'}" in done.stdout


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
