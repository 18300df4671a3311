"""A device that two feeds tell of: its books do not depend on how hours are batched, nor on when the silent feed is heard of again."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from analytics.inputs import Window
from analytics.io.load import Loaded, load_batch
from analytics.jobs import HourCloser, WorkerSettings
from analytics.pipeline import close_hours
from analytics.policy import Policy
from collector.wire import Feed
from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.test_two_feeds import through_dcgm

pytestmark = pytest.mark.db
MINUTE = timedelta(minutes=1)
HOURS = 4
SILENT_AT, BACK_AT = HOUR_AT + 20 * MINUTE, HOUR_AT + 3 * HOUR + 40 * MINUTE
HOUR_MJ = 360_000_000
"""100 W for an hour: what the agent's counter says, spread evenly where it was silent."""
ENERGIES = "SELECT hour_at, feed, sum(energy_mj)::bigint FROM current_usage_hours GROUP BY 1, 2 ORDER BY 1, 2"


def at(second: float) -> datetime:
    return HOUR_AT + timedelta(seconds=int(second))


def agent_speaks(fleet: SmallFleet) -> None:
    """100 W from 08:00 to 08:20 and from 11:40 on; DCGM says 103 W all the while."""
    fleet.samples(HOUR_AT, SILENT_AT)
    agent_is_back(fleet)


def agent_is_back(fleet: SmallFleet) -> None:
    since_s = int((BACK_AT - HOUR_AT).total_seconds())
    fleet.samples(BACK_AT, HOUR_AT + HOURS * HOUR, start_mj=since_s * 100_000)


def dcgm_speaks(fleet: SmallFleet) -> None:
    through_dcgm(fleet).samples(HOUR_AT, HOUR_AT + HOURS * HOUR, power_w=103, start_mj=5_000_000, step_s=30)


def loaded(db: Database, fleet: SmallFleet, first: int, count: int, segments: Segments | None = None) -> Loaded:
    to_at = HOUR_AT + (first + count) * HOUR
    window = Window(HOUR_AT + first * HOUR, to_at, to_at)
    with db.connect("worker", autocommit=True) as connection:
        return load_batch(db, connection, fleet.site_id, window, Policy(), "USD", segments=segments)


def usage(found: Loaded) -> pl.DataFrame:
    return close_hours(found.inputs, Policy()).usage.sort("hour_at", "device_id", "holder")


@pytest.mark.parametrize("sealed", [0, 3])
def test_of_two_feeds_each_feeds_silence_is_seen_by_hours_as_by_the_window(
    db: Database, tmp_path: Path, sealed: int
) -> None:
    fleet = small_fleet(db)
    agent_speaks(fleet)
    dcgm_speaks(fleet)
    fleet.job("7", HOUR_AT, HOUR_AT + HOURS * HOUR)
    segments = Segments.at(tmp_path)
    for number in range(sealed):
        Sealer(db, segments).seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))

    together = usage(loaded(db, fleet, 0, HOURS, segments))
    alone = pl.concat([usage(loaded(db, fleet, number, 1, segments)) for number in range(HOURS)])

    assert alone.rows() == together.rows()
    held = together.filter(pl.col("energy_mj") > 0)
    assert held["energy_mj"].to_list() == [HOUR_MJ] * HOURS
    assert held["feed"].to_list() == [int(Feed.NATIVE)] * HOURS


