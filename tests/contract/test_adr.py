"""Decisions are found by their number: each has its own, in its file's name and in its title, and none is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

FOLDER = Path(__file__).resolve().parents[2] / "docs/adr"


def test_each_decision_has_a_number_of_its_own_and_none_is_missing() -> None:
    files = sorted(FOLDER.glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in files] == list(range(1, len(files) + 1))
    for path in files:
        assert path.read_text(encoding="utf-8").startswith(f"# {int(path.name[:4])}. "), path.name
