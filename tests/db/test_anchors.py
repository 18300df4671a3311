"""Counter values told with allocations make a slow feed's jobs exact, on a real database."""

from __future__ import annotations

from datetime import timedelta

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet

pytestmark = pytest.mark.db


def test_a_job_whose_hooks_read_the_counter_has_exactly_what_it_grew_by(db: Database) -> None:
    fleet = small_fleet(db)
    # Read each minute at 100 W on average; the job had 90 s to 150 s, and 5.5 kJ of the 6 kJ from 60 to 120 s and on to 180 s.
    fleet.samples(HOUR_AT, HOUR_AT + HOUR, step_s=60)
    job_id = fleet.job("7", HOUR_AT + timedelta(seconds=90), HOUR_AT + timedelta(seconds=150))
    fleet.rows(
        "UPDATE allocations SET start_energy_mj = 6500000, end_energy_mj = 17500000 WHERE job_id = %s RETURNING 1",
        job_id,
    )

    HourCloser(db, WorkerSettings(code_version="test")).run(HOUR_AT + 3 * HOUR)

    assert fleet.rows(
        "SELECT energy_mj, estimated_mj FROM current_usage_hours WHERE hour_at = %s AND job_id = %s", HOUR_AT, job_id
    ) == [(11_000_000, 0)]
    assert fleet.rows("SELECT sum(energy_mj)::bigint FROM current_usage_hours WHERE hour_at = %s", HOUR_AT) == [
        (360_000_000,)
    ]
