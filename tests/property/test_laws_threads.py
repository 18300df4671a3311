"""Law 6: the same inputs are the same bytes, ten times over, with one thread and with two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.property
ROOT = Path(__file__).resolve().parents[2]


def _hashes(threads: int) -> set[tuple[str, ...]]:
    # A thread pool is made once per process, so each count needs a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.busy_site", "10"],
        cwd=ROOT,
        env={**os.environ, "POLARS_MAX_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(threads)] * 10
    return {tuple(line[1:]) for line in lines}


def test_ten_closes_with_one_thread_and_ten_with_two_are_the_same_bytes() -> None:
    one, two = _hashes(1), _hashes(2)
    assert len(one) == 1
    assert one == two
