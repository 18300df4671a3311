"""Energy by tenant and step, from the minutes that are made of its hours."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from analytics.io.rollups import TenantEnergy, energy_by_tenant
from analytics.jobs import HourCloser, WorkerSettings
from analytics.minutes import MinutesMaker
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet

pytestmark = pytest.mark.db


def close(db: Database, now: datetime) -> None:
    settings = WorkerSettings(code_version="test")
    HourCloser(db, settings).run(now)
    MinutesMaker(db, settings).step(now)


def test_minutes_go_to_the_tenant_that_held_the_device_and_the_rest_to_nobody(db: Database) -> None:
    # 100 W for an hour; a job of nlp from 8:10 to 8:30, another of a quarter of the device until 8:50.
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    fleet.job("7", HOUR_AT + timedelta(minutes=10), HOUR_AT + timedelta(minutes=30))
    fleet.job("8", HOUR_AT + timedelta(minutes=30), HOUR_AT + timedelta(minutes=50))
    fleet.rows(
        "UPDATE allocations SET share_ratio = 0.25 WHERE start_at > %s RETURNING 1", HOUR_AT + timedelta(minutes=20)
    )
    close(db, HOUR_AT + 3 * HOUR)

    with db.connect("worker") as connection:
        by_minute = energy_by_tenant(connection, HOUR_AT, HOUR_AT + HOUR)
        by_hour = energy_by_tenant(connection, HOUR_AT, HOUR_AT + HOUR, step_s=3_600)

    nlp, nobody = by_minute
    assert (nlp.tenant, nobody.tenant) == ("acme/research/nlp", None)
    # 100 W x 60 s are 6,000 J; a quarter of it is 1,500 J.
    assert nlp.energy_mj == [None] * 10 + [6_000_000] * 20 + [1_500_000] * 20 + [None] * 10
    assert nobody.energy_mj == [6_000_000] * 10 + [None] * 20 + [4_500_000] * 20 + [6_000_000] * 10
    # 20 minutes of the whole and 20 of a quarter; 20 minutes nobody held, and three quarters of 20.
    assert by_hour == [TenantEnergy("acme/research/nlp", [150_000_000]), TenantEnergy(None, [210_000_000])]


def test_a_device_held_by_one_job_all_the_time_goes_to_its_tenant(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT - HOUR, None)
    close(db, HOUR_AT + 4 * HOUR)
    with db.connect("worker") as connection:
        assert energy_by_tenant(connection, HOUR_AT, HOUR_AT + HOUR, step_s=3_600) == [
            TenantEnergy("acme/research/nlp", [360_000_000])
        ]


def test_a_minute_that_changes_hands_is_cut_where_it_does(db: Database) -> None:
    # 100 W: the job holds the device from 8:10:15 to 8:10:45, which lies between readings too: 30 s are 3,000 J.
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    ten = HOUR_AT + timedelta(minutes=10)
    fleet.job("7", ten + timedelta(seconds=15), ten + timedelta(seconds=45))
    close(db, HOUR_AT + 3 * HOUR)
    with db.connect("worker") as connection:
        minute = energy_by_tenant(connection, ten, ten + timedelta(minutes=1))
        assert minute == [TenantEnergy("acme/research/nlp", [3_000_000]), TenantEnergy(None, [3_000_000])]

    fleet.job("8", ten + timedelta(seconds=50), ten + timedelta(minutes=2))
    close(db, HOUR_AT + 3 * HOUR)  # the hour is stale: its minutes are replaced with its books

    with db.connect("worker") as connection:
        rows = energy_by_tenant(connection, ten, ten + timedelta(minutes=2))
    assert rows == [
        TenantEnergy("acme/research/nlp", [4_000_000, 6_000_000]),
        TenantEnergy(None, [2_000_000, None]),
    ]


def test_minutes_of_tenants_sum_to_the_minutes_of_devices(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    for number in range(7):  # odd lengths, so that most cuts fall on no whole millijoule
        start_at = HOUR_AT + timedelta(seconds=number * 401, microseconds=333_333)
        fleet.job(str(number), start_at, start_at + timedelta(seconds=397, microseconds=1))
    fleet.rows("UPDATE allocations SET share_ratio = 0.333 WHERE start_at > %s RETURNING 1", HOUR_AT + HOUR / 2)
    close(db, HOUR_AT + 3 * HOUR)
    different = """
        SELECT count(*) FROM (SELECT minute_at, sum(energy_mj) AS energy_mj FROM minute_rollups GROUP BY 1) AS d
        FULL JOIN (SELECT minute_at, sum(energy_mj) AS energy_mj FROM tenant_minutes GROUP BY 1) AS t USING (minute_at)
        WHERE d.energy_mj IS DISTINCT FROM t.energy_mj
    """
    assert fleet.rows(different) == [(0,)]
    assert fleet.rows("SELECT count(DISTINCT minute_at) FROM tenant_minutes") == [(60,)]


def test_steps_that_do_not_fit_the_interval_are_refused(db: Database) -> None:
    with db.connect("worker") as connection:
        for from_at, to_at, step_s in (
            (HOUR_AT, HOUR_AT + HOUR, 90),
            (HOUR_AT, HOUR_AT + HOUR, 0),
            (HOUR_AT, HOUR_AT + HOUR, 7 * 60),
            (HOUR_AT + timedelta(seconds=1), HOUR_AT + timedelta(seconds=61), 60),
        ):
            with pytest.raises(ValueError, match="no whole number of steps"):
                energy_by_tenant(connection, from_at, to_at, step_s)


def test_minutes_of_a_device_that_left_the_hour_leave_with_it(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    close(db, HOUR_AT + 3 * HOUR)
    assert fleet.rows("SELECT DISTINCT device_id FROM minute_rollups") == [(fleet.device_id,)]
    # Its readings were another's, as a corrected UUID tells.
    ((other,),) = fleet.rows(
        "WITH made AS (INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-2', 'nvidia', 'H100', 'gpu') RETURNING id) "
        "INSERT INTO placements (device_id, node_id, valid_from) SELECT id, %s, %s FROM made RETURNING device_id",
        fleet.node_id,
        HOUR_AT,
    )
    fleet.rows("UPDATE device_samples SET device_id = %s RETURNING 1", other)
    with fleet.admin() as connection:
        fleet.changed("device_samples", HOUR_AT, HOUR_AT + HOUR, connection)

    close(db, HOUR_AT + 3 * HOUR)

    assert fleet.rows("SELECT DISTINCT device_id FROM minute_rollups") == [(other,)]
    assert fleet.rows("SELECT sum(energy_mj)::bigint FROM minute_rollups") == [(360_000_000,)]
