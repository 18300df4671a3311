"""The interpolated counter, its gaps and its fallbacks, seen through usage hours."""

import pytest

from analytics.errors import InputError
from analytics.inputs import Window
from analytics.policy import GapPolicy, Policy
from tests.fakes.site import HOUR, Site, at, device, epoch, holds, reading, steady


def test_energy_of_an_hour_is_the_counter_read_at_its_two_ends() -> None:
    # 100 W from 5 s before the hour to 5 s after it, read every 10 s: the ends fall between readings.
    row = Site(readings=steady(1, -5, 3605, 100)).usage()["idle"]
    assert (row["energy_mj"], row["covered_us"], row["coverage"]) == (360_000_000, 3_600_000_000, 1.0)
    assert (row["source"], row["feed"], row["origin"], row["state"]) == ("measured", 1, 1, "available")


def test_an_allocation_that_starts_between_readings_splits_the_interval_to_the_millijoule() -> None:
    # 10 J between 0 s and 30 s; the job begins at 10 s: floor(10,000 mJ x 10 / 30) = 3,333 mJ stay idle.
    site = Site(readings=[reading(1, 0, 0), reading(1, 30, 10)], allocations=[holds(7, 1, 10, 3600)])
    assert site.usage()["idle"]["energy_mj"] == 3_333
    assert site.usage()["job:7"]["energy_mj"] == 6_667


def test_a_counter_that_starts_over_is_unknown_energy_never_negative() -> None:
    readings = [reading(1, 0, 1000), reading(1, 10, 1100), reading(1, 20, 30), reading(1, 30, 80)]
    result = Site(readings=readings).close()
    assert result.usage["energy_mj"].to_list() == [150_000]
    assert result.usage["covered_us"].to_list() == [20_000_000]
    lost = {row["reason"]: row["time_us"] for row in result.quality.iter_rows(named=True)}
    assert lost == {"counter_reset": 10_000_000, "no_data": 3_570_000_000}


def test_counters_of_two_boots_are_never_subtracted() -> None:
    readings = [reading(1, 0, 10), reading(1, 10, 20), reading(1, 20, 500, epoch_id=2), reading(1, 30, 510, epoch_id=2)]
    site = Site(readings=readings, epochs=[epoch(1), epoch(2, boot_id="next")])
    assert site.usage()["idle"]["energy_mj"] == 20_000


def test_epoch_rows_of_one_boot_share_the_counter() -> None:
    readings = [reading(1, 0, 10), reading(1, 10, 20, epoch_id=2)]
    site = Site(readings=readings, epochs=[epoch(1), epoch(2, cadence_us=1_000_000)])
    assert site.usage()["idle"]["energy_mj"] == 10_000


def test_a_step_no_device_could_draw_is_a_broken_counter() -> None:
    readings = [reading(1, 0, 0), reading(1, 10, 10), reading(1, 20, 10**9), reading(1, 30, 10**9 + 10)]
    result = Site(readings=readings).close()
    assert result.usage["energy_mj"].to_list() == [20_000]
    assert "implausible" in result.quality["reason"].to_list()


def test_an_event_beside_a_refresh_of_the_counter_loses_no_energy() -> None:
    # 700 W, refreshed each 100 ms: read 1 ms before and at a refresh, the counter steps by 70 J, which is 70 kW for 1 ms.
    readings = [reading(1, 0, 0), reading(1, 9.999, 6_930)] + [
        reading(1, second, 700 * second) for second in range(10, 3601, 10)
    ]
    result = Site(readings=readings).close()
    assert result.usage["energy_mj"].to_list() == [2_520_000_000]
    assert result.quality.is_empty()


def test_a_gap_goes_to_the_job_that_held_the_device_throughout() -> None:
    readings = [reading(1, 0, 0), reading(1, 10, 1), reading(1, 310, 31), reading(1, 320, 32)]
    row = Site(readings=readings, allocations=[holds(7, 1, -100, None)]).usage()["job:7"]
    assert (row["energy_mj"], row["estimated_mj"], row["source"]) == (32_000, 30_000, "estimated")
    assert row["covered_us"] == 20_000_000


