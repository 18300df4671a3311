"""Minute rollups read the same counter as the books."""

import polars as pl

from analytics.pipeline import Window, roll_minutes
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
