"""The mutation run itself: which faults it puts in, that it notices what tests notice, and that what they do not is listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.operators import mutants

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]


def _faults(source: str) -> dict[str, str]:
    return {mutant.what: mutant.source for mutant in mutants(source)}


def test_signs_terms_and_roundings_are_changed_one_at_a_time() -> None:
    assert _faults("def f(a, b):\n    return (a + b) // b") == {
        "// rounds": "def f(a, b):\n    return (a + b + b // 2) // b",
        "divisor dropped": "def f(a, b):\n    return a + b",
        "+ becomes -": "def f(a, b):\n    return (a - b) // b",
        "second term dropped": "def f(a, b):\n    return a // b",
    }


def test_boundaries_conditions_and_extremes_are_moved() -> None:
    found = _faults("def f(a):\n    if a < 3:\n        return max(a, -1)\n    return not a")
    assert set(found) == {
        "condition negated", "Lt becomes LtE", "3 becomes 4", "max becomes min", "USub dropped", "1 becomes 2", "Not dropped",
    }  # fmt: skip
    assert found["Lt becomes LtE"] == "def f(a):\n    if a <= 3:\n        return max(a, -1)\n    return not a"


def test_what_computes_nothing_is_left_alone() -> None:
    source = '"""1 + 1"""\nimport x\n\ndef f(a: int=1) -> int:\n    """2 < 3"""\n    raise ValueError(a + 1)'
    assert _faults(source) == {}


def test_of_several_such_faults_on_a_line_each_has_its_number() -> None:
    assert [
        mutant.nth for mutant in mutants("def f(a, b):\n    return a < 3 and b < 3") if mutant.what == "3 becomes 4"
    ] == [0, 1]


def test_whatever_is_said_to_change_nothing_is_said_of_a_line_that_stands() -> None:
    for said in EQUIVALENTS:
        source = (ROOT / "analytics" / "model" / f"{said.module}.py").read_text()
        assert said.text in {line.strip() for line in source.splitlines()}, said


def test_twenty_mutants_of_the_split_of_money_are_noticed(tmp_path: Path) -> None:
    """A run as ``make mutation`` makes it, small: whatever survives is named with its place."""
    report = tmp_path / "mutation.json"
    command: tuple[str, ...] = (
        sys.executable,
        "-m",
        "tests.mutation",
        "--only",
        "money",
        "--most",
        "20",
        "--report",
        str(report),
    )
    command += ("--tests", "tests/unit/test_model_money.py", "tests/unit/test_model_usage.py")
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = json.loads(report.read_text())
    assert (told["finished"], told["only"], told["left_out"]) == (True, ["money"], [])
    assert told["mutants"] == 20
    assert told["score_percent"] >= 80, done.stderr
    assert told["killed"] + len(told["survivors"]) == 20
    assert all({"module", "line", "what"} <= set(survivor) for survivor in told["survivors"])
    assert done.returncode == (0 if told["score_percent"] >= 90 else 1)