def test_a_gap_in_which_the_holder_changed_is_nobodys() -> None:
    readings = [reading(1, 0, 0), reading(1, 10, 1), reading(1, 310, 31), reading(1, 320, 32)]
    rows = Site(readings=readings, allocations=[holds(7, 1, -100, 200), holds(8, 1, 200, None)]).usage()
    assert rows["unattributed:telemetry_gap"]["energy_mj"] == 30_000
    assert rows["unattributed:telemetry_gap"]["held_us"] == 0
    assert (rows["job:7"]["energy_mj"], rows["job:8"]["energy_mj"]) == (1_000, 1_000)
    assert rows["job:7"]["held_us"] == 200_000_000


def test_a_silent_device_that_nobody_held_proves_no_idleness() -> None:
    readings = [reading(1, 0, 0), reading(1, 300, 30)]
    rows = Site(readings=readings).usage()
    assert rows["unattributed:telemetry_gap"]["energy_mj"] == 30_000
    assert rows["idle"]["energy_mj"] is None


def test_a_slow_feed_is_not_a_gap() -> None:
    # Cadence 60 s: the limit is 180 s.
    readings = [reading(1, 0, 0), reading(1, 120, 12)]
    site = Site(readings=readings, epochs=[epoch(cadence_us=60_000_000)])
    assert site.usage()["idle"]["covered_us"] == 120_000_000


def test_readings_beyond_the_reach_are_not_joined() -> None:
    near = Policy(gaps=GapPolicy(reach_us=3_600_000_000))
    row = Site(readings=[reading(1, -60, 0), reading(1, 3660, 100)], policy=near).usage()["idle"]
    assert (row["energy_mj"], row["coverage"], row["state"]) == (None, 0.0, "down")


def test_without_a_counter_the_gauge_is_integrated_by_trapezoid_and_says_so() -> None:
    # (100 W + 200 W) / 2 x 2 s + (200 W + 200 W) / 2 x 2 s = 700 J
    readings = [reading(1, 0, None, 100), reading(1, 2, None, 200), reading(1, 4, None, 200)]
    row = Site(readings=readings).usage()["idle"]
    assert (row["energy_mj"], row["estimated_mj"], row["covered_us"]) == (700_000, 700_000, 4_000_000)


def test_a_gauge_says_nothing_about_a_gap() -> None:
    readings = [reading(1, 0, None, 100), reading(1, 2, None, 100), reading(1, 102, None, 100)]
    row = Site(readings=readings).usage()["idle"]
    assert (row["energy_mj"], row["covered_us"]) == (200_000, 2_000_000)


def test_a_gauge_that_shows_what_no_board_can_draw_costs_its_two_intervals_and_no_more() -> None:
    # 300 W for an hour but once two megawatts: the ten seconds on either side are not known, 3,580 s of 300 W are.
    readings = [reading(1, seconds, None, 2_147_483 if seconds == 1_800 else 300) for seconds in range(0, 3_610, 10)]
    result = Site(readings=readings).close()
    assert result.usage["energy_mj"].to_list()[0] == 1_074_000_000
    assert result.usage["covered_us"].to_list()[0] == 3_580_000_000
    assert ("implausible", 20_000_000) in result.quality.select("reason", "time_us").rows()


def test_bad_gauge_readings_and_repeated_instants_are_dropped_and_counted() -> None:
    readings = [
        reading(1, 0, None, 100),
        reading(1, 2, None, -43),
        reading(1, 4, None, 0),
        reading(1, 6, None, 100),
        reading(1, 6, None, 100),
    ]
    result = Site(readings=readings).close()
    assert result.usage["energy_mj"].to_list() == [600_000]
    dropped = {row["reason"]: row["readings"] for row in result.quality.iter_rows(named=True)}
    assert (dropped["not_positive"], dropped["repeated"]) == (2, 1)


