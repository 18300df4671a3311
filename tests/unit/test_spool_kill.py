"""Killing the agent at any moment loses nothing that was stored and stores nothing twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collector.spool import Lane, Spool

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


# Takes in bodies of others beside its own batches, as an agent with a listener does, and forgets some of either.
_BOTH_LANES = """
import sys
from pathlib import Path
from collector.spool import Envelope, Lane, Spool
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30)
traces = Envelope("/v1/traces", "application/json")
turn = 0
while True:
    turn += 1
    print("forward", spool.put_forward(b"spans" * 300, traces, turn), flush=True)
    print("put", spool.put(lambda uuid, number: f"{uuid} {number} ".encode() * 100, turn), flush=True)
    if turn % 4 == 0:
        oldest = spool.oldest(lane=Lane.FORWARDS)
        spool.acknowledge(oldest.sequence, Lane.FORWARDS)
        print("forwarded", oldest.sequence, flush=True)
    if turn % 5 == 0:
        spool.quarantine(spool.oldest().sequence, "no", turn)
"""


def test_neither_lane_loses_or_doubles_a_body_over_many_kills(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    said = _said_over_kills(_BOTH_LANES, path)
    for verb in ("put", "forward"):
        numbers = [number for found, number in said if found == verb]
        assert len(numbers) > KILLS
        assert numbers == sorted(set(numbers)), "an id was given out twice"
    spool = Spool(path, max_bytes=1 << 30)
    assert not spool.damaged_files
    forwards = _numbers(spool, Lane.FORWARDS)
    gone = {number for found, number in said if found == "forward"} - set(forwards)
    forwarded = {number for found, number in said if found == "forwarded"}
    assert len(gone - forwarded) <= KILLS
    batches = set(_numbers(spool, Lane.BATCHES))
    refused = {sequence for sequence, _, _ in spool.refusals()}
    assert {number for found, number in said if found == "put"} <= batches | refused
    assert not batches & refused
    spool.close()


def _said_over_kills(program: str, path: Path) -> list[tuple[str, int]]:
    said: list[tuple[str, int]] = []
    pauses = random.Random(11)
    for _ in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
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
        said += [(line.split()[0], int(line.split()[1])) for line in lines if line.endswith("\n")]
    return said


def _numbers(spool: Spool, lane: Lane) -> list[int]:
    found: list[int] = []
    while (batch := spool.oldest(after=max(found, default=0), lane=lane)) is not None:
        found.append(batch.sequence)
    return found
