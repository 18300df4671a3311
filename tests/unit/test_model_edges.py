"""An interval in which the holder changes is divided by the power each had: worked out by hand."""

from typing import Any

import polars as pl
import pytest

from analytics.inputs import Window
from tests.fakes.site import HOUR, Site, at, device, epoch, holds, reading

IDLE_W, JOB_W = 100, 400


def _drawn(until: int, *spans: tuple[float, float, float], step: int = 10) -> list[dict[str, Any]]:
    """Readings each ``step`` seconds of a device at 100 W, but for spans (from, to, watts)."""

    def joules(second: float) -> float:
        more = sum((watts - IDLE_W) * (min(max(second, start), end) - start) for start, end, watts in spans)
        return 100_000 + IDLE_W * second + more

    return [reading(1, second, joules(second)) for second in range(-2 * step, until + 1, step)]


def _energies(site: Site) -> dict[str, int]:
    return {holder: row["energy_mj"] for holder, row in site.usage().items()}


BEGINS = Site(
    readings=_drawn(3600, (3, 33, JOB_W)),
    devices=[device(idle_power_mw=IDLE_W * 1000)],
    allocations=[holds(7, 1, 3, 33)],
)


def test_a_job_that_begins_between_readings_has_its_own_power_from_its_first_second() -> None:
    # [0, 10) holds 3 s of 100 W and 7 s of 400 W, 3,100 J; by time alone the job had 2,170 J of it. Its level is [10, 20)'s,
    # its end is cut the same way: 1,200 of the 1,900 J of [30, 40).
    # The idle device's own interval lies in the hour before, so that its power at rest stands for it.
    assert _energies(BEGINS) == {"job:7": 12_000_000, "idle": 357_000_000}


def test_what_was_divided_is_estimated_and_its_bounds_hold_both_answers() -> None:
    row = BEGINS.usage()["job:7"]
    # 2,800 + 1,200 J of two intervals; by time alone 2,170 + 570 J. The 8,000 J between them are measured.
    assert (row["estimated_mj"], row["source"]) == (4_000_000, "estimated")
    assert (row["energy_low_mj"], row["energy_high_mj"]) == (8_000_000 + 2_740_000, 12_000_000)


def test_a_device_hour_is_what_it_was() -> None:
    readings = _drawn(3600, (3, 33, JOB_W), (33, 47, 700))
    alone = Site(readings=readings).usage()["idle"]["energy_mj"]
    cut = _energies(Site(readings=readings, allocations=[holds(7, 1, 3, 33), holds(8, 1, 33, 47)]))
    assert sum(cut.values()) == alone


def test_a_job_inside_one_interval_gets_what_the_idle_device_beside_it_leaves() -> None:
    # [10, 20) holds 6 s of 100 W and 4 s of 500 W: 2,600 J. The idle time around it has 100 W in the intervals before and after.
    site = Site(readings=_drawn(3600, (13, 17, 500)), allocations=[holds(7, 1, 13, 17)])
    assert _energies(site)["job:7"] == 2_000_000


def test_two_jobs_back_to_back_have_the_power_of_their_own_intervals() -> None:
    # [20, 30): 5 s of 700 W, then 5 s of 200 W.
    site = Site(
        readings=_drawn(3600, (10, 25, 700), (25, 40, 200)), allocations=[holds(7, 1, 10, 25), holds(8, 1, 25, 40)]
    )
    energies = _energies(site)
    assert (energies["job:7"], energies["job:8"]) == (10_500_000, 3_000_000)


def test_idle_time_without_an_interval_of_its_own_has_the_devices_power_at_rest() -> None:
    # 70 W is this device's floor; idle from 25 to 28 s only. [20, 30) holds 7 s of 400 W and 3 s of 70 W: 3,010 J.
    readings = [reading(1, at, 400 * at - 990 * (at >= 30)) for at in range(0, 3601, 10)]
    site = Site(
        readings=readings,
        devices=[device(idle_power_mw=70_000)],
        allocations=[holds(7, 1, 0, 25), holds(8, 1, 28, 3600)],
    )
    energies = _energies(site)
    assert (energies["idle"], energies["job:7"]) == (210_000, 10_000_000)


