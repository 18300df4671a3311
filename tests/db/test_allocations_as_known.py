"""What was known of an allocation stays to be read: an end makes a new row, the open one is kept as superseded."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from collector.wire import Stream
from ingest.settings import Settings
from ingest.store.allocations import Event, JobKey, apply
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, device_row, make_site, now_us, rows, run, send

pytestmark = pytest.mark.db
MINUTE_US = 60_000_000
START, END = 1, 2


def known(db: Database) -> list[tuple[Any, ...]]:
    """Return every row ever written: when it holds in minutes of the job, its readings, and whether it still counts."""
    with db.connect("admin") as connection:
        return connection.execute(
            "SELECT extract(epoch FROM start_at - started_at)::integer / 60, extract(epoch FROM end_at - started_at)::integer / 60, "
            "start_energy_mj, end_energy_mj, allocations.accelerators, superseded_at IS NULL "
            "FROM allocations JOIN jobs ON jobs.id = job_id ORDER BY allocations.id"
        ).fetchall()


def send_events(db: Database, *events: tuple[int, int, int]) -> None:
    """Send (action, minute of the job, counter) one batch each, over one spool."""
    site, meta, started_us = make_site(db), batch_meta(), now_us() - 30 * MINUTE_US

    async def scenario(client: httpx.AsyncClient) -> None:
        for sequence, (action, minute, energy_mj) in enumerate(events, start=1):
            event = {
                "at_us": started_us + minute * MINUTE_US,
                "device": 0,
                "action": action,
                "energy_mj": energy_mj,
                "cluster": "c",
                "native_job_id": "7",
                "job_started_at_us": started_us,
                "evidence": "cgroup",
            }
            sent = batch_meta(spool=meta.spool, sequence=sequence)
            body = body_of(
                sent, device_row(started_us + sequence * 1_000_000), allocation=rows(Stream.ALLOCATION, event)
            )
            answer = await send(client, body, site.node_tokens["node-1"])
            assert answer.status_code == 200, answer.text

    run(Settings(db), scenario)


def test_an_end_supersedes_the_open_row_and_repetitions_change_nothing(db: Database) -> None:
    send_events(db, (START, 1, 100), (END, 9, 900), (END, 9, 900), (START, 1, 100))
    assert known(db) == [(1, None, 100, None, 1, False), (1, 9, 100, 900, 1, True)]
    with db.connect("admin") as connection:
        # From one instant on the one replaces the other: at none are there both, or neither.
        (seen,) = connection.execute(
            "SELECT old.superseded_at = new.recorded_at AND old.recorded_at < new.recorded_at FROM allocations AS old "
            "JOIN allocations AS new ON new.id > old.id"
        ).fetchall()
        job = connection.execute("SELECT state, ended_at - started_at = interval '9 minutes' FROM jobs").fetchone()
    assert seen == (True,)
    assert job == ("unknown", True)


def test_an_end_before_its_start_comes_to_the_same_current_row(db: Database) -> None:
    send_events(db, (END, 9, 900), (START, 1, 100))
    assert known(db) == [(0, 9, None, 900, 1, False), (1, 9, 100, 900, 1, True)]


def two_writers(db: Database) -> tuple[datetime, datetime]:
    """Have one transaction begin, another record a start, and the first one then its end; return when both were done."""
    site = make_site(db)
    with db.connect("admin") as admin:
        row: tuple[Any, ...] | None = admin.execute(
            "INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-1', 'nvidia', 'H100', 'gpu') RETURNING id"
        ).fetchone()
    assert row is not None
    started_us = now_us() - 30 * MINUTE_US

    def event(action: int, minute: int) -> Event:
        job, at_us = JobKey("c", "7", started_us), started_us + minute * MINUTE_US
        return Event(site.site_id, row[0], job, at_us, action, 100 * minute, None, 1, "cgroup", 1, (None,) * 8)

    with db.connect("writer") as early, db.connect("writer") as late:
        early.execute("SELECT 1")  # its now() is from here on
        time.sleep(0.02)
        apply(late, [event(START, 1)])
        late.commit()
        between = datetime.now(UTC)
        apply(early, [event(END, 9)])
        early.commit()
        return between, datetime.now(UTC)


def test_a_row_is_never_replaced_before_it_was_known_whichever_transaction_began_first(db: Database) -> None:
    between, after = two_writers(db)
    with db.connect("admin") as connection:
        assert connection.execute("SELECT count(*) FROM allocations WHERE superseded_at <= recorded_at").fetchall() == [
            (0,)
        ]

        def ends_as_known(as_of: datetime) -> list[tuple[Any, ...]]:
            return connection.execute(
                "SELECT end_energy_mj FROM allocations WHERE recorded_at <= %(as_of)s "
                "AND (superseded_at IS NULL OR superseded_at > %(as_of)s)",
                {"as_of": as_of},
            ).fetchall()

        # A close in between met the open row, and meets it again when it is computed as of then.
        assert ends_as_known(between) == [(None,)]
        assert ends_as_known(after) == [(900,)]


def test_a_clock_that_steps_back_does_not_turn_knowledge_around(db: Database) -> None:
    send_events(db, (START, 1, 100))
    with db.connect("admin") as connection:
        connection.execute("UPDATE allocations SET recorded_at = now() + interval '1 hour'")
        row: tuple[Any, ...] | None = connection.execute(
            "SELECT j.site_id, a.device_id, j.cluster, j.native_id, (extract(epoch FROM j.started_at) * 1000000)::bigint "
            "FROM allocations AS a JOIN jobs AS j ON j.id = a.job_id"
        ).fetchone()
    assert row is not None
    site_id, device_id, *job = row
    ended_us = job[2] + 9 * MINUTE_US
    with db.connect("writer") as writer:
        event = Event(site_id, device_id, JobKey(*job), ended_us, END, 900, None, 1, "cgroup", 1, (None,) * 8)
        apply(writer, [event])
    with db.connect("admin") as connection:
        assert connection.execute(
            "SELECT new.recorded_at - old.recorded_at = interval '1 microsecond', old.superseded_at = new.recorded_at "
            "FROM allocations AS old JOIN allocations AS new ON new.id > old.id"
        ).fetchall() == [(True, True)]
