"""Law 1 for nodes: boards and overhead sum to the node's meter over the minutes that both sides know, and nothing else is booked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Final

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.frames import DeviceReadings, Devices, Meters, NodeReadings
from analytics.inputs import UsageInputs
from analytics.pipeline import close_hours, content_hash, map_devices
from analytics.policy import Policy
from analytics.units import US_PER_HOUR, US_PER_MINUTE, to_us
from tests.fakes.site import Site, table
from tests.sim.observed import Observed
from tests.sim.spec import JobMix, Sampling, Weather, WorldSpec
from tests.sim.world import NODE_METER, START_US, World

pytestmark = pytest.mark.property
LAW: Final = settings(max_examples=8, deadline=None)
HOURS: Final = 2
CHASSIS: Final = 5_000_000
POLICY: Final = Policy()


def with_chassis(seen: Observed, wrap_mj: int | None, site: Site | None = None) -> UsageInputs:
    """Return what is seen with the nodes' meters as agents tell of them: rows of meters, and a chassis to book on."""
    usage = (site or seen.site()).inputs().usage
    nodes = [row["node_id"] for row in seen.devices if row["kind"] == "node"]
    of_nodes = pl.col("device_id") > NODE_METER
    meters = usage.readings.filter(of_nodes)
    kinds = NodeReadings.create_empty().schema
    told = meters.with_columns(
        pl.col("device_id").alias("meter_id"), (pl.col("device_id") - NODE_METER).cast(pl.Int32).alias("node_id")
    ).select(pl.col(name).cast(kind) for name, kind in kinds.items())
    chassis = [
        {"device_id": CHASSIS + node, "uuid": f"chassis:sim/{node}", "node_id": node, "model": "chassis", "kind": "chassis",
         "accelerators": 1, "slice_ppm": 1_000_000, "origin": 4}
        for node in nodes
    ]  # fmt: skip
    known = [
        {"meter_id": NODE_METER + node, "node_id": node, "level": "node", "name": "redfish", "covers": "it",
         "gain_ppm": 20_000, "wrap_mj": wrap_mj}
        for node in nodes
    ]  # fmt: skip
    rest = usage.devices.filter(pl.col("kind") != "node")
    return replace(
        usage,
        devices=Devices.validate(pl.concat([rest, table(Devices, chassis)])),
        readings=DeviceReadings.validate(usage.readings.filter(~of_nodes)),
        node_readings=NodeReadings.validate(told),
        node_meters=table(Meters, known),
    )


class _Counter:
    """A counter read at any instant by its neighbours' readings, and what of it is covered; written out anew, row by row."""

    def __init__(self, rows: list[tuple[int, int, int]], max_gap_us: int, wrap_mj: int | None = None) -> None:
        self._steps: list[tuple[int, int, int]] = []
        for (start, epoch, low), (end, after, high) in pairwise(rows):
            rises = high - low + (wrap_mj or 0) * (wrap_mj is not None and high < low)
            if epoch == after and rises >= 0 and end - start <= max_gap_us and end > start:
                self._steps.append((start, end, rises))

    def of(self, first: int, last: int) -> tuple[int, bool]:
        energy = covered = 0
        for start, end, grown in self._steps:
            a, b = max(first, start), min(last, end)
            if a < b:
                energy += grown * (b - start) // (end - start) - grown * (a - start) // (end - start)
                covered += b - a
        return energy, covered == last - first


def _counters(readings: pl.DataFrame, key: str, max_gap_us: int, wrap_mj: int | None = None) -> Mapping[int, _Counter]:
    rows = readings.filter(pl.col("energy_mj").is_not_null()).sort(key, "at")
    return {
        number: _Counter(
            list(mine.select(pl.col("at").dt.epoch("us"), "epoch_id", "energy_mj").iter_rows()), max_gap_us, wrap_mj
        )
        for (number,), mine in rows.partition_by(key, as_dict=True).items()
    }


