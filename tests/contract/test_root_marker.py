"""Who runs the tests decides whether root's are among them; leaving them out is no skip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
COLLECT_AS = """
import os, sys, pytest
os.geteuid = lambda: int(sys.argv[1])
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests/db/test_embedded.py"]))
"""


@pytest.mark.parametrize(("uid", "collected", "deselected"), [(0, True, False), (1000, False, True)])
def test_only_root_is_asked_what_happens_to_root(uid: int, collected: bool, deselected: bool) -> None:  # noqa: FBT001
    run = subprocess.run(
        [sys.executable, "-c", COLLECT_AS, str(uid)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ("::test_root_takes_no_data_folder_of_somebody_else" in run.stdout) == collected
    assert (" deselected" in run.stdout) == deselected
    assert "::test_starts_empty_and_stops" in run.stdout
