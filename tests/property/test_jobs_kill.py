"""An agent that is killed at any moment, against the server's own way of taking events in: no begin doubled, no end lost.

Rows reach the server only when a batch is stored, some readings after they were told; a kill loses those in memory. What the server
then holds must be what the hooks told, to the microsecond.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.probe import Row
from collector.wire import Stream
from ingest.store.intervals import Told, meaning
from tests.fakes.job_node import GPUS, JobNode, S

pytestmark = pytest.mark.property

T0 = 1_800_000_000 * S
Key = tuple[str, int, str]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 1), st.floats(0.001, 4.0)),
        st.tuples(st.just("end"), st.integers(0, 1), st.floats(0.001, 4.0)),
        st.tuples(st.just("read"), st.just(0), st.sampled_from([0.1, 5.0, 5.0])),
        st.tuples(st.just("store"), st.just(0), st.just(0.0)),
        st.tuples(st.just("kill"), st.just(0), st.sampled_from([0.0, 1.0, 300.0])),
        st.tuples(st.just("disk"), st.just(0), st.just(0.0)),
    ),
    max_size=40,
)


class Server:
    """The allocations a server holds, by job and device, as they follow from the events it kept."""

    def __init__(self) -> None:
        self.told: dict[Key, set[Told]] = {}

    def take(self, rows: list[Row]) -> None:
        for row in rows:
            values = {name: row[name] for name in ("at_us", "action", "job_started_at_us")}
            at_us, action, started_us = (value for value in values.values() if isinstance(value, int))
            key = (str(row["native_job_id"]), started_us, str(row["device_uuid"]))
            self.told.setdefault(key, set()).add(Told(_instant(at_us), action, None, None, 1, str(row["evidence"])))

    def spans(self) -> set[tuple[Key, int, int | None]]:
        return {
            (key, _us(row.start_at), None if row.end_at is None else _us(row.end_at))
            for key, told in self.told.items()
            for row in meaning(told, _instant(key[1]))
        }


def _instant(at_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)


def _us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@given(STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_killed_anywhere_the_books_hold_what_the_hooks_told(steps: list[tuple[str, int, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node, server = JobNode(Path(folder)), Server()
        truth: dict[Key, tuple[int, int | None]] = {}
        running: dict[int, tuple[int, int, int]] = {}
        in_memory: list[Row] = []
        number = 30

        def read(after_s: float) -> None:
            node.read(after_s)
            in_memory.extend(node.rows.get(Stream.ALLOCATION, []))

        for what, gpu, seconds in steps:
            if what == "start" and gpu not in running:
                node.clock.advance(seconds)
                number += 1
                node.hook("start", number, str(gpu))
                at_us = node.clock.wall_us
                running[gpu] = (number, at_us // S * S, at_us)
                truth[str(number), at_us // S * S, GPUS[gpu].uuid] = (at_us, None)
            elif what == "end" and gpu in running:
                node.clock.advance(seconds)
                ended, started_us, at_us = running.pop(gpu)
                node.hook("end", ended, str(gpu))
                truth[str(ended), started_us, GPUS[gpu].uuid] = (at_us, node.clock.wall_us)
            elif what == "read":
                read(seconds)
            elif what == "store":
                server.take(in_memory)
                in_memory.clear()
            elif what == "disk":
                node.facts.broken = not node.facts.broken
            elif what == "kill":
                in_memory.clear()
                node.clock.advance(seconds)
                node.restart()
        node.facts.broken = False
        read(5.0)
        read(5.0)
        server.take(in_memory)
        assert server.spans() == {(key, *span) for key, span in truth.items()}
