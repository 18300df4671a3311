"""Law 1 against a world whose truth is known: the model's device-hours are what the simulated counters grew by."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.units import US_PER_HOUR
from tests.sim.observed import Observed
from tests.sim.spec import JobMix, Sampling, Sharing, Weather, WorldSpec
from tests.sim.world import START_US, World

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
