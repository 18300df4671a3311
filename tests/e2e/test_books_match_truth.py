"""The books of a simulated fleet against what the simulator did: to the millijoule, microsecond and token.

Four nodes of two devices, twenty hours, every planted event; over HTTP into a real database, closed by the worker's round.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from analytics.minutes import MinutesMaker
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from tests.db.independent_energy import INDEPENDENT
from tests.e2e.fleet_stand import (
    HOUR,
    ORIGIN_SIMULATED,
    bodies,
    content,
    copied,
    hours_of,
    instant,
    introduce,
    rows,
    send,
    serving,
    yesterday_us,
)
from wattledger.simulate.feed import Feed
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.plants import Plant
from wattledger.simulate.spec import BLOCK_US, DEFAULT_PLANTS, FleetSpec, PlantKind
from wattledger.simulate.truth import JobTruth, Truth

pytestmark = pytest.mark.e2e

HOURS = 20
SETTINGS = WorkerSettings(code_version="test")


@dataclass(frozen=True)
class Told:
    """What was simulated, what the simulator says of it, and the database that was told."""

    fleet: Fleet
    truth: Truth
    database: Database

    @property
    def spec(self) -> FleetSpec:
        return self.fleet.spec

    def plant(self, kind: PlantKind) -> Plant:
        (found,) = [plant for plant in self.truth.plants if plant.kind is kind]
        return found

    def job_of(self, kind: PlantKind) -> JobTruth:
        (found,) = [job for job in self.truth.jobs if job.plant == kind]
        return found


def fed_until_us(spec: FleetSpec) -> int:
    """One hour more than is compared, so that readings behind the last hour are there."""
    return spec.start_at_us + (HOURS + 1) * BLOCK_US


def close(database: Database, spec: FleetSpec) -> None:
    """Do the worker's rounds until it comes to rest: the end of a silence makes earlier hours due again."""
    now = instant(fed_until_us(spec)) + timedelta(minutes=20)
    closer = HourCloser(database, SETTINGS)
    for _ in range(5):
        done = closer.run(now)
        assert not done.failed
        assert not done.lost_races
        if not done.closed and not done.restated:
            MinutesMaker(database, SETTINGS).step(now, within_s=math.inf)
            return
    raise AssertionError("the worker does not come to rest")


