"""The queue in front of the writers, with a sink that is no database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ingest.errors import UnavailableError
from ingest.receivers.native import Body
from ingest.store.group import Outcome, Result
from ingest.store.prepare import Submission
from ingest.store.writer import Limits, Writer
from tests.db.ingest_harness import batch_meta

pytestmark = pytest.mark.unit


def submission(rows: int, size: int = 1_000) -> Submission:
    return Submission(1, Body(batch_meta(), (), rows, size, ()))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Sink:
    """Takes groups once it is let; can be down, and can choke on bodies of one size."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.down = False
        self.chokes_on: int | None = None

    def write(self, submissions: Sequence[Submission]) -> list[Result]:
        assert self.go.wait(10)
        if self.down:
            return [UnavailableError("database_unavailable", "down")] * len(submissions)
        rows = [entry.body.rows for entry in submissions]
        if self.chokes_on in rows:
            raise ZeroDivisionError("a bug")
        self.groups.append(rows)
        return [Outcome(count) for count in rows]

    def ping(self) -> None:
        if self.down:
            raise UnavailableError("database_unavailable", "down")

    def close(self) -> None:
        pass


class Settled:
    def __init__(self) -> None:
        self.results: dict[Any, Result] = {}

    def __call__(self, results: Sequence[tuple[Any, Result]], _: float) -> None:
        self.results.update(results)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.results) >= count)


def test_small_bodies_are_written_together_and_each_is_answered() -> None:
    sink, settled = Sink(), Settled()
    writer = Writer([sink], Limits(group_rows=100, linger_s=0.05), settled)
    writer.start()
    for number in range(5):
        writer.submit(number, submission(10))
    settled.wait_for(5)
    writer.stop()
    assert sink.groups == [[10] * 5]
    assert settled.results == {number: Outcome(10) for number in range(5)}


def test_a_group_holds_no_more_rows_than_allowed_unless_it_is_one_body() -> None:
    sink, settled = Sink(), Settled()
    writer = Writer([sink], Limits(group_rows=25, linger_s=0.2), settled)
    for number, rows in enumerate([10, 10, 10, 99, 1]):
        writer.submit(number, submission(rows))
    writer.start()
    settled.wait_for(5)
    writer.stop()
    assert sink.groups == [[10, 10], [10], [99], [1]]


def test_a_full_queue_refuses_at_once_and_takes_again_when_it_is_empty() -> None:
    sink, settled = Sink(), Settled()
    sink.go.clear()
    writer = Writer([sink], Limits(group_rows=1, linger_s=0, queue_bytes=2_500), settled)
    for number in range(2):
        writer.submit(number, submission(1))
    with pytest.raises(UnavailableError, match="more waits to be written"):
        writer.submit(2, submission(1))
    assert writer.queued_bytes == 2_000
    writer.start()
    sink.go.set()
    settled.wait_for(2)
    writer.submit(3, submission(1, size=10_000))  # larger than the queue, but alone
    settled.wait_for(3)
    writer.stop()
    assert writer.queued_bytes == 0


def test_while_the_database_is_away_bodies_are_refused_and_afterwards_taken() -> None:
    sink, settled = Sink(), Settled()
    sink.down = True
    writer = Writer([sink], Limits(linger_s=0), settled)
    writer.start()
    writer.submit(1, submission(1))
    settled.wait_for(1)
    assert isinstance(settled.results[1], UnavailableError)
    wait_until(lambda: writer.is_down)
    with pytest.raises(UnavailableError):
        writer.submit(2, submission(1))
    sink.down = False
    wait_until(lambda: not writer.is_down)
    writer.submit(3, submission(7))
    settled.wait_for(2)
    writer.stop()
    assert settled.results[3] == Outcome(7)


def test_a_body_nobody_foresaw_costs_only_itself() -> None:
    sink, settled = Sink(), Settled()
    sink.chokes_on = 13
    writer = Writer([sink], Limits(linger_s=0.05), settled)
    writer.start()
    for number in (1, 13, 2):
        writer.submit(number, submission(number))
    settled.wait_for(3)
    writer.stop()
    assert settled.results[1] == Outcome(1)
    assert settled.results[2] == Outcome(2)
    assert isinstance(settled.results[13], UnavailableError)


def test_stopping_writes_what_waits_and_refuses_the_rest() -> None:
    sink, settled = Sink(), Settled()
    writer = Writer([sink], Limits(linger_s=5), settled)
    writer.start()
    writer.submit(1, submission(1))
    writer.stop()
    assert settled.results == {1: Outcome(1)}
    with pytest.raises(UnavailableError, match="stopping"):
        writer.submit(2, submission(1))
