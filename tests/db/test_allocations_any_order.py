"""Batches of allocation events in any order and grouping, with repetitions: the same current rows, every change told of."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import psycopg
import pytest

from ingest.store.allocations import Event, JobKey, apply
from ingest.store.engine import Database
from ingest.store.intervals import END, START, Told, meaning
from tests.db.ingest_harness import Site, make_site

pytestmark = pytest.mark.db
START_US = 1_790_000_000_000_000
MINUTE_US = 60_000_000
Row = tuple[str, datetime, datetime | None, int | None, int | None, str]


@pytest.fixture
def place(db: Database) -> tuple[Site, int]:
    site = make_site(db)
    with db.connect("admin") as admin:
        row: tuple[Any, ...] | None = admin.execute(
            "INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-1', 'nvidia', 'H100', 'gpu') RETURNING id"
        ).fetchone()
    assert row is not None
    return site, row[0]


def at(at_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)


def event(place: tuple[Site, int], job: str, action: int, minute: int) -> Event:
    site, device_id = place
    key, at_us = JobKey("c", job, START_US), START_US + minute * MINUTE_US
    return Event(site.site_id, device_id, key, at_us, action, 100 * minute, None, 1, "hook", 1, (None,) * 8)


def current(connection: psycopg.Connection[Any]) -> list[Row]:
    return connection.execute(
        "SELECT native_id, start_at, end_at, start_energy_mj, end_energy_mj, evidence FROM allocations "
        "JOIN jobs ON jobs.id = job_id WHERE superseded_at IS NULL ORDER BY native_id, start_at, end_at"
    ).fetchall()


def expected(events: list[Event]) -> list[Row]:
    rows: list[Row] = []
    for job in sorted({event.job.native_id for event in events}):
        told = [
            Told(at(event.at_us), event.action, event.energy_mj, None, 1, event.evidence)
            for event in events
            if event.job.native_id == job
        ]
        rows += [
            (job, row.start_at, row.end_at, row.start_energy_mj, row.end_energy_mj, row.evidence)
            for row in meaning(told, at(START_US))
        ]
    return rows


def holders(rows: list[Row], minute: int) -> set[str]:
    """Return who holds the device during the minute."""
    from_at = at(START_US + minute * MINUTE_US)
    return {row[0] for row in rows if row[1] <= from_at and (row[2] is None or row[2] > from_at)}


def arrive(db: Database, batches: list[list[Event]]) -> list[Row]:
    """Apply the batches in one transaction that is taken back; each must tell of all that it changes."""
    with db.connect("writer") as writer:
        for batch in batches:
            before = current(writer)
            touched = apply(writer, batch)
            after = current(writer)
            changed = [minute for minute in range(12) if holders(before, minute) != holders(after, minute)]
            if changed:
                assert min(touched.values()) <= at(START_US + min(changed) * MINUTE_US)
            elif before == after:
                assert touched == {}
        found = current(writer)
        assert writer.execute("SELECT count(*) FROM allocations WHERE superseded_at <= recorded_at").fetchone() == (0,)
        writer.rollback()
    return found


def test_every_order_of_two_holdings_of_one_job_comes_to_the_same(db: Database, place: tuple[Site, int]) -> None:
    events = [event(place, "7", *what) for what in ((START, 1), (END, 2), (START, 3), (END, 4))]
    for order in permutations(events):
        assert arrive(db, [[one] for one in order]) == expected(events)
    assert [(row[1], row[2]) for row in expected(events)] == [
        (at(START_US + start * MINUTE_US), at(START_US + end * MINUTE_US)) for start, end in ((1, 2), (3, 4))
    ]


def test_given_back_and_taken_again_at_one_instant_in_any_order(db: Database, place: tuple[Site, int]) -> None:
    events = [event(place, "7", *what) for what in ((START, 1), (END, 2), (START, 2))]
    for order in permutations(events):
        assert arrive(db, [[one] for one in order]) == expected(events)
    assert [row[2] for row in expected(events)] == [at(START_US + 2 * MINUTE_US), None]


def test_any_events_of_two_jobs_in_any_order_and_grouping_with_repetitions(
    db: Database, place: tuple[Site, int]
) -> None:
    for seed in range(60):
        dice = random.Random(seed)
        events = [
            event(place, dice.choice("78"), dice.choice((START, END)), dice.randrange(10))
            for _ in range(dice.randint(2, 12))
        ]
        arrivals = events + dice.choices(events, k=3)
        dice.shuffle(arrivals)
        batches = []
        while arrivals:
            size = dice.randint(1, 4)
            batches.append(arrivals[:size])
            arrivals = arrivals[size:]
        assert arrive(db, batches) == expected(events), seed