@pytest.fixture(scope="module")
def told(server: EmbeddedServer, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("truth")
    spec = FleetSpec(start_at_us=yesterday_us(), nodes=4, devices_per_node=2, job_duration_scale=0.5)
    fleet = Fleet(spec)
    until_us = fed_until_us(spec)
    with copied(server, database) as fresh:
        token = introduce(fresh, fleet, until_us, folder)
        with serving(fresh, folder) as url, Feed(fleet, url, token) as feed:
            feed.catch_up(until_us)
        close(fresh, spec)
        yield Told(fleet, fleet.truth(spec.start_at_us, spec.start_at_us + HOURS * BLOCK_US), fresh)


def test_every_event_is_planted(told: Told) -> None:
    assert {plant.kind for plant in told.truth.plants} == DEFAULT_PLANTS


def test_every_reading_is_stored_exactly_once(told: Told) -> None:
    spec = told.spec
    end_us = fed_until_us(spec)
    expected = sorted(
        (spec.device_uuid(device), instant(at_us), energy_mj)
        for device, segments in told.fleet.truth(spec.start_at_us, end_us).segments.items()
        for segment in segments
        for at_us, energy_mj in zip(segment.at_us, segment.energy_mj, strict=True)
        if at_us < end_us
    )
    stored = rows(
        told.database,
        "SELECT uuid, at, energy_mj FROM device_samples JOIN devices ON devices.id = device_id ORDER BY 1, 2, 3",
    )
    assert len(stored) == len(expected)
    assert stored == expected


def test_energy_of_every_device_and_hour_is_the_truth_to_the_millijoule(told: Told) -> None:
    spec, truth = told.spec, told.truth
    expected = {
        (spec.device_uuid(device), hour_at): truth.energy_mj(device, from_us, from_us + BLOCK_US)
        for device in range(spec.devices)
        for hour_at in hours_of(spec, HOURS)
        for from_us in [int(hour_at.timestamp()) * 1_000_000]
    }
    books = {
        (uuid, hour_at): energy_mj
        for uuid, hour_at, energy_mj in rows(
            told.database,
            "SELECT uuid, hour_at, coalesce(sum(energy_mj), 0)::bigint FROM current_usage_hours "
            "JOIN devices ON devices.id = device_id WHERE hour_at < %s AND kind <> 'chassis' GROUP BY 1, 2",
            (hours_of(spec, HOURS)[-1] + HOUR,),
        )
    }
    assert books == expected
    assert sum(books.values()) == sum(truth.device_energy_mj.values()) > 0


def test_every_hour_equals_an_independent_query_over_raw_samples(told: Told) -> None:
    for hour_at in hours_of(told.spec, HOURS):
        independent = rows(told.database, INDEPENDENT, {"hour": hour_at})
        books = rows(
            told.database,
            "SELECT device_id, sum(energy_mj)::bigint FROM current_usage_hours JOIN devices ON devices.id = device_id "
            "WHERE hour_at = %s AND kind <> 'chassis' GROUP BY 1 HAVING sum(energy_mj) IS NOT NULL ORDER BY 1",
            (hour_at,),
        )
        assert books == independent


def test_every_job_has_its_energy_and_time(told: Told) -> None:
    books = {
        native_id: (energy_mj, held_us, tenants)
        for native_id, energy_mj, held_us, tenants in rows(
            told.database,
            "SELECT native_id, coalesce(sum(energy_mj), 0)::bigint, sum(held_us)::bigint, "
            "array_agg(DISTINCT coalesce(path, '')) FROM current_usage_hours AS used JOIN jobs ON jobs.id = job_id "
            "LEFT JOIN tenants ON tenants.id = used.tenant_id JOIN devices ON devices.id = device_id "
            "WHERE hour_at < %s AND devices.kind <> 'chassis' GROUP BY 1",
            (hours_of(told.spec, HOURS)[-1] + HOUR,),
        )
    }
    truth = {job.native_id: (job.energy_mj, job.held_us, [job.tenant or ""]) for job in told.truth.jobs}
    assert len(truth) > 15
    assert books == truth


def test_tokens_of_every_key_are_exact(told: Told) -> None:
    truth = {
        key.api_key: (
            key.calls,
            key.calls_without_usage,
            key.input_uncached_tokens,
            key.cache_read_tokens,
            key.output_text_tokens,
            key.reasoning_tokens,
        )
        for key in told.truth.keys
    }
    end = hours_of(told.spec, HOURS)[-1] + HOUR
    stored = rows(
        told.database,
        "SELECT api_key, count(*), count(*) FILTER (WHERE NOT usage_known), sum(input_uncached_tokens)::bigint, "
        "sum(cache_read_tokens)::bigint, sum(output_text_tokens)::bigint, coalesce(sum(reasoning_tokens), 0)::bigint "
        "FROM api_calls WHERE called_at < %s GROUP BY 1",
        (end,),
    )
    assert {key: tuple(counts) for key, *counts in stored} == truth
    billed = dict(
        rows(
            told.database,
            "SELECT api_key, sum(quantity)::bigint FROM current_ledger_lines "
            "WHERE pool = 'api' AND quantity_unit = 'token' AND hour_at < %s GROUP BY 1",
            (end,),
        )
    )
    assert billed == {key: sum(counts[2:]) for key, counts in truth.items()}
    assert max(truth, key=lambda key: truth[key][0]) == told.plant(PlantKind.KEY_OVERSPEND).api_key


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (PlantKind.THERMAL_THROTTLE, "throttling"),
        (PlantKind.POWER_CAP, "throttling"),
        (PlantKind.IDLE_HOARDER, "idle_waste"),
    ],
)
def test_a_planted_waste_is_found_on_every_device_of_its_job(told: Told, planted: PlantKind, kind: str) -> None:
    job = told.job_of(planted)
    found = rows(
        told.database,
        "SELECT count(DISTINCT device_id), min(start_at), max(end_at), min(avoidable_cash) FROM findings "
        "JOIN jobs ON jobs.id = job_id WHERE native_id = %s AND findings.kind = %s",
        (job.native_id, kind),
    )
    devices, start_at, end_at, cash = found[0]
    assert devices == job.devices
    assert start_at - instant(job.start_us) < HOUR
    assert instant(job.end_us) - end_at < HOUR
    assert cash > 0


def test_what_was_not_planted_is_not_accused(told: Told) -> None:
    accused = rows(
        told.database,
        "SELECT DISTINCT native_id FROM findings JOIN jobs ON jobs.id = job_id WHERE findings.kind = 'throttling'",
    )
    slowed = {told.job_of(kind).native_id for kind in (PlantKind.THERMAL_THROTTLE, PlantKind.POWER_CAP)}
    assert {native_id for (native_id,) in accused} == slowed