def _expected(usage: UsageInputs, world: World, wrap_mj: int | None) -> dict[tuple[int, int], int]:
    """Overhead (mJ) by node and hour: minute by minute from the readings, in integers, without any of the model's code."""
    boards = _counters(usage.readings, "device_id", POLICY.gaps.max_gap_us)
    meters = _counters(usage.node_readings, "meter_id", POLICY.gaps.node_max_gap_us, wrap_mj)
    found = {}
    for node in usage.node_meters["node_id"].to_list():
        for hour in range(HOURS):
            total = known = 0
            for minute in range(60):
                first = START_US + hour * US_PER_HOUR + minute * US_PER_MINUTE
                whole, complete = meters[NODE_METER + node].of(first, first + US_PER_MINUTE)
                for board, stays in world.fate.stays.items():
                    for stay in stays:
                        came = -(2**60) if stay.start_us is None else START_US + stay.start_us
                        left = 2**60 if stay.end_us is None else START_US + stay.end_us
                        a, b = max(first, came), min(first + US_PER_MINUTE, left)
                        if stay.node == node and a < b:
                            part, is_known = boards[board].of(a, b)
                            whole, complete = whole - part, complete and is_known
                if complete:
                    total, known = total + whole, known + 1
            if known and total >= 0:
                found[node, hour] = total
    return found


def _booked(usage: UsageInputs) -> dict[tuple[int, int], int]:
    rows = map_devices(usage, POLICY).usage.filter(pl.col("device_id") > CHASSIS)
    sums = rows.group_by("device_id", "hour_us").agg(pl.col("energy_mj").sum())
    return {(device - CHASSIS, (hour - START_US) // US_PER_HOUR): energy for device, hour, energy in sums.iter_rows()}


@LAW
@given(
    seed=st.integers(0, 2**32),
    silence_s=st.sampled_from([0, 61, 600]),
    moved=st.integers(0, 1),
    wrap_mj=st.sampled_from([None, 400_000_000]),
    reset_rate=st.sampled_from([0, 1]),
)
def test_boards_and_overhead_sum_to_the_meter_over_the_minutes_both_know(
    *, seed: int, silence_s: int, moved: int, wrap_mj: int | None, reset_rate: float
) -> None:
    weather = Weather(
        silence_s=silence_s, moved_devices=moved, wrap_mj=wrap_mj, reset_rate=reset_rate, node_meter_gain=1.0
    )
    spec = WorldSpec(
        seed=seed, hours=HOURS, boards=4, nodes=2, jobs=JobMix(count=10, duration_s=(300, 3_000)), weather=weather
    )
    world = World(spec)
    usage = with_chassis(world.sample(Sampling(jitter_s=0)), wrap_mj)
    assert _booked(usage) == _expected(usage, world, wrap_mj)


@LAW
@given(seed=st.integers(0, 2**32), overhead_w=st.sampled_from([150, 400]))
def test_the_overhead_of_a_node_is_the_truth_where_readings_stand_on_the_minutes(seed: int, overhead_w: float) -> None:
    spec = WorldSpec(
        seed=seed,
        hours=HOURS,
        boards=4,
        nodes=2,
        jobs=JobMix(count=10),
        overhead_w=overhead_w,
        weather=Weather(node_meter_gain=1.0),
    )
    booked = _booked(with_chassis(World(spec).sample(Sampling(jitter_s=0)), None))
    assert booked == {(node, hour): round(overhead_w * 3_600_000) for node in (1, 2) for hour in range(HOURS)}


@LAW
@given(seed=st.integers(0, 2**32))
def test_hours_apart_and_nodes_apart_give_the_same_overhead(seed: int) -> None:
    weather = Weather(silence_s=200, moved_devices=1, node_meter_gain=1.0)
    spec = WorldSpec(seed=seed, hours=HOURS, boards=4, nodes=2, jobs=JobMix(count=10), weather=weather)
    seen = World(spec).sample(Sampling(jitter_s=0.5))
    usage, inputs = with_chassis(seen, None), seen.site().inputs()
    whole = close_hours(replace(inputs, usage=usage), POLICY)
    for hour in range(HOURS):
        alone = close_hours(replace(inputs, usage=replace(usage, window=seen.site().window(hour, 1))), POLICY)
        mine = pl.col("hour_at").dt.epoch("us") == START_US + hour * US_PER_HOUR
        assert content_hash(alone.usage) == content_hash(whole.usage.filter(mine).rechunk())
        assert content_hash(alone.lines) == content_hash(whole.lines.filter(mine).rechunk())
    assert set(whole.usage.filter(pl.col("device_id") > CHASSIS)["origin"].unique()) <= {4}
    assert to_us(inputs.usage.window.from_at) == START_US
