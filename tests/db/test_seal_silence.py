"""An hour whose rows are still with the agents is not sealed without them, for a day at most."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from ingest.store.engine import Database
from ingest.store.seal import instant_of
from ingest.store.seal_hours import due
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
EIGHT = HOUR_AT
"""The fleet's rows are of 8 to 9 o'clock, and then ingest was away."""


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(EIGHT, EIGHT + HOUR)
    return fleet


@pytest.fixture
def engine(fleet: SmallFleet) -> Iterator[sa.Engine]:
    made = fleet.database.create_engine("worker")
    yield made
    made.dispose()


def heard_of(fleet: SmallFleet, at: datetime) -> None:
    fleet.rows("DELETE FROM spools RETURNING 1")
    fleet.rows(
        "INSERT INTO spools (spool, node_id, received, last_seen_at) "
        "SELECT '00000000-0000-4000-8000-000000000001', id, '{}', %s FROM nodes LIMIT 1 RETURNING 1",
        at,
    )


def last_due(engine: sa.Engine, now: datetime) -> datetime:
    """Return the last hour to be sealed."""
    return instant_of(due(engine, now, seal_after=3 * HOUR, merge_after=timedelta(0)).seal[-1])


def test_hours_of_a_silence_wait_a_day_and_no_longer(fleet: SmallFleet, engine: sa.Engine) -> None:
    heard_of(fleet, EIGHT + HOUR)
    assert last_due(engine, EIGHT + 7 * HOUR) == EIGHT  # those of 9 and 10 ended three hours ago too
    assert last_due(engine, EIGHT + 25 * HOUR) == EIGHT
    assert last_due(engine, EIGHT + 26 * HOUR) == EIGHT + HOUR  # ended 24 hours ago


def test_after_the_silence_an_hour_waits_for_what_agents_say_they_have_yet_to_send(
    fleet: SmallFleet, engine: sa.Engine
) -> None:
    now = EIGHT + 8 * HOUR
    heard_of(fleet, now)
    assert last_due(engine, now) == EIGHT + 3 * HOUR

    def said(minutes_ago: int, age: timedelta | None) -> None:
        fleet.rows(
            "INSERT INTO agent_health (at, epoch_id, span_us, started_at_us, sample_us, samples, samples_missed, probe_errors, "
            "dropped_rows, clock_steps, durable, released, oldest_unsent_us) VALUES (%s, %s, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, %s) RETURNING 1",
            now - timedelta(minutes=minutes_ago),
            fleet.epoch_id,
            None if age is None else age // timedelta(microseconds=1),
        )

    said(1, 5.5 * HOUR)  # since 10:29
    assert last_due(engine, now) == EIGHT + HOUR
    fleet.rows("UPDATE agent_health SET at = at - interval '10 minutes' RETURNING 1")
    said(1, None)
    assert last_due(engine, now) == EIGHT + 3 * HOUR


def test_a_site_that_has_been_silent_for_a_week_is_not_waited_for(fleet: SmallFleet, engine: sa.Engine) -> None:
    heard_of(fleet, EIGHT - timedelta(days=7))
    assert last_due(engine, EIGHT + 7 * HOUR) == EIGHT + 2 * HOUR