def test_a_cut_at_which_a_reading_stands_is_measured() -> None:
    readings = sorted(
        [*_drawn(3600, (3, 33, JOB_W)), reading(1, 3, 100_300), reading(1, 33, 112_300)], key=lambda r: r["at"]
    )
    row = Site(readings=readings, allocations=[holds(7, 1, 3, 33)]).usage()["job:7"]
    assert (row["energy_mj"], row["source"], row["energy_low_mj"]) == (12_000_000, "measured", None)


def test_parts_of_a_shared_device_are_not_divided_by_levels() -> None:
    # Half of the board from 3 s on: 3,100 J x 7/10 of [0, 10), by time, and half of that.
    site = Site(readings=_drawn(10, (3, 10, JOB_W)), allocations=[holds(7, 1, 3, 10, 0.5)])
    assert _energies(site)["job:7"] == 1_085_000


def test_a_gap_is_not_divided_by_levels() -> None:
    readings = [*_drawn(100), *[reading(1, at, 100 * at + 160_000) for at in range(400, 3601, 10)]]
    rows = Site(readings=readings, allocations=[holds(7, 1, 200, 3600)]).usage()
    assert rows["unattributed:telemetry_gap"]["energy_mj"] == 90_000_000


def test_an_interval_over_the_hour_is_divided_in_each_hour_by_itself() -> None:
    # [3595, 3605) is 8 s of 100 W and 2 s of 400 W: 1,600 J, of which each hour has 800 by time. Of the second's 800 J, 3 s are idle, with
    # no interval of their own in this hour, so 70 W; 2 s are the job's at 400 W: 210 to 800.
    readings = [reading(1, at, 1000 + 100 * at + 300 * max(at - 3603, 0)) for at in range(-5, 7206, 10)]
    site = Site(readings=readings, allocations=[holds(7, 1, 3603, 7200)], hours=2)
    usage = site.close().usage.sort("hour_at", "holder")
    assert usage["energy_mj"].to_list() == [359_500_000 + 800_000, 166_337, 633_663 + 400_000 * 3_595]
    assert pl.concat([site.close(site.window(hour, 1)).usage for hour in (0, 1)]).equals(usage)


@pytest.mark.parametrize("step_s", [10, 30, 60])
def test_the_slower_the_feed_the_more_levels_are_worth(step_s: int) -> None:
    # From 8 s into an interval to 8 s into another, 240 s of 400 W, whatever the cadence.
    site = Site(
        readings=_drawn(3600, (128, 368, JOB_W), step=step_s),
        epochs=[epoch(cadence_us=step_s * 1_000_000)],
        allocations=[holds(7, 1, 128, 368)],
    )
    assert _energies(site)["job:7"] == 96_000_000


def test_a_gauge_keeps_its_trapezoid() -> None:
    readings = [reading(1, at, None, 100 if at < 20 else 400) for at in range(0, 61, 10)]
    rows = Site(readings=readings, allocations=[holds(7, 1, 15, 60)]).usage()
    # (100 + 400) / 2 W x 5 s of [10, 20), then 40 s at 400 W.
    assert rows["job:7"]["energy_mj"] == 1_250_000 + 16_000_000
    assert rows["job:7"]["estimated_mj"] == 17_250_000


def test_an_interval_that_a_holder_shares_with_the_next_one_says_nothing_of_its_power() -> None:
    # 400 W in [20, 25), 700 W in [25, 33): job 8 has no interval for itself. Of [20, 30) job 7's [10, 20) says 400 W, which leaves 3,500 J; of
    # [30, 40) the idle time's [40, 50) says 100 W, which leaves 2,100 J.
    site = Site(
        readings=_drawn(3600, (10, 25, 400), (25, 33, 700)), allocations=[holds(7, 1, 10, 25), holds(8, 1, 25, 33)]
    )
    assert _energies(site)["job:8"] == 5_600_000
    assert _energies(site)["job:7"] == 6_000_000


def test_the_interval_next_to_it_counts_and_none_further_off() -> None:
    # Idle at 150 W until 20 s and 100 W then; the job at 400 W in [33, 50), at 700 W until 57 s; idle at 100 W, and from 70 s at 150 W.
    readings = _drawn(3600, (0, 20, 150), (33, 50, 400), (50, 57, 700), (70, 3600, 150))
    # [30, 40), 3,100 J: 3 s at [20, 30)'s 100 W to 7 s at [40, 50)'s 400 W, 2,800 J. [50, 60), 5,200 J: 7 s at [40, 50)'s 400 W to 3 s at
    # [60, 70)'s 100 W, 2,800 to 300: of two levels that are both too low the proportion counts.
    job = _energies(Site(readings=readings, allocations=[holds(7, 1, 33, 57)]))["job:7"]
    assert job == 2_800_000 + 4_000_000 + 4_696_774