@pytest.mark.parametrize("seed", range(2))
def test_whatever_either_feed_leaves_out_hours_and_the_window_have_the_same_books(db: Database, seed: int) -> None:
    fleet, draw = small_fleet(db), random.Random(seed)
    feeds = [fleet, through_dcgm(fleet)]
    for feed, watts in zip(feeds, (100, 103), strict=True):
        # Between a minute and two hours of rows, then as long a silence; the counter goes on, or begins anew.
        # The agent is heard of first after a while: until then there is DCGM alone.
        second, since, spoke = (2400.0 + 3600 * draw.random() if feed is fleet else -1800.0), -3600, True
        while second < (HOURS + 1) * 3600:
            until = second + 60 * 120 ** draw.random()
            if spoke:
                since = int(second) if draw.random() < 0.2 else since
                start = int(second)
                feed.samples(
                    at(start), at(until), power_w=watts, start_mj=(start - since) * watts * 1000 + 1, step_s=30
                )
            second, spoke = until, not spoke
    if seed % 2:
        fleet.rows("UPDATE device_samples SET energy_mj = NULL WHERE epoch_id = %s RETURNING 1", feeds[1].epoch_id)
    for number in range(6):
        start = draw.randrange(-1800, HOURS * 3600)
        fleet.job(str(number), at(start), at(start + draw.choice([40, 900, 5400])))

    day = loaded(db, fleet, 0, HOURS)
    together = close_hours(day.inputs, Policy())
    alone = [close_hours(loaded(db, fleet, number, 1).inputs, Policy()) for number in range(HOURS)]

    for name, key in (
        ("usage", ["hour_at", "device_id", "holder"]),
        ("quality", ["hour_at", "device_id", "reason"]),
        ("lines", ["hour_at", "line_key"]),
    ):
        apart = pl.concat([getattr(result, name) for result in alone]).sort(key)
        assert apart.rows() == getattr(together, name).sort(key).rows(), name
    assert {feed.epoch_id for feed in feeds} == set(day.inputs.usage.readings["epoch_id"])


def test_hours_that_another_feed_stood_in_for_are_the_first_ones_again_once_it_is_heard_of(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, SILENT_AT)
    dcgm_speaks(fleet)
    fleet.job("7", HOUR_AT, HOUR_AT + HOURS * HOUR)
    closer = HourCloser(db, WorkerSettings(code_version="test"))
    closer.run(HOUR_AT + 3 * HOUR + 30 * MINUTE)
    # 20 minutes of 100 W and 40 of 103 W, then 103 W.
    assert fleet.rows(ENERGIES)[:3] == [
        (HOUR_AT, int(Feed.NATIVE), 120_000_000 + 247_200_000),
        (HOUR_AT + HOUR, int(Feed.DCGM), 370_800_000),
        (HOUR_AT + 2 * HOUR, int(Feed.DCGM), 370_800_000),
    ]

    agent_is_back(fleet)
    for _ in range(3):
        closer.run(HOUR_AT + 6 * HOUR)

    expected = [(HOUR_AT + number * HOUR, int(Feed.NATIVE), HOUR_MJ) for number in range(HOURS)]
    assert fleet.rows(ENERGIES)[:HOURS] == expected
    revisions = "SELECT revision FROM ledger_hours ORDER BY hour_at"
    rest = fleet.rows(revisions)
    closer.run(HOUR_AT + 6 * HOUR)
    assert fleet.rows(revisions) == rest


def test_a_feed_that_was_switched_off_brings_no_other_hours_back(db: Database) -> None:
    fleet = small_fleet(db)
    # DCGM until 08:05, the agent all the while: 11 o'clock hangs on no silence of anybody who speaks in it.
    fleet.samples(HOUR_AT, HOUR_AT + HOURS * HOUR)
    through_dcgm(fleet).samples(HOUR_AT, HOUR_AT + 5 * MINUTE, step_s=30)

    found = loaded(db, fleet, 3, 1)

    assert HOUR_AT + 5 * MINUTE in found.inputs.usage.readings["at"].to_list()
    assert (found.silences.ended, found.silences.before_at, found.silences.after_at) == ((), None, None)


def test_two_feeds_of_one_boot_are_not_one_counter_whose_silence_ends(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, SILENT_AT)
    other = replace(fleet, epoch_id=through_dcgm(fleet).epoch_id)
    other.samples(HOUR_AT + 90 * MINUTE, HOUR_AT + 2 * HOUR, start_mj=10**9, step_s=30)

    assert loaded(db, fleet, 1, 1).silences.ended == ()
