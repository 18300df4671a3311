"""What was known of an allocation stays to be read: an end makes a new row, the open one is kept as superseded."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from collector.wire import Stream
from ingest.settings import Settings
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
