"""The benchmark of short jobs says what it says: its scrape is one, exact readings leave no error, and all of it is simulated."""

import pytest

from bench.short_jobs import by_minute, measure
from tests.sim.spec import JobMix, WorldSpec
from tests.sim.steps import Steps
from tests.sim.world import World

pytestmark = pytest.mark.unit


def test_each_minute_is_whose_board_it_is_as_it_begins() -> None:
    mix = JobMix(count=1, duration_s=(90, 90), gap_s=(0, 0), power_w=(500, 500), first_s=30)
    world = World(WorldSpec(boards=1, jobs=mix, floor_w=(100, 100)))
    # Held from 30 s to 120 s: of the minutes 0, 1 and 2 only 1 begins with the job, 60 s at 500 W of its 90.
    assert by_minute(world).tolist() == [30_000_000]
    assert world.truth.energy_mj(0, world.until_us, holder="job:1") == 45_000_000


def test_exact_readings_leave_no_error_and_every_figure_says_that_it_is_simulated() -> None:
    mix = JobMix(count=100, duration_s=(5, 300), first_s=60)
    results = measure(WorldSpec(boards=8, jobs=mix, hours=2))
    assert {result.detail["data"] for result in results} == {"simulated"}
    assert all("simulated" in result.target for result in results)
    by_name = {result.name.removeprefix("attribution.short."): result.value for result in results}
    assert by_name["exact.5_30s"] == by_name["exact.30_300s"] == 0
    assert 0 < by_name["late.30_300s"] < 0.1
    # Steady power on both sides of an edge is all that dividing an interval by levels assumes.
    assert by_name["readings_only.30_300s"] < 0.001


def test_jobs_that_do_not_fit_are_no_benchmark() -> None:
    with pytest.raises(RuntimeError, match="do not fit into 1 hours of 1 boards"):
        measure(WorldSpec(boards=1, jobs=JobMix(count=1_000)))


def test_the_power_of_nothing_is_nothing() -> None:
    assert Steps([]).energy_mj(0, 1_000_000) == 0