def test_the_counter_wins_over_the_gauge_within_an_hour() -> None:
    readings = [reading(1, 0, 0, 500), reading(1, 5, None, 500), reading(1, 10, 1, 500)]
    row = Site(readings=readings).usage()["idle"]
    assert (row["energy_mj"], row["source"]) == (1_000, "measured")


def test_time_without_the_first_feed_uses_the_next() -> None:
    imported = steady(1, 0, 7200, 200, epoch_id=2)
    site = Site(readings=[*imported, *steady(1, 0, 1800, 100)], epochs=[epoch(1), epoch(2, feed=4, origin=2)], hours=2)
    assert site.close().usage["feed"].to_list() == [1, 4]
    assert site.close().usage["energy_mj"].to_list() == [180_000_000 + 360_000_000, 720_000_000]


def test_a_node_meter_counts_each_of_its_accelerators() -> None:
    site = Site(
        readings=steady(1, 0, 3600, 5000, step=2),
        devices=[device(kind="node", accelerators=8, model="8xH100")],
        allocations=[holds(7, 1, 0, 3600)],
    )
    line = site.close().lines.filter(charge_category="gpu_owned").row(0, named=True)
    assert (line["quantity"], line["energy_mj"]) == (8 * 3_600_000_000, 18_000_000_000)


def test_a_window_must_begin_on_a_full_hour() -> None:
    with pytest.raises(InputError, match="full hour"):
        Site().close(Window(at(60), at(3600), HOUR))


def test_readings_of_an_unknown_epoch_are_refused() -> None:
    with pytest.raises(InputError, match="epochs"):
        Site(readings=[reading(1, 0, 0, epoch_id=9)]).close()


def test_a_step_is_believed_up_to_what_20_kw_draw_until_a_second_after() -> None:
    # 20 kW for 10 s and for the second that the value may be old: 220 kJ, and a millijoule for rounding.
    def booked(step_mj: int) -> int:
        readings = [reading(1, 0, 0), {**reading(1, 10), "energy_mj": step_mj}]
        return int(Site(readings=readings).close().usage["energy_mj"].sum())

    assert booked(220_000_001) == 220_000_001
    assert booked(220_000_002) == 0


@pytest.mark.parametrize("off_mj", [190_000_000, 300_001, -300_001, -3_000_001])
def test_a_counter_that_was_misread_once_books_no_more_than_was_drawn(off_mj: int) -> None:
    # 300 W for an hour. 190 kJ too much would pass as 19 kW of ten seconds, and the fall behind it as a counter that began anew.
    readings = steady(1, -20, 3620, 300, step=1)
    readings[50] = {**readings[50], "energy_mj": readings[50]["energy_mj"] + off_mj}
    result = Site(readings=readings).close()
    row = result.usage.row(0, named=True)
    assert (row["energy_mj"], row["coverage"], row["source"]) == (1_080_000_000, 1.0, "measured")
    assert result.quality.select("reason", "readings", "time_us", "unbooked_mj").rows() == [("spike", 1, 0, 0)]


def test_what_a_new_counter_shows_is_told_as_lost_up_to_what_can_have_been_drawn() -> None:
    def lost(shown_mj: int) -> tuple[str, int]:
        readings = [reading(1, 0, 10**6), {**reading(1, 10), "energy_mj": shown_mj}]
        rows = Site(readings=readings).close().quality.filter(reason="counter_reset")
        return rows.select("reason", "unbooked_mj").row(0)

    assert lost(220_000_001) == ("counter_reset", 220_000_001)
    assert lost(220_000_002) == ("counter_reset", 0)


@pytest.mark.parametrize(("shown", "lost_mj"), [(50, 50_000), (51, 0)])
def test_what_fell_by_less_than_half_counted_nothing_anew(shown: int, lost_mj: int) -> None:
    readings = [reading(1, 0, 101), reading(1, 10, shown)]
    rows = Site(readings=readings).close().quality.filter(reason="counter_reset")
    assert rows.select("time_us", "unbooked_mj").rows() == [(10_000_000, lost_mj)]


