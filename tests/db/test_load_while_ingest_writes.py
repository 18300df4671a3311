"""A close reads while ingest commits: what arrives between two of its queries must not break it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from analytics.io.readings import load_readings
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet

pytestmark = pytest.mark.db


def test_an_epoch_that_begins_while_a_close_reads_is_known_with_its_readings(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=20))

    def a_reboot_is_committed_just_before(*arguments: Any, **named: Any) -> Any:
        ((epoch_id,),) = fleet.rows(
            "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
            "VALUES (%s, 'b2', 0, 1, 1, 10000000, 'test') RETURNING id",
            fleet.node_id,
        )
        fleet.rows(
            "INSERT INTO device_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) "
            "VALUES (%s, %s, %s, 0, 10000000, 10, 0, 5) RETURNING 1",
            HOUR_AT + timedelta(minutes=30),
            fleet.device_id,
            epoch_id,
        )
        return load_readings(*arguments, **named)

    monkeypatch.setattr("analytics.io.apart.load_readings", a_reboot_is_committed_just_before)

    done = HourCloser(db, WorkerSettings(code_version="test")).run(HOUR_AT + 3 * HOUR)

    assert (done.closed, done.failed) == (1, 0)