def test_an_idle_device_that_draws_nothing_leaves_everything_to_the_job() -> None:
    # A board asleep: 0 W is what its interval says, not nothing.
    readings = [reading(1, at, 400 * (min(max(at, 13), 27) - 13)) for at in range(0, 3601, 10)]
    assert _energies(Site(readings=readings, allocations=[holds(7, 1, 13, 27)])) == {"job:7": 5_600_000, "idle": 0}


def test_an_interval_shorter_than_a_counters_refresh_says_nothing_of_power() -> None:
    # A reading at 19.5 s and one at 20 s: half a second at what looks like 4 kW, of a counter that was refreshed in it. So
    # the idle device is taken to be at rest, 70 W.
    readings = [*_drawn(3600, (24, 60, JOB_W)), reading(1, 19.5, 100_000)]
    site = Site(readings=readings, allocations=[holds(7, 1, 24, 60)])
    # [20, 30): 4 s and 6 s of 400 W, 2,800 J; 4 s at 70 W to 6 s at 400 W: 280 to 2,400.
    assert _energies(site)["job:7"] == 30 * 400_000 + 2_507_463


def test_an_open_hour_divides_no_interval_that_it_has_only_a_part_of() -> None:
    # It is told until 1,205 s; the interval of [1200, 1210) holds 3 s of 100 W and 7 of 400 W, 3,100 J: by time, 310 W, until it is over.
    site = Site(readings=_drawn(3600, (1203, 1300, JOB_W)), allocations=[holds(7, 1, 1203, 1300)])
    usage = site.close(Window(HOUR, at(1205), HOUR)).usage
    assert dict(usage.select("holder", "energy_mj").iter_rows()) == {"idle": 120_000_000 + 930_000, "job:7": 620_000}
    assert usage["estimated_mj"].to_list() == [0, 0]


def test_holders_that_change_where_nobody_measures_are_not_divided() -> None:
    readings = [row for row in _drawn(1000, (3, 33, JOB_W)) if row["at"] >= at(100)]
    rows = Site(readings=readings, allocations=[holds(7, 1, 3, 33), holds(8, 1, 1005, 3600)]).usage()
    assert (rows["job:7"]["energy_mj"], rows["job:8"]["energy_mj"]) == (None, None)


def test_devices_beside_each_other_do_not_lend_each_other_power() -> None:
    # Device 1's last reading is at 60 s, device 2's first at 0: the cut at 55 s of one knows nothing of the other's 900 W.
    first = [row for row in _drawn(60, (55, 60, JOB_W)) if row["at"] >= at(0)]
    second = [reading(2, second, 900 * second) for second in range(0, 3601, 10)]
    site = Site(readings=[*first, *second], devices=[device(1), device(2)], allocations=[holds(7, 1, 55, 3600)])
    # [50, 60) is 5 s of 100 W and 5 of 400 W: 2,500 J, of which [40, 50) leaves 2,000.
    assert _energies(site)["job:7"] == 2_000_000


def test_the_very_first_interval_of_a_device_is_divided_like_any_other() -> None:
    # As above, but for what is read before the hour.
    first = Site(readings=BEGINS.readings[2:], devices=BEGINS.devices, allocations=BEGINS.allocations)
    assert _energies(first) == {"job:7": 12_000_000, "idle": 357_000_000}


def test_a_device_of_unknown_floor_has_100_watts_of_each_of_its_accelerators_at_rest() -> None:
    # Twice all of the above: two boards that are metered together and held together.
    twice = [{**row, "energy_mj": 2 * row["energy_mj"]} for row in BEGINS.readings]
    pair = device(kind="node", accelerators=2, idle_power_mw=None)
    both = Site(readings=twice, devices=[pair], allocations=[{**holds(7, 1, 3, 33), "accelerators": 2}])
    assert _energies(both) == {"job:7": 24_000_000, "idle": 714_000_000}
