"""How far a fleet has been fed, kept in one small file so that a killed feed goes on with nothing lost and nothing twice.

The steps in hand are written before they are sent; after a crash they are sent again in the same batches, whose ids ingest
knows.
"""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from wattledger.simulate.fleet import LIVE_BATCH_S, container_s
from wattledger.simulate.spec import US_PER_S

HISTORY_BATCH_S: Final = 1800
"""A body costs its sender and ingest 2 ms each whatever is in it; sixteen of these fill the groups that ingest commits."""
CATCH_UP_BATCH_S: Final = (HISTORY_BATCH_S, 60)
"""Batch lengths tried when behind, longest first: one step is the container of its batches."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stretch [start, end) to send, in batches of one length."""

    start_us: int
    end_us: int
    batch_seconds: int


class CursorError(ValueError):
    """The cursor file is not of this fleet or not readable: feeding on would repeat or skip data."""


class Cursor:
    """Which instant everything before has been acknowledged up to, and the steps in hand, oldest first."""

    def __init__(self, path: Path | None, fleet_start_us: int) -> None:
        """Read the file where there is one; without a path nothing outlives the process."""
        self._path = path
        self._fleet_start_us = fleet_start_us
        self.done_until_us = fleet_start_us
        self._in_hand: deque[Step] = deque()
        self._again: deque[Step] = deque()
        if path is not None and path.exists():
            self._read(path)

    def resume(self) -> None:
        """Let every step in hand be sent again: whoever sent them is gone."""
        self._again = self._in_hand + self._again
        self._in_hand = deque()

    def next_step(self, now_us: int) -> Step | None:
        """Return what to send after the steps in hand, the longest step that is over; none while live and up to date."""
        if self._again:
            return self._again[0]
        start_us = self._in_hand[-1].end_us if self._in_hand else self.done_until_us
        for batch_seconds in CATCH_UP_BATCH_S:
            length_us = container_s(batch_seconds) * US_PER_S
            if (start_us - self._fleet_start_us) % length_us == 0 and start_us + length_us <= now_us:
                return Step(start_us, start_us + length_us, batch_seconds)
        end_us = start_us + LIVE_BATCH_S * US_PER_S
        return Step(start_us, end_us, LIVE_BATCH_S) if end_us <= now_us else None

    def begin(self, step: Step) -> None:
        """Record that a step is being sent."""
        if self._again and self._again[0] == step:
            self._again.popleft()
        self._in_hand.append(step)
        self._write()

    def finish(self, step: Step) -> None:
        """Record that all of a step, the oldest in hand, is acknowledged."""
        if self._in_hand and self._in_hand.popleft() != step:
            raise ValueError(f"{step} is not the oldest step in hand")
        self.done_until_us = step.end_us
        self._write()

    def _read(self, path: Path) -> None:
        try:
            kept = json.loads(path.read_text())
            start_us, done_us, hand = kept["fleet_start_us"], kept["done_until_us"], kept["in_hand"]
            # Until 0.1 one step, or none, was in hand.
            steps = hand if isinstance(hand, list) else [hand] if hand else []
            self._again = deque(Step(**step) for step in steps)
        except (ValueError, KeyError, TypeError) as error:
            raise CursorError(f"{path} is no feed cursor ({error}); remove the demo's state folder") from error
        if start_us != self._fleet_start_us:
            raise CursorError(f"{path} belongs to a fleet that began at {start_us}, not at {self._fleet_start_us}")
        self.done_until_us = done_us

    def _write(self) -> None:
        if self._path is None:
            return
        kept = {
            "fleet_start_us": self._fleet_start_us,
            "done_until_us": self.done_until_us,
            "in_hand": [asdict(step) for step in (*self._in_hand, *self._again)],
        }
        beside = self._path.with_suffix(".new")
        with beside.open("w") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
