"""What a simulated day holds: planted events with their marks in the data, disturbed deliveries, believable numbers."""

from collections import Counter
from functools import lru_cache

import polars as pl
import pytest

from collector.wire import Stream
from tests.fakes.bodies import Body, read_body
from wattledger.simulate.fleet import Fleet, SimBatch
from wattledger.simulate.plants import Plant
from wattledger.simulate.spec import BLOCK_US, US_PER_S, FleetSpec, PlantKind

START_US = 1_790_000_400 * US_PER_S
SPEC = FleetSpec(start_at_us=START_US, nodes=12, devices_per_node=2, seed=4)


@lru_cache
def _sent() -> list[tuple[SimBatch, Body]]:
    return [(batch, read_body(batch.body)) for batch in Fleet(SPEC).batches(START_US, START_US + 24 * BLOCK_US, 3600)]


def _planted(kind: PlantKind) -> Plant:
    (found,) = [plant for plant in Fleet(SPEC).plants(START_US, START_US + 24 * BLOCK_US) if plant.kind is kind]
    return found


def _rows(plant: Plant, margin_us: int = 0) -> pl.DataFrame:
    """Rows of the event's nodes while it lasted, once each."""
    names = {SPEC.node_name(node) for node in plant.nodes}
    frames = [body.streams[Stream.DEVICE] for batch, body in _sent() if body.meta.node in names and not batch.copy]
    return pl.concat(frames).filter(
        pl.col("at_us") >= plant.start_us + margin_us,
        pl.col("at_us") < plant.end_us - margin_us,
        pl.col("reading") == 0,
    )


def _min(rows: pl.DataFrame, column: str) -> float:
    return float(rows.select(pl.col(column).min()).item())


def _max(rows: pl.DataFrame, column: str) -> float:
    return float(rows.select(pl.col(column).max()).item())


def _median(rows: pl.DataFrame, column: str) -> float:
    return float(rows.select(pl.col(column).median()).item())


def test_a_day_holds_each_planted_event_once() -> None:
    found = Counter(plant.kind for plant in Fleet(SPEC).plants(START_US, START_US + 24 * BLOCK_US))
    assert found == Counter(SPEC.plants)
    assert PlantKind.CLOCK_SKEW not in found


def test_a_thermally_throttled_job_is_hot_slow_and_says_so() -> None:
    rows = _rows(_planted(PlantKind.THERMAL_THROTTLE), margin_us=900 * US_PER_S)
    busy = rows.filter(pl.col("gpu_util_percent") > 80)
    assert busy.height > 0.9 * rows.height
    assert _median(busy, "temp_c") >= 80
    assert (busy["clocks_event_reasons"] & 0x20).ne(0).all()
    assert _median(busy, "sm_clock_mhz") <= 1300
    spent = rows.group_by("device").agg(pl.col("throttle_sw_thermal_ns").max() - pl.col("throttle_sw_thermal_ns").min())
    assert _min(spent, "throttle_sw_thermal_ns") > 3 * 3600 * 10**9


def test_a_capped_job_sits_on_its_limit() -> None:
    rows = _rows(_planted(PlantKind.POWER_CAP), margin_us=300 * US_PER_S)
    busy = rows.filter(pl.col("gpu_util_percent") > 80)
    assert busy["power_limit_mw"].unique().to_list() == [400_000]
    assert _max(busy, "power_average_mw") <= 400_000
    assert _min(busy, "power_average_mw") > 380_000
    assert (busy["clocks_event_reasons"] & 0x4).ne(0).all()


def test_an_idle_hoarder_holds_without_work_at_idle_power() -> None:
    rows = _rows(_planted(PlantKind.IDLE_HOARDER), margin_us=60 * US_PER_S)
    assert _max(rows, "gpu_util_percent") == 0
    assert _max(rows, "sm_active_ratio") == 0
    assert _max(rows, "power_average_mw") < 130_000
    assert _min(rows, "processes") == 1


def test_a_runaway_job_says_what_it_was_planned_to_take() -> None:
    plant = _planted(PlantKind.RUNAWAY)
    (job,) = [job for job in Fleet(SPEC).jobs(plant.start_us, plant.end_us) if job.plant is PlantKind.RUNAWAY]
    # One node of two devices, planned for two hours, ran for fourteen.
    assert job.label == "planned-accelerator-hours=4"
    assert (job.end_us - job.start_us) * len(job.devices) == pytest.approx(28 * BLOCK_US, rel=1e-3)


