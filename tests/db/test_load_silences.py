"""The nearest reading around a window: found wherever it lies within the reach, and the same one however rows are stored."""

from __future__ import annotations

from datetime import timedelta

import pytest

from analytics.inputs import Window
from analytics.io.load import load_batch
from analytics.policy import Policy
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet

pytestmark = pytest.mark.db


@pytest.mark.parametrize(("hours_before", "hours_after"), [(0.5, 0.5), (3, 5), (20, 40), (50, 60)])
def test_the_last_reading_before_a_silent_window_and_the_first_after_it_are_loaded(
    db: Database, hours_before: float, hours_after: float
) -> None:
    fleet = small_fleet(db)
    start_at = HOUR_AT + timedelta(hours=72)
    before, after = start_at - timedelta(hours=hours_before), start_at + HOUR + timedelta(hours=hours_after)
    fleet.samples(before - timedelta(minutes=1), before)
    fleet.samples(after, after + timedelta(minutes=1), start_mj=10**9)
    window = Window(start_at, start_at + HOUR, start_at + HOUR)

    with db.connect("worker", autocommit=True) as connection:
        loaded = load_batch(db, connection, fleet.site_id, window, Policy(), "USD")

    # Beyond the reach of 48 hours nothing is joined.
    expected = [before, after] if hours_before < 48 else []
    assert loaded.inputs.usage.readings["at"].to_list() == expected
    assert (loaded.silences.before_at, loaded.silences.after_at) == (tuple(expected) or (None, None))
