"""Law 6 over simulated worlds: whatever came late, was merged, restated, re-rated or restored, every past bill comes out again to the byte."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import polars as pl
import pytest

from analytics.io import tenant_moves
from analytics.io.recompute import Ground, Recomputed, recompute, runs_in_force
from analytics.io.restate import ask
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments
from tests.db.test_backup import emptied
from tests.db.world_store import HOUR, StoredWorld, rate, store
from tests.fakes.site import HOUR as START
from tests.sim.spec import JobMix, Sampling, Sharing, Weather, WorldSpec
from tests.sim.world import World
from wattledger.backup import back_up
from wattledger.restore import open_source, restore

pytestmark = pytest.mark.db
LATER: Final = START + 8 * HOUR
SETTINGS: Final = WorkerSettings(code_version="test")
HOURS: Final = 2
WEATHER: Final = Weather(
    reset_rate=0.5, silence_s=600, reload_in_outage=True, two_feeds=True, moved_devices=1, lost_end_rate=0.1
)
SHARINGS: Final = (
    None,
    Sharing("time_slice", boards=1),
    Sharing("mig", profiles=((3, 2, 2), (7,)), reconfigure_at_s=4_000),
)


class Life:
    """One world's books over some events, in an order the seed draws."""

    def __init__(self, database: Database, segments: Segments, seed: int) -> None:
        self.draw = random.Random(seed)
        sharing = SHARINGS[seed % len(SHARINGS)]
        mix = JobMix(count=8, duration_s=(300, 5_000))
        spec = WorldSpec(seed=seed, hours=HOURS, boards=2, nodes=2, jobs=mix, sharing=sharing, weather=WEATHER)
        self.world: StoredWorld = store(database, World(spec).sample(Sampling(cadence_s=30)))
        self.segments = segments
        self.sealer = Sealer(database, segments)
        self.closer = HourCloser(database, SETTINGS, segments)
        self.sealed: set[datetime] = set()
        late = pl.Series([self.draw.random() < 0.05 for _ in range(self.world.readings.height)])
        self.waiting = self.world.readings.filter(late)
        self.world.come(self.world.readings.filter(~late))
        self.marks: list[datetime] = []

    def all_hours(self) -> list[datetime]:
        return [START + n * HOUR for n in range(-1, HOURS + 1)]

    def late(self) -> None:
        some = pl.Series([self.draw.random() < 0.5 for _ in range(self.waiting.height)], dtype=pl.Boolean)
        self.world.come(self.waiting.filter(some))
        self.waiting = self.waiting.filter(~some)

    def seal(self) -> None:
        for hour in self.all_hours():
            if hour not in self.sealed:
                self.sealer.seal(hour_of(self.world.site_id, hour))
                self.sealed.add(hour)

    def merge(self) -> None:
        for hour in sorted(self.sealed):
            if self.world.rows("SELECT 1 FROM late_samples WHERE at >= %s AND at < %s LIMIT 1", hour, hour + HOUR):
                self.sealer.merge(hour_of(self.world.site_id, hour))
        with self.world.database.connect("worker") as connection:
            delete_retired(connection, self.segments, timedelta(0))

    def rates(self) -> None:
        with self.world.admin() as connection:
            amount = self.draw.randint(100, 900)
            rate(
                connection,
                self.world.site_id,
                "tariffs",
                "metering_point, amount_per_kwh, currency",
                f"'facility', 0.{amount}, 'USD'",
            )
            rate(connection, self.world.site_id, "facility_factors", "factor, category", f"1.{amount}, 1")
            for kind in ("tariffs", "facility_factors"):
                self.world.changed(kind, START, START + HOURS * HOUR, connection)

    def move(self) -> None:
        old = self.draw.choice(("acme/a", "acme/b"))
        with self.world.database.connect("owner") as connection:
            tenant_moves.move(connection, old, "acme/new", START + self.draw.randint(0, HOURS - 1) * HOUR, LATER)

    def restate(self) -> None:
        with self.world.database.connect("worker") as connection:
            ask(connection, "sim", START, START + HOUR, "to see")

    def live(self) -> None:
        """Close, let everything happen in some order, closing after each, and note when the books stood how."""
        events: list[Callable[[], None]] = [self.late, self.rates, self.move, self.restate, self.late]
        self.draw.shuffle(events)
        events.insert(self.draw.randint(0, 2), self.seal)
        for event in [lambda: None, *events, self.seal, self.merge, self.late, self.merge]:
            event()
            done = self.closer.run(LATER)
            assert done.failed == 0, event
            ((now,),) = self.world.rows("SELECT clock_timestamp()")
            self.marks.append(now)


def verdicts(database: Database, segments: Segments, as_of: datetime) -> list[Recomputed]:
    with database.connect("worker", autocommit=True) as connection:
        runs = runs_in_force(connection, as_of, START, START + HOURS * HOUR, None)
        return [recompute(database, connection, segments, *run) for run in runs]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 26))])
def test_every_bill_there_ever_was_comes_out_again(db: Database, tmp_path: Path, seed: int) -> None:
    life = Life(db, Segments.at(tmp_path), seed)
    life.live()
    grounds = []
    for as_of in life.marks:
        found = verdicts(db, life.segments, as_of)
        assert len(found) == HOURS
        assert [each for each in found if each.is_same is not True] == []
        grounds.append({each.ground for each in found})
    # Of books that were superseded before their hours were sealed, the rows as they were are gone: lines from usage hours, and said.
    assert grounds[-1] == {Ground.SAMPLES}
    kinds = {kind for (kind,) in life.world.rows("SELECT DISTINCT kind FROM ledger_runs WHERE revision > 1")}
    assert kinds >= {"close", "rate"}


@pytest.mark.slow
def test_and_in_a_restored_database(db: Database, server: EmbeddedServer, tmp_path: Path) -> None:
    life = Life(db, Segments.at(tmp_path / "s"), 26)
    life.live()
    before = [[(each.ground, each.is_same) for each in verdicts(db, life.segments, mark)] for mark in life.marks]
    back_up(db, life.segments, tmp_path, tmp_path / "target", env=os.environ, say=print)
    with emptied(server, "restored_six") as copy:
        there = Segments.at(tmp_path / "r")
        restore(open_source(tmp_path / "target"), copy, there, tmp_path, env=os.environ, say=print)
        after = [[(each.ground, each.is_same) for each in verdicts(copy, there, mark)] for mark in life.marks]
    assert after == before
    assert all(is_same for hours in after for _, is_same in hours)