def test_a_lost_device_falls_silent_with_an_xid_while_its_node_goes_on() -> None:
    plant = _planted(PlantKind.LOST_DEVICE)
    node = SPEC.node_name(plant.nodes[0])
    assert plant.device is not None
    index = plant.device % SPEC.devices_per_node
    rows = _rows(plant)
    assert index not in rows["device"].to_list()
    assert rows.height > 0
    events = pl.concat(
        [
            body.streams[Stream.DEVICE_EVENT]
            for _, body in _sent()
            if body.meta.node == node and Stream.DEVICE_EVENT in body.streams
        ]
    ).filter(pl.col("device") == index)
    assert events.sort("at_us")["kind"].to_list() == ["xid", "lost", "recovered"]
    assert events.filter(pl.col("kind") == "xid")["code"].to_list() == [79]
    ends = pl.concat(
        [
            body.streams[Stream.ALLOCATION]
            for _, body in _sent()
            if body.meta.node == node and Stream.ALLOCATION in body.streams
        ]
    ).filter(pl.col("action") == 2, pl.col("at_us") == plant.start_us // 1000 * 1000 + 40 * US_PER_S + 501)
    assert dict(zip(ends["device"], ends["energy_mj"].is_null(), strict=True)) == {index: True, 1 - index: False}


def test_a_silent_node_sends_nothing_and_its_counter_goes_on() -> None:
    plant = _planted(PlantKind.SILENT_NODE)
    assert _rows(plant).is_empty()
    assert plant.end_us - plant.start_us < BLOCK_US
    around = Fleet(SPEC).truth(plant.start_us, plant.end_us)
    device = plant.nodes[0] * SPEC.devices_per_node
    # The job that ran through the silence kept drawing power: known from the readings on either side.
    assert around.device_energy_mj[SPEC.device_uuid(device)] > 300 * 1000 * 3000


def test_held_back_batches_come_three_hours_later_and_the_first_of_them_twice() -> None:
    plant = _planted(PlantKind.LATE_BATCHES)
    late = [batch for batch, _ in _sent() if batch.late]
    assert {batch.node for batch in late} == {SPEC.node_name(plant.nodes[0])}
    assert [batch.copy for batch in late] == [0, 1, 0, 0, 0, 0, 0]
    assert {batch.arrives_at_us for batch in late} == {plant.end_us + 3 * BLOCK_US}
    assert _rows(plant).height == 360 * 2


def test_duplicates_and_disorder_happen_and_lose_nothing() -> None:
    spec = FleetSpec(
        start_at_us=START_US, nodes=6, devices_per_node=1, plants=frozenset(), duplicate_ratio=0.1, reorder_ratio=0.2
    )
    sent = list(Fleet(spec).batches(START_US, START_US + 6 * BLOCK_US))
    ids = Counter((batch.spool, batch.sequence) for batch in sent)
    assert len(ids) == 6 * 36
    assert 5 <= sum(count == 2 for count in ids.values()) <= 60
    order = [batch.sequence for batch in sent if batch.spool == spec.spool(0)]
    assert order != sorted(order)
    arrivals = [batch.arrives_at_us for batch in sent]
    assert arrivals == sorted(arrivals)


def test_a_skewed_clock_is_a_mark_on_the_delivery_only() -> None:
    spec = FleetSpec(start_at_us=START_US, nodes=2, devices_per_node=1, plants=frozenset({PlantKind.CLOCK_SKEW}))
    sent = list(Fleet(spec).batches(START_US + 18 * BLOCK_US, START_US + 21 * BLOCK_US))
    assert {batch.skew_us for batch in sent} == {0, 900 * US_PER_S}
    assert len([batch for batch in sent if batch.skew_us and not batch.copy]) == 6
    assert {read_body(batch.body).meta.clock_offset_us for batch in sent} == {0}


def test_power_stays_between_idle_floor_and_cap() -> None:
    rows = pl.concat([body.streams[Stream.DEVICE] for _, body in _sent()]).filter(pl.col("reading") == 0)
    assert _min(rows, "power_min_mw") > 60_000
    assert _max(rows, "power_max_mw") <= 700_000
    assert rows["temp_c"].is_between(25, 95).all()
    free = rows.filter(pl.col("processes") == 0, pl.col("power_average_mw") == pl.col("power_instant_mw"))
    assert _max(free, "power_average_mw") < 95_000


def test_a_batch_length_that_does_not_fit_is_refused() -> None:
    fleet = Fleet(SPEC)
    with pytest.raises(ValueError, match="batch_seconds 7 must be a multiple of 10"):
        list(fleet.batches(START_US, START_US + BLOCK_US, 7))
    with pytest.raises(ValueError, match="end_us"):
        list(fleet.batches(START_US, START_US + 5 * US_PER_S))
    with pytest.raises(ValueError, match="the fleet begins"):
        list(fleet.batches(START_US - BLOCK_US, START_US))
    with pytest.raises(ValueError, match="start_at_us"):
        FleetSpec(start_at_us=START_US + 1)