@pytest.mark.parametrize(("apart_s", "covered_us"), [(60, 60_000_000), (60.000001, 0)])
def test_readings_up_to_a_minute_apart_have_no_gap_between_them(apart_s: float, covered_us: int) -> None:
    rows = Site(readings=[reading(1, 0, 0), reading(1, apart_s, 6)]).usage()
    assert rows["idle"]["covered_us"] == covered_us
    assert ("unattributed:telemetry_gap" in rows) is (covered_us == 0)


def test_a_gap_in_which_nothing_was_drawn_is_a_gap_and_no_new_counter() -> None:
    found = Site(readings=[reading(1, 0, 5), reading(1, 300, 5)]).close().quality
    assert dict(found.select("reason", "time_us").rows()) == {"telemetry_gap": 300_000_000, "no_data": 3_300_000_000}


@pytest.mark.parametrize(("beyond_s", "energy_mj"), [(0, 172_800), (0.000001, 0)])
def test_readings_up_to_two_days_apart_are_joined(beyond_s: float, energy_mj: int) -> None:
    # A milliwatt of 48 hours: 172.8 J, and none of it is booked where the readings lie a microsecond further apart.
    days = 2 * 86_400
    readings = [reading(1, 0, 0), reading(1, days + beyond_s, 172.8)]
    result = Site(readings=readings, hours=49).close()
    assert result.usage["energy_mj"].fill_null(0).sum() == energy_mj
    assert result.quality["unbooked_mj"].sum() == 0


@pytest.mark.parametrize(("watts", "idle_us"), [(91.003, 10_000_000), (91.004, 0)])
def test_idle_is_up_to_130_percent_of_a_boards_own_floor_cut_to_the_milliwatt(watts: float, idle_us: int) -> None:
    # 1.3 x 70.003 W = 91.0039 W. Beside it a pair of boards of unknown floor: 1.3 x 2 x 100 W.
    two = [device(1, idle_power_mw=70_003), device(2, idle_power_mw=None, accelerators=2)]
    readings = [
        reading(number, second, watts_each * second, watts_each, gpu_util_percent=0)
        for number, watts_each in ((1, watts), (2, 260))
        for second in (0, 10)
    ]
    usage = Site(readings=readings, devices=two).close().usage
    assert dict(usage.select("device_id", "idle_us").rows()) == {1: idle_us, 2: 10_000_000}
    hotter = [{**row, "power_mw": 260_001} if row["device_id"] == 2 else row for row in readings]
    assert Site(readings=hotter, devices=two).close().usage.filter(device_id=2)["idle_us"].to_list() == [0]


def test_of_a_gap_over_the_hour_the_first_hour_has_its_part_cut_to_the_millijoule() -> None:
    # 1,005 mJ in 100 s, of which 10 s are of the first hour: 100.5 mJ.
    result = Site(readings=[reading(1, 3590, 0), reading(1, 3690, 1.005)], hours=2).close()
    lost = result.usage.filter(holder="unattributed:telemetry_gap").sort("hour_at")
    assert lost["energy_mj"].to_list() == [100, 905]
    assert result.quality["unbooked_mj"].unique().to_list() == [0]


def test_a_gauge_that_began_anew_has_counted_nothing_that_could_be_told_as_lost() -> None:
    readings = [reading(1, second, None, 100, epoch_id=1 if second < 4 else 2) for second in (0, 2, 4, 6)]
    result = Site(readings=readings, epochs=[epoch(1), epoch(2, boot_id="next")]).close()
    assert result.usage["energy_mj"].to_list() == [400_000]
    assert result.quality["unbooked_mj"].unique().to_list() == [0]


def test_device_ids_that_leave_64_bits_with_their_instants_are_refused() -> None:
    most = 2**31 - 1
    with pytest.raises(InputError, match="leave 64 bits"):
        Site(devices=[device(most)], readings=steady(most, 0, 60, 100)).close()
