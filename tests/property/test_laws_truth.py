"""Law 1 against a world whose truth is known: the model's device-hours are what the simulated counters grew by."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import Final

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.frames import DeviceReadings
from analytics.model.energy import meter
from analytics.model.readings import KeySpace, timelines, unwrapped
from analytics.pipeline import HourResult, content_hash
from analytics.policy import Policy
from analytics.units import US_PER_HOUR, to_us
from tests.sim.observed import Observed
from tests.sim.spec import JobMix, Sampling, Sharing, Weather, WorldSpec
from tests.sim.world import NODE_METER, START_US, World

pytestmark = pytest.mark.property
LAW: Final = settings(max_examples=12, deadline=None)
HOURS: Final = 2
ON_THE_SECOND: Final = Sampling(jitter_s=0)
SHARINGS: Final = st.sampled_from(
    [
        None,
        Sharing("mig", profiles=((3, 2, 2), (7,)), reconfigure_at_s=4_000),
        Sharing("time_slice", boards=1),
        Sharing("mps", contention=0.5),
    ]
)


@st.composite
def specs(draw: st.DrawFn, weather: Weather | None = None) -> WorldSpec:
    mix = JobMix(
        count=draw(st.integers(0, 40)),
        duration_s=draw(st.sampled_from([(5, 300), (300, 5_000)])),
        ramp_s=draw(st.sampled_from([0, 2])),
    )
    return WorldSpec(
        seed=draw(st.integers(0, 2**32)),
        hours=HOURS,
        boards=3,
        nodes=2,
        jobs=mix,
        sharing=draw(SHARINGS),
        weather=weather or Weather(),
    )


EVERYTHING: Final = Weather(
    reset_rate=1,
    silence_s=600,
    reload_in_outage=True,
    two_feeds=True,
    moved_devices=1,
    lost_end_rate=0.1,
    requeue_rate=0.2,
    clock_jitter_us=400_000,
    node_meter_gain=1.02,
    failing_evidence=0.1,
    overlap_rate=0.1,
    count_only_rate=0.2,
)


def _counted(rows: list[tuple[int, int, int]], first: int, last: int) -> int:
    """What the counter grew by in [first, last), epoch by epoch, each interval rounded down where an edge cuts it."""
    energy = 0
    for (start, epoch, low), (end, after, high) in pairwise(rows):
        # A step of more power than a board can have is no energy; its value may be a second old at either end.
        believed = high - low <= Policy().gaps.max_power_mw // 1_000 * (end - start + 1_000_000) // 1_000 + 1
        if epoch == after and low <= high and believed and start < last and end > first:
            a, b = (min(max(edge, start), end) - start for edge in (first, last))
            energy += (high - low) * b // (end - start) - (high - low) * a // (end - start)
    return energy


def _device_hours(seen: Observed) -> dict[tuple[int, int], int | None]:
    """Energy (mJ) that the model books by board and hour, over all holders."""
    usage = seen.site().close().usage.with_columns((pl.col("hour_at").dt.epoch("us") - START_US).alias("hour_us"))
    sums = usage.group_by("device_id", "hour_us").agg(
        pl.when(pl.col("energy_mj").is_not_null().any()).then(pl.col("energy_mj").sum())
    )
    return {(board, hour // US_PER_HOUR): energy for board, hour, energy in sums.iter_rows()}


@LAW
@given(spec=specs(), exact=st.booleans())
def test_device_hours_are_the_truth_where_a_reading_stands_on_the_hour(*, spec: WorldSpec, exact: bool) -> None:
    """Whoever held what, shared or not, with readings at events or without: to the millijoule."""
    world = World(spec)
    booked = _device_hours(world.sample(Sampling(jitter_s=0, exact_at_events=exact)))
    assert booked == {
        (board, hour): world.truth.energy_mj(hour * US_PER_HOUR, (hour + 1) * US_PER_HOUR, device=board)
        for board in world.truth.boards
        for hour in range(HOURS)
    }


@LAW
@given(specs(Weather(silence_s=1_500)))
def test_a_silence_inside_one_epoch_loses_no_energy(spec: WorldSpec) -> None:
    """Its size is known and its timing is not: only an hour whose beginning or end was silent may be off."""
    world = World(spec)
    booked = _device_hours(world.sample(ON_THE_SECOND))
    for board in world.truth.boards:
        start, end = world.fate.silences[board]
        true = [
            world.truth.energy_mj(hour * US_PER_HOUR, (hour + 1) * US_PER_HOUR, device=board) for hour in range(HOURS)
        ]
        energies = [booked[board, hour] for hour in range(HOURS)]
        assert None not in energies
        if not any(start - 1 <= edge < end for edge in (0, US_PER_HOUR, HOURS * US_PER_HOUR)):
            assert energies == true
        elif start <= US_PER_HOUR < end and start > 0 and end < HOURS * US_PER_HOUR:
            assert sum(energy or 0 for energy in energies) == sum(true)


@LAW
@given(specs(Weather(reset_rate=1.5, silence_s=600, reload_in_outage=True, moved_devices=1)))
def test_resets_and_moves_cost_the_interval_they_fall_into_and_nothing_else(spec: WorldSpec) -> None:
    """Of an interval in which a counter began at 0 nobody knows the energy: it is neither guessed nor counted twice."""
    world = World(spec)
    seen = world.sample(ON_THE_SECOND)
    booked = _device_hours(seen)
    for board in world.truth.boards:
        resets = world.fate.resets(board)
        at = sorted(seen.readings.filter(device_id=board)["at"].dt.epoch("us").to_list())
        lost = [
            (start - START_US, end - START_US)
            for start, end in pairwise(at)
            if any(start - START_US < reset <= end - START_US for reset in resets)
        ]
        for hour in range(HOURS):
            first, last = hour * US_PER_HOUR, (hour + 1) * US_PER_HOUR
            if any(world.fate.silences[board][0] - 1 <= edge < world.fate.silences[board][1] for edge in (first, last)):
                continue
            unknown = sum(
                world.truth.energy_mj(max(start, first), min(end, last), device=board)
                for start, end in lost
                if start < last and end > first
            )
            assert booked[board, hour] == world.truth.energy_mj(first, last, device=board) - unknown


@LAW
@given(specs(), st.floats(0, 3))
def test_jitter_moves_energy_over_an_hours_edges_by_less_than_an_interval_of_it(spec: WorldSpec, jitter: float) -> None:
    world = World(spec)
    booked = _device_hours(world.sample(Sampling(jitter_s=jitter)))
    # Intervals are at most 10 s + twice the jitter long; power lies between the floor and what three full jobs draw.
    most_mj = round((10 + 2 * jitter) * 3 * 700_000)
    for (board, hour), energy in booked.items():
        true = world.truth.energy_mj(hour * US_PER_HOUR, (hour + 1) * US_PER_HOUR, device=board)
        assert energy is not None
        assert abs(energy - true) <= 2 * most_mj


@LAW
@given(specs().filter(lambda spec: spec.sharing is None))
def test_a_job_read_exactly_at_both_ends_is_billed_its_true_energy(spec: WorldSpec) -> None:
    """To the millijoule, however short it is and whenever the periodic readings come."""
    world = World(spec)
    usage = world.sample(ON_THE_SECOND).site().close().usage
    billed = dict(usage.group_by("holder").agg(pl.col("energy_mj").sum()).iter_rows())
    for holder in world.truth.holders:
        assert billed.get(holder, 0) == world.truth.energy_mj(0, HOURS * US_PER_HOUR, holder=holder)


@LAW
@given(specs(EVERYTHING), st.floats(0, 3))
def test_with_everything_mixed_a_device_hour_is_last_minus_first_of_each_epoch(spec: WorldSpec, jitter: float) -> None:
    """Two feeds, moves, reloads in silences, clocks that are off, shared boards, lost ends: the native counter to the millijoule."""
    world = World(spec)
    seen = world.sample(Sampling(jitter_s=jitter, event_delay_s=0.2, refresh_s=0.1))
    booked = _device_hours(seen)
    native = [row["epoch_id"] for row in seen.epochs if row["feed"] == 1]
    rows = seen.readings.filter(pl.col("epoch_id").is_in(native)).sort("device_id", "at")
    for board in world.truth.boards:
        told = rows.filter(device_id=board).select(
            pl.col("at").dt.epoch("us") - START_US, pl.col("epoch_id").cast(pl.Int64), "energy_mj"
        )
        for hour in range(HOURS):
            expected = _counted(told.rows(), hour * US_PER_HOUR, (hour + 1) * US_PER_HOUR)
            assert booked[board, hour] == expected


@LAW
@given(specs(EVERYTHING))
def test_with_everything_mixed_hours_closed_one_by_one_are_the_same_bytes_and_all_say_simulated(
    spec: WorldSpec,
) -> None:
    site = World(spec).sample(Sampling()).site()
    together, alone = site.close(), [site.close(site.window(hour, 1)) for hour in range(HOURS)]
    for name in ("usage", "lines", "quality"):
        parts = pl.concat([getattr(result, name) for result in alone])
        assert content_hash(parts) == content_hash(getattr(together, name)), name
    assert together.usage["origin"].unique().to_list() == together.lines["origin"].unique().to_list() == [4]


def _told(seen: Observed, board: int, feed: int) -> list[tuple[int, int, int]]:
    ids = [row["epoch_id"] for row in seen.epochs if row["feed"] == feed]
    mine = seen.readings.filter((pl.col("device_id") == board) & pl.col("epoch_id").is_in(ids)).sort("at")
    return mine.select(pl.col("at").dt.epoch("us") - START_US, pl.col("epoch_id").cast(pl.Int64), "energy_mj").rows()


def _hidden(seen: Observed, board: int, first: int, last: int) -> Observed:
    """The same, of an agent that read this board in [first, last) alone."""
    native = [row["epoch_id"] for row in seen.epochs if row["feed"] == 1]
    at = pl.col("at").dt.epoch("us") - START_US
    unseen = (pl.col("device_id") == board) & pl.col("epoch_id").is_in(native) & ~at.is_between(first, last - 1)
    return replace(seen, readings=DeviceReadings.validate(seen.readings.filter(~unseen)))


@LAW
@given(specs(EVERYTHING), st.integers(-900, 7200), st.integers(0, 8000), st.floats(0, 3))
def test_where_an_agent_comes_late_or_leaves_early_the_second_feed_counts_and_inside_its_time_never(
    spec: WorldSpec, comes_s: int, stays_s: int, jitter: float
) -> None:
    """Two feeds of one counter, silences, reloads in them, moves: by intervals, each device-hour to the millijoule."""
    board = 1
    seen = World(spec).sample(Sampling(jitter_s=jitter, event_delay_s=0.2, refresh_s=0.1))
    seen = _hidden(seen, board, comes_s * 1_000_000, (comes_s + stays_s) * 1_000_000)
    booked = _device_hours(seen)
    native, dcgm = _told(seen, board, 1), _told(seen, board, 2)
    for hour in range(HOURS):
        first, last = hour * US_PER_HOUR, (hour + 1) * US_PER_HOUR
        if native:
            came, left = (min(max(at, first), last) for at in (native[0][0], native[-1][0]))
            expected = _counted(native, first, last) + _counted(dcgm, first, came) + _counted(dcgm, left, last)
        else:
            expected = _counted(dcgm, first, last)
        assert booked[board, hour] == expected


@LAW
@given(specs(Weather(two_feeds=True)).filter(lambda spec: spec.sharing is None))
def test_a_job_whose_hooks_read_the_counter_is_billed_its_true_energy(spec: WorldSpec) -> None:
    """No reading at its beginning or end, two feeds at cadences of their own: the anchors alone make it exact."""
    world = World(spec)
    seen = world.sample(Sampling(jitter_s=0, exact_at_events=False, hook_anchors=True))
    result = seen.site(anchors=seen.anchors.to_dicts()).close()
    billed = dict(result.usage.group_by("holder").agg(pl.col("energy_mj").sum()).iter_rows())
    for holder in world.truth.holders:
        assert billed.get(holder, 0) == world.truth.energy_mj(0, HOURS * US_PER_HOUR, holder=holder)
    assert result.quality.filter(reason="anchor_rejected").is_empty()


@LAW
@given(spec=specs(EVERYTHING), exact=st.booleans())
def test_no_figure_is_silent_and_what_is_estimated_says_between_what_it_lies(*, spec: WorldSpec, exact: bool) -> None:
    nothing_is_silent(
        World(spec).sample(Sampling(exact_at_events=exact, event_delay_s=0.2, refresh_s=0.1)).site().close()
    )


def nothing_is_silent(result: HourResult) -> None:
    """Law 2: source, coverage and origin on each row; bounds where something is estimated and nowhere else, around the energy."""
    for row in result.usage.iter_rows(named=True):
        guessed = (row["estimated_mj"] or 0) > 0
        assert row["source"] == "estimated" or not guessed
        assert row["source"] in {"measured", "estimated", "assumed"}
        assert 0 <= row["coverage"] <= 1
        assert row["origin"] == 4
        bounds = (row["energy_low_mj"], row["energy_high_mj"])
        assert (None not in bounds) == (guessed or (row["source"] == "assumed" and row["energy_mj"] is not None))
        assert None in bounds or bounds[0] <= row["energy_mj"] <= bounds[1]
    energies = ("energy_mj", "energy_low_mj", "energy_high_mj")
    usage = result.usage.with_columns(pl.coalesce(name, "energy_mj").fill_null(0).alias(name) for name in energies)
    told = result.lines.filter(pl.col("energy_mj").is_not_null())
    lines = told.with_columns(pl.coalesce(name, "energy_mj").alias(name) for name in energies)
    assert usage.select(pl.col(energies).sum()).row(0) == lines.select(pl.col(energies).sum()).row(0)


@LAW
@given(spec=specs(Weather(silence_s=1_500)), exact=st.booleans())
def test_the_true_energy_of_a_silent_hour_lies_inside_its_bounds(*, spec: WorldSpec, exact: bool) -> None:
    world = World(spec)
    usage = world.sample(Sampling(jitter_s=0, exact_at_events=exact)).site().close().usage
    for (board, hour_at), rows in usage.partition_by("device_id", "hour_at", as_dict=True).items():
        assert isinstance(board, int)
        assert isinstance(hour_at, datetime)
        first = to_us(hour_at) - START_US
        true = world.truth.energy_mj(first, first + US_PER_HOUR, device=board)
        low, high = (rows.select(pl.coalesce(f"energy_{end}_mj", "energy_mj").sum()).item() for end in ("low", "high"))
        assert low <= true <= high


@LAW
@given(st.integers(0, 2**32), st.sampled_from([2**28, 2**31, 10**9]), st.floats(0, 3))
def test_a_node_meter_that_wraps_counts_what_one_that_does_not_counts(seed: int, wrap_mj: int, jitter: float) -> None:
    """1 to 4 kW over two hours: dozens of times past a limit of 2^28 mJ, read each 10 s, between jobs of 90 to 700 W a board."""
    policy, keys = Policy(), KeySpace.around(START_US, START_US + HOURS * US_PER_HOUR, Policy().gaps.reach_us)
    grown = []
    for limit in (None, wrap_mj):
        weather = Weather(node_meter_gain=1.02, wrap_mj=limit)
        seen = World(WorldSpec(seed, hours=HOURS, boards=4, weather=weather)).sample(Sampling(jitter_s=jitter))
        readings = seen.readings.filter(pl.col("device_id") > NODE_METER)
        epochs = pl.DataFrame(seen.epochs, schema_overrides={"epoch_id": pl.Int32, "cadence_us": pl.Int64})
        ((line, *others), _) = timelines(readings, epochs, keys, policy)
        assert not others
        device = line.rows["device_id"].unique()
        wraps = pl.DataFrame(
            {"device_id": device, "wrap_mj": pl.Series([limit], dtype=pl.Int64), "accelerators": [4], "key": [0]}
        )
        devices = wraps.with_columns(idle_power_mw=pl.lit(None, dtype=pl.Int32)).cast({"accelerators": pl.Int32})
        found = meter(unwrapped(line, wraps, policy), devices, keys, policy)
        assert found.holes.is_empty()
        cuts = pl.DataFrame({"at_us": [START_US + at * US_PER_HOUR // 7 for at in range(7 * HOURS + 1)]})
        grown.append(found.at(cuts.with_columns(device_id=pl.lit(device[0])), ["energy_mj"])["energy_mj"].diff())
    assert grown[0].equals(grown[1], null_equal=True)


@settings(max_examples=6, deadline=None)
@given(spec=specs().filter(lambda spec: spec.sharing is not None), order=st.randoms(use_true_random=False))
def test_shared_boards_are_divided_alike_in_any_order_of_looks_and_board_by_board(
    *, spec: WorldSpec, order: random.Random
) -> None:
    seen = World(spec).sample(Sampling())
    site = seen.site()
    usage = site.close().usage
    shares, activity = list(site.shares), list(site.activity)
    order.shuffle(shares)
    order.shuffle(activity)
    assert content_hash(replace(site, shares=shares, activity=activity).close().usage) == content_hash(usage)
    alone = pl.concat([seen.of([board]).site().close().usage for board in (1, 2, 3)])
    assert content_hash(alone.sort("hour_at", "device_id", "holder")) == content_hash(usage)