def test_a_lost_device_is_an_event_and_not_energy(told: Told) -> None:
    plant = told.plant(PlantKind.LOST_DEVICE)
    assert plant.device is not None
    uuid = told.spec.device_uuid(plant.device)
    codes = rows(
        told.database,
        "SELECT code FROM device_events JOIN devices ON devices.id = device_id WHERE uuid = %s AND code IS NOT NULL",
        (uuid,),
    )
    assert (plant.detail["xid"],) in codes
    gone = hours_of(told.spec, HOURS)[11]  # lost at 10:18, back at 13:24: nothing is known of 11:00 to 12:00
    found = rows(
        told.database,
        "SELECT state, energy_mj, covered_us FROM current_usage_hours JOIN devices ON devices.id = device_id "
        "WHERE uuid = %s AND hour_at = %s",
        (uuid, gone),
    )
    assert found == [("down", None, 0)]


def test_a_silent_node_is_estimated_and_kept_by_the_job_that_held_it(told: Told) -> None:
    plant = told.plant(PlantKind.SILENT_NODE)
    job = told.job_of(PlantKind.SILENT_NODE)
    estimated, held, covered = rows(
        told.database,
        "SELECT sum(estimated_mj)::bigint, sum(held_us)::bigint, sum(covered_us)::bigint FROM current_usage_hours "
        "JOIN jobs ON jobs.id = job_id WHERE native_id = %s",
        (job.native_id,),
    )[0]
    silent_us = (plant.end_us - plant.start_us) * job.devices
    assert estimated > 0
    # Between the last reading before and the first after: one cadence more than the silence at the most.
    assert silent_us <= held - covered <= silent_us + 2 * told.spec.cadence_us * job.devices


def test_every_figure_says_that_it_is_simulated(told: Told) -> None:
    for table in ("epochs", "jobs", "usage_hours", "ledger_lines", "findings", "api_calls", "minute_rollups"):
        assert rows(told.database, f"SELECT DISTINCT origin FROM {table}") == [(ORIGIN_SIMULATED,)], table


def test_every_hour_costs_what_its_time_and_energy_cost(told: Told) -> None:
    # The demo's rate is 2.15 USD per accelerator-hour: the hour's held time times that, rounded once, is its lines' sum.
    nano = Decimal("0.000000001")
    held = dict(
        rows(
            told.database,
            "SELECT hour_at, sum(held_us * accelerators)::bigint FROM current_usage_hours WHERE hour_at < %s GROUP BY 1",
            (hours_of(told.spec, HOURS)[-1] + HOUR,),
        )
    )
    billed = dict(
        rows(
            told.database,
            "SELECT hour_at, sum(effective_cost) FROM current_ledger_lines WHERE charge_category = 'gpu_owned' "
            "AND hour_at < %s GROUP BY 1",
            (hours_of(told.spec, HOURS)[-1] + HOUR,),
        )
    )
    expected = {
        hour_at: (Decimal(held_us) * Decimal("2.15") / 3_600_000_000).quantize(nano, ROUND_HALF_EVEN)
        for hour_at, held_us in held.items()
    }
    assert len(expected) == HOURS
    assert billed == expected


def test_duplicated_reordered_and_split_over_two_runs_the_books_are_the_same(
    told: Told, server: EmbeddedServer, database: Database, tmp_path: Path
) -> None:
    draw = random.Random(11)
    fleet = Fleet(told.spec)
    until_us = fed_until_us(told.spec)
    sent = bodies(fleet, until_us)
    twice = sent + draw.sample(sent, len(sent) // 5)
    draw.shuffle(twice)
    half = len(twice) // 2
    with copied(server, database) as other:
        token = introduce(other, fleet, until_us, tmp_path)
        for part in (twice[:half], twice[half:]):
            with serving(other, tmp_path) as url:
                send(url, token, part)
            close(other, told.spec)
        hours = hours_of(told.spec, HOURS)
        undisturbed = content(told.database, hours)
        assert len(undisturbed) == HOURS
        assert content(other, hours) == undisturbed
        counts = defaultdict(list)
        for where in (told.database, other):
            for table in ("device_samples", "node_samples", "device_events", "allocations", "api_calls"):
                current = " WHERE superseded_at IS NULL" if table == "allocations" else ""
                counts[table].append(rows(where, f"SELECT count(*) FROM {table}{current}"))
        assert all(here == there for here, there in counts.values()), dict(counts)
