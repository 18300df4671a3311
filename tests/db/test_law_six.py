"""Laws 1, 2, 3 and 6 over simulated worlds in a store: whatever came late or twice, was merged, restated, re-rated or restored, every past bill comes
out again to the byte, and the last one balances against the raw samples."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

import polars as pl
import pytest

from analytics.io import tenant_moves
from analytics.io.recompute import Ground, Recomputed, recompute, runs_in_force
from analytics.io.restate import ask
from analytics.io.statements import GroupBy, bill
from analytics.io.verify_period import verify
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments
from tests.db.independent_energy import INDEPENDENT
from tests.db.test_backup import emptied
from tests.db.world_store import HOUR, STATES, StoredWorld, rate, store
from tests.fakes.site import HOUR as START
from tests.sim.spec import JobMix, Sampling, Sharing, Weather, WorldSpec
from tests.sim.world import World
from wattledger.backup import back_up
from wattledger.restore import open_source, restore

pytestmark = pytest.mark.db
LATER: Final = START + 8 * HOUR
SETTINGS: Final = WorkerSettings(code_version="test")
HOURS: Final = 2
LATE: Final = ("late_samples", "late_device_shares", "late_node_samples")
BOOKED: Final = """
SELECT device_id, sum(energy_mj)::bigint FROM current_usage_hours JOIN devices ON devices.id = device_id
WHERE hour_at = %s AND kind = 'gpu' AND energy_mj IS NOT NULL GROUP BY 1 ORDER BY 1
"""
SILENT: Final = """
SELECT count(*) FROM current_ledger_lines WHERE origin <> 4 OR source IS NULL OR coverage IS NULL OR coverage NOT BETWEEN 0 AND 1
OR source = 'estimated' AND energy_mj IS NOT NULL AND NOT coalesce(energy_mj BETWEEN energy_low_mj AND energy_high_mj, false)
"""
WEATHER: Final = Weather(
    reset_rate=0.5,
    silence_s=600,
    reload_in_outage=True,
    wrap_mj=400_000_000,
    two_feeds=True,
    moved_devices=1,
    lost_end_rate=0.2,
    requeue_rate=0.2,
    clock_jitter_us=400_000,
    node_meter_gain=1.0,
    failing_evidence=0.1,
    overlap_rate=0.25,
    count_only_rate=0.2,
)
SHARINGS: Final = (
    Sharing("mps", boards=1),
    Sharing("time_slice", boards=1),
    Sharing("mig", boards=1, profiles=((3, 2, 2), (7,)), reconfigure_at_s=4_000),
    None,
)


class Life:
    """One world's books over some events, in an order the seed draws."""

    def __init__(self, database: Database, segments: Segments, seed: int) -> None:
        self.draw = random.Random(seed)
        sharing = SHARINGS[seed % len(SHARINGS)]
        mix = JobMix(count=14, duration_s=(300, 5_000), boards_each=(1, 2))
        spec = WorldSpec(seed=seed, hours=HOURS, boards=3, nodes=2, jobs=mix, sharing=sharing, weather=WEATHER)
        hooks = seed % 2 == 1
        how = Sampling(cadence_s=30, process_period_s=30, exact_at_events=not hooks, hook_anchors=hooks)
        self.world: StoredWorld = store(database, World(spec).sample(how), WEATHER.wrap_mj)
        self.segments = segments
        self.sealer = Sealer(database, segments)
        self.closer = HourCloser(database, SETTINGS, segments)
        self.sealed: set[datetime] = set()
        now, self.waiting = self._some(self.world.readings, 0.95)
        looks, self.looks_waiting = self._some(self.world.looks, 0.9)
        self.world.come(now, looks)
        self.world.meters_come()
        self.marks: list[datetime] = []
        self.is_taken_back = False
        """Whether an end of a job that was known was corrected."""

    def _some(self, rows: pl.DataFrame, part: float) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Draw some of the rows; return them, and the others."""
        drawn = pl.Series([self.draw.random() < part for _ in range(rows.height)], dtype=pl.Boolean)
        return rows.filter(drawn), rows.filter(~drawn)

    def all_hours(self) -> list[datetime]:
        return [START + n * HOUR for n in range(-1, HOURS + 1)]

    def late(self) -> None:
        some, self.waiting = self._some(self.waiting, 0.5)
        looks, self.looks_waiting = self._some(self.looks_waiting, 0.5)
        self.world.come(some, looks)

    def again(self) -> None:
        """What came comes once more, as from an agent whose acknowledgement was lost."""
        self.world.come(
            self._some(self.world.readings.join(self.waiting, on=["device_id", "epoch_id", "at"], how="anti"), 0.05)[0]
        )

    def seal(self) -> None:
        for hour in self.all_hours():
            if hour not in self.sealed:
                self.sealer.seal(hour_of(self.world.site_id, hour))
                self.sealed.add(hour)

    def merge(self) -> None:
        for hour in sorted(self.sealed):
            if any(
                self.world.rows(f"SELECT 1 FROM {late} WHERE at >= %s AND at < %s LIMIT 1", hour, hour + HOUR)
                for late in LATE
            ):
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

    def ends(self) -> None:
        """The ends of some jobs are learnt, or taken back again, of which a holding has none: it ends with its job."""
        open_jobs = self.world.rows(
            "SELECT jobs.id, min(start_at), ended_at FROM jobs JOIN allocations AS held ON held.job_id = jobs.id "
            "WHERE held.end_at IS NULL GROUP BY jobs.id ORDER BY jobs.id"
        )
        for job_id, start_at, ended_at in open_jobs:
            minutes = self.draw.choice((3, 20, 45, None if ended_at else 70))
            end_at = None if minutes is None else start_at + timedelta(minutes=minutes)
            self.world.rows("UPDATE jobs SET ended_at = %s WHERE id = %s RETURNING 1", end_at, job_id)
            self.is_taken_back |= ended_at not in {None, end_at}
        with self.world.admin() as connection:
            self.world.changed("allocations", START, START + HOURS * HOUR, connection)

    def restate(self) -> None:
        with self.world.database.connect("worker") as connection:
            ask(connection, "sim", START, START + HOUR, "to see")

    def live(self) -> None:
        """Close, let everything happen in some order, closing after each, and note when the books stood how."""
        events: list[Callable[[], None]] = [
            self.late,
            self.rates,
            self.move,
            self.restate,
            self.late,
            self.again,
            *([self.ends] * 2),
        ]
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
    assert life.is_taken_back or seed != 1
    taken_back = "SELECT count(*) > 0 FROM job_ends WHERE superseded_at IS NOT NULL"
    assert life.world.rows(taken_back) == [(life.is_taken_back,)]
    balances(life)


def balances(life: Life) -> None:
    """Laws 1, 2 and 3: the books against raw samples, lines against usage hours, and nothing silent."""
    for hour in range(HOURS):
        at = START + hour * HOUR
        with life.world.admin() as connection:
            assert life.world.rows(BOOKED, at) == connection.execute(INDEPENDENT.encode(), {"hour": at}).fetchall()
    assert life.world.rows(SILENT) == [(0,)]
    with life.world.database.connect("worker", autocommit=True) as connection:
        found = verify(connection, from_at=START, to_at=LATER)
    assert (found.problems, found.lines > 0) == ((), True)
    engine = life.world.database.create_engine("worker")
    with engine.connect() as conn:
        first, last = START - HOUR, START + (HOURS + 1) * HOUR
        by_tenant, by_job = bill(conn, first, last, outcomes=True), bill(conn, first, last, GroupBy.JOB)
    engine.dispose()
    # Work that failed or was pre-empted is a column of its own; each way of adding up is the same sum of the same lines.
    ((cost, energy),) = life.world.rows("SELECT sum(billed_cost), sum(energy_mj)::bigint FROM current_ledger_lines")
    assert [(each.total.cost, each.total.energy_mj) for each in (by_tenant, by_job)] == [(cost, energy)] * 2
    for outcome in STATES[1:]:
        of_jobs = sum((row.figures.cost for row in by_job.rows if row.details.get("state") == outcome), Decimal(0))
        assert (by_tenant.total.cost_of or {})[outcome] == of_jobs


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
