"""Minute rollups read the same counter as the books."""

import polars as pl

from analytics.inputs import Window
from analytics.pipeline import roll_minutes
from tests.fakes.site import HOUR, Site, at, device, epoch, reading, steady


def _minutes(site: Site) -> pl.DataFrame:
    return roll_minutes(site.inputs().usage, site.policy)


def test_a_minute_has_its_energy_its_highest_power_and_its_mean_utilization() -> None:
    readings = steady(1, -10, 70, 100)
    for row, util in zip(readings, [0, 0, 10, 20, 30, 40, 50, 60, 70], strict=True):
        row |= {"gpu_util_percent": util, "temp_c": util, "power_max_mw": 1000 + util}
    first = _minutes(Site(readings=readings)).row(0, named=True)
    # (10:00:00, 10:01:00] holds the rows of 10 s to 60 s: utilization 10 to 60, mean 35; 100 W for 60 s are 6,000 J.
    assert (first["minute_at"], first["energy_mj"], first["covered_us"]) == (HOUR, 6_000_000, 60_000_000)
    assert (first["gpu_util_percent"], first["temp_c"], first["power_max_mw"]) == (35, 60, 100_000)


def test_minutes_of_an_hour_sum_to_the_hour_and_the_last_may_be_short() -> None:
    site = Site(readings=steady(1, -5, 3605, 123), devices=[device(1), device(2)])
    assert _minutes(site)["energy_mj"].sum() == site.usage()["idle"]["energy_mj"]
    cut = roll_minutes(site.inputs(Window(HOUR, at(90), HOUR)).usage, site.policy)
    assert cut["energy_mj"].to_list() == [7_380_000, 3_690_000]


def test_a_minute_without_a_meter_has_no_energy() -> None:
    rows = _minutes(Site(readings=[reading(1, 30, None, 100)]))
    assert rows.select("energy_mj", "power_max_mw", "covered_us").rows() == [(None, 100_000, 0)]


def test_rollups_take_the_authoritative_feed() -> None:
    two = [*steady(1, 0, 60, 500, epoch_id=2), *steady(1, 0, 60, 100)]
    site = Site(readings=two, epochs=[epoch(1), epoch(2, feed=4, origin=2)])
    assert _minutes(site)["energy_mj"].to_list() == [6_000_000]
    assert _minutes(site)["origin"].to_list() == [1]


def test_minutes_that_the_first_feed_left_open_are_the_next_ones() -> None:
    # The agent until 90 s at 100 W, DCGM throughout at 200 W: the second minute has half of each.
    two = [*steady(1, 0, 90, 100), *steady(1, 0, 180, 200, step=30, epoch_id=2)]
    site = Site(readings=two, epochs=[epoch(1), epoch(2, feed=2, origin=3)])
    rows = _minutes(site)
    assert rows["energy_mj"].to_list() == [6_000_000, 3_000_000 + 6_000_000, 12_000_000]
    assert rows["covered_us"].to_list() == [60_000_000] * 3
    assert rows["origin"].to_list() == [1, 3, 3]


def test_a_minute_is_of_the_gauges_after_its_start_up_to_its_end() -> None:
    rows = [
        reading(1, second, gpu_util_percent=util) for second, util in ((0, 1), (60, 2), (61, 3), (3600, 4), (3601, 5))
    ]
    found = _minutes(Site(readings=rows)).sort("minute_at").select("minute_at", "gpu_util_percent").rows()
    assert found == [(HOUR, 2), (at(60), 3), (at(3540), 4)]


def test_mean_utilization_is_cut_to_the_percent_and_of_rows_that_tell_it() -> None:
    rows = [reading(1, second, gpu_util_percent=util) for second, util in ((10, 10), (20, None), (30, 11))]
    assert _minutes(Site(readings=rows))["gpu_util_percent"].to_list() == [10]


def test_a_minute_is_throttled_for_what_the_counter_says_and_unknown_where_it_says_nothing() -> None:
    more = {"gpu_util_percent": 90, "clocks_event_reasons": 0x40}
    told = [reading(1, 0, 0, 700, throttled_ns=0, **more), reading(1, 10, 7, 700, throttled_ns=3 * 10**9, **more)]
    assert _minutes(Site(readings=told))["throttled_us"].to_list() == [3_000_000]
    assert _minutes(Site(readings=steady(1, 0, 60, 100)))["throttled_us"].to_list() == [None]


def test_a_minute_inside_a_gap_that_the_counter_spans_has_its_part_of_the_gaps_energy_and_is_not_covered() -> None:
    # 100 W; silent from 60 s to 240 s.
    rows = [*steady(1, 0, 60, 100), *[reading(1, second, 100 * second) for second in range(240, 301, 10)]]
    found = _minutes(Site(readings=rows)).sort("minute_at")
    assert found["energy_mj"].to_list() == [6_000_000] * 5
    assert found["covered_us"].to_list() == [60_000_000, 0, 0, 0, 60_000_000]


def test_minutes_of_two_devices_are_their_own() -> None:
    site = Site(readings=[*steady(1, 0, 120, 100), *steady(2, 60, 180, 200)], devices=[device(1), device(2)])
    found = _minutes(site).sort("device_id", "minute_at").select("device_id", "minute_at", "energy_mj").rows()
    # The second's first gauge ends its first minute, of which no meter tells.
    assert found == [
        (1, HOUR, 6_000_000),
        (1, at(60), 6_000_000),
        (2, HOUR, None),
        (2, at(60), 12_000_000),
        (2, at(120), 12_000_000),
    ]


def test_a_millijoule_of_a_gap_is_told_by_the_minute() -> None:
    rows = _minutes(Site(readings=[reading(1, 0, 0), reading(1, 240, 0.004)]))
    assert rows["energy_mj"].to_list() == [1] * 4
