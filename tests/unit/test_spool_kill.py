"""Killing the agent at any moment loses nothing that was stored and stores nothing twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collector.spool import Spool

pytestmark = pytest.mark.e2e

KILLS = 12
# Stores batches for ever and says so, one line each, only after put has returned; takes every third away again.
_WRITER = """
import sys
from pathlib import Path
from collector.spool import Spool
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30)
while True:
    sequence = spool.put(lambda uuid, number: f"{uuid} {number} ".encode() * 400, 0)
    print("put", sequence, flush=True)
    if sequence % 3 == 0:
        oldest = spool.oldest()
        spool.acknowledge(oldest.sequence)
        print("ack", oldest.sequence, flush=True)
"""


def test_nothing_stored_is_lost_and_nothing_is_doubled_over_many_kills(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    put: list[int] = []
    acknowledged: set[int] = set()
    pauses = random.Random(7)
    for _ in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]  # it has started
        time.sleep(pauses.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        lines += rest.splitlines(keepends=True)
        for line in lines:
            if line.endswith("\n"):
                verb, number = line.split()
                put.append(int(number)) if verb == "put" else acknowledged.add(int(number))
    assert len(put) > KILLS
    assert put == sorted(set(put)), "an id was given out twice"
    spool = Spool(path, max_bytes=1 << 30)
    assert not spool.damaged_files
    held: dict[int, bytes] = {}
    while (batch := spool.oldest(after=max(held, default=0))) is not None:
        held[batch.sequence] = batch.body
    assert all(body == f"{spool.uuid} {sequence} ".encode() * 400 for sequence, body in held.items())
    # A kill between commit and print may leave one batch more, or one less, than was said; never a said one lost.
    gone = set(put) - held.keys() - acknowledged
    assert len(gone) <= KILLS
    assert all(number < min(held, default=0) for number in gone), "a batch nobody took away is missing"
    assert len(held.keys() - set(put)) <= KILLS
    assert not held.keys() & acknowledged
    spool.close()
