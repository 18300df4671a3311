"""The offline bundle: made by its script, checked and installed without an index, and what it installed runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.contract.deploy_words import DEPLOY, REPOSITORY

pytestmark = pytest.mark.contract
INSTALL = DEPLOY / "bundle/install.sh"
NO_INDEX = {
    name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "WATTLEDGER_", "VIRTUAL_ENV"))
}
"""Without pip's settings; `--no-index` and `--isolated` are in the script."""


def small_bundle(folder: Path) -> Path:
    """Return a bundle in which nothing is to be installed."""
    (folder / "wheels").mkdir(parents=True)
    shutil.copy(INSTALL, folder)
    (folder / "constraints.txt").write_text("")
    listed = subprocess.run(
        ["sha256sum", "install.sh", "constraints.txt"], cwd=folder, check=True, capture_output=True, text=True
    )
    (folder / "SHA256SUMS").write_text(listed.stdout)
    return folder


def install(bundle: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [bundle / "install.sh", *words],
        env=NO_INDEX | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_damaged_bundle_and_one_with_files_of_another_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    (bundle / "wheels/stranger.whl").write_text("")
    refused = install(bundle, "server", str(tmp_path / "made"))
    assert (refused.returncode, "lists 2 files, and there are 3" in refused.stderr) == (1, True)
    (bundle / "constraints.txt").write_text("changed\n")
    refused = install(bundle, "server", str(tmp_path / "made"))
    assert (refused.returncode, "damaged or missing" in refused.stderr) == (1, True)
    assert not (tmp_path / "made").exists()


def test_words_it_does_not_know_are_answered_with_how_it_is_used(tmp_path: Path) -> None:
    refused = install(small_bundle(tmp_path / "bundle"), "everything")
    assert refused.returncode == 2
    assert "./install.sh server [FOLDER]" in refused.stderr


def test_make_knows_the_bundle() -> None:
    planned = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "bundle"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert "deploy/bundle/build" in planned.stdout


def test_its_packs_are_made_anew_and_the_invented_examples_are_none_of_them() -> None:
    script = (DEPLOY / "bundle/build").read_text(encoding="utf-8")
    assert '"$root/deploy/packs/build" "$tree/packs"' in script
    assert "deploy/examples/{" not in script


@pytest.mark.slow
def test_what_it_holds_installs_server_and_agent_where_there_is_no_index(tmp_path: Path) -> None:
    subprocess.run([DEPLOY / "bundle/build", tmp_path], check=True, env=os.environ | {"PYTHON": sys.executable})
    (archive,) = tmp_path.glob("wattledger-*.tar.gz")
    sums = Path(f"{archive}.sha256")
    subprocess.run(["sha256sum", "--check", "--quiet", sums.name], cwd=tmp_path, check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    bundle = tmp_path / archive.name.removesuffix(".tar.gz")
    assert not (bundle / "deploy/compose/secrets").exists()
    assert {path.name for path in (bundle / "packs").iterdir()} == {
        "prices-api.yaml",
        "intensity-yearly.csv",
        "README.md",
    }
    for part in ("server", "agent"):
        done = install(bundle, part, str(tmp_path / part))
        assert done.returncode == 0, done.stdout + done.stderr
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    asked = subprocess.run(
        [tmp_path / "server/bin/wattledger", "--version"], check=True, capture_output=True, text=True
    )
    assert version in asked.stdout
    seen = subprocess.run(
        [tmp_path / "agent/bin/wattledger-agent", "--once"], env=NO_INDEX, capture_output=True, text=True, check=False
    )
    assert seen.returncode in (0, 1), seen.stderr  # 1: nothing here can be metered, which on a build machine is so
    assert isinstance(json.loads(seen.stdout), dict)
    assert not list((tmp_path / "agent").glob("lib/python3*/site-packages/polars"))
