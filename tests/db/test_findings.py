"""What a close found stands until its hour is closed without it; what does not stand counts nowhere."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from analytics.io import reads
from analytics.io.statements import bill
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db

SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + timedelta(hours=3)
TEN_PAST = HOUR_AT + timedelta(minutes=10)
HALF_PAST = HOUR_AT + timedelta(minutes=30)


@pytest.fixture
def idle(db: Database) -> SmallFleet:
    """A job holds the device from 8:00 to 8:30 and does nothing with it, at 60 W; ingest found something about it, too."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR + timedelta(minutes=5), power_w=60)
    fleet.rows("UPDATE device_samples SET gpu_util_percent = 0 RETURNING 1")
    fleet.job("7", HOUR_AT, HALF_PAST)
    fleet.rows(
        "INSERT INTO findings (dedupe_key, site_id, kind, start_at, end_at, evidence, confidence, origin) "
        "VALUES ('moved', %s, 'device_on_two_nodes', %s, %s, '{}', 1, 1) RETURNING id",
        fleet.site_id,
        HOUR_AT,
        HOUR_AT,
    )
    HourCloser(fleet.database, SETTINGS).run(LATER)
    return fleet


def _held_from(fleet: SmallFleet, start_at: datetime, end_at: datetime) -> None:
    """Correct when the job held the device, and close again."""
    fleet.rows("UPDATE allocations SET start_at = %s, end_at = %s RETURNING id", start_at, end_at)
    with fleet.admin() as connection:
        fleet.changed("allocations", HOUR_AT, HOUR_AT + HOUR, connection)
    HourCloser(fleet.database, SETTINGS).run(LATER)


def _standing(fleet: SmallFleet) -> tuple[list[tuple[str, datetime]], Decimal]:
    """Return the findings that stand by kind and start, and the idle waste of the bill."""
    engine = fleet.database.create_engine("worker", pool_size=1)
    with engine.begin() as conn:
        found = reads.findings(conn, from_at=None, to_at=None, kind=None, before_id=None, limit=100)
        waste = bill(conn, HOUR_AT, HOUR_AT + HOUR).total.idle_waste
    engine.dispose()
    return sorted((row.kind, row.start_at) for row in found), waste


def test_an_episode_that_moved_is_wasted_once(idle: SmallFleet) -> None:
    # 60 W for 30 minutes is 0.03 kWh, for 20 minutes 0.02 kWh, at 0.20 USD per kWh.
    two_nodes = ("device_on_two_nodes", HOUR_AT)
    assert _standing(idle) == ([two_nodes, ("idle_waste", HOUR_AT)], Decimal("0.006"))

    _held_from(idle, TEN_PAST, HALF_PAST)

    assert _standing(idle) == ([two_nodes, ("idle_waste", TEN_PAST)], Decimal("0.004"))


def test_an_episode_that_is_gone_stays_on_record_and_counts_for_nothing(idle: SmallFleet) -> None:
    _held_from(idle, HOUR_AT, HOUR_AT + timedelta(minutes=5))  # too short to be waste

    assert _standing(idle) == ([("device_on_two_nodes", HOUR_AT)], Decimal(0))
    record = idle.rows("SELECT avoidable_cash, withdrawn_at IS NULL FROM findings WHERE kind = 'idle_waste'")
    assert record == [(Decimal("0.006000000"), False)]


def test_an_episode_found_again_stands_again(idle: SmallFleet) -> None:
    _held_from(idle, TEN_PAST, HALF_PAST)

    _held_from(idle, HOUR_AT, HALF_PAST)

    assert _standing(idle) == ([("device_on_two_nodes", HOUR_AT), ("idle_waste", HOUR_AT)], Decimal("0.006"))


def test_another_hour_withdraws_nothing_of_its_neighbour(idle: SmallFleet) -> None:
    idle.samples(HOUR_AT + HOUR + timedelta(minutes=5, seconds=10), HOUR_AT + 2 * HOUR, start_mj=391 * 600_000)

    HourCloser(idle.database, SETTINGS).run(LATER)

    assert ("idle_waste", HOUR_AT) in _standing(idle)[0]
