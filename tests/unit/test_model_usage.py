"""Who held what: shares, overlaps, open ends, states, node overhead."""

from typing import Any

import polars as pl

from analytics.inputs import Window
from tests.fakes.site import HOUR, Site, at, device, epoch, holds, placed, reading, steady

FULL = steady(1, 0, 3600, 100)


def _parts(*allocations: dict[str, Any]) -> dict[str, int]:
    return {holder: row["energy_mj"] for holder, row in Site(readings=FULL, allocations=allocations).usage().items()}


def test_idle_power_is_what_no_job_claims() -> None:
    assert _parts(holds(7, 1, 900, 1800)) == {"idle": 270_000_000, "job:7": 90_000_000}


def test_a_share_leaves_the_rest_of_the_device_idle() -> None:
    assert _parts(holds(7, 1, 0, 3600, 0.25)) == {"idle": 270_000_000, "job:7": 90_000_000}


def test_three_equal_shares_split_by_largest_remainder_and_sum_to_the_meter() -> None:
    readings = [reading(1, 0, 0), reading(1, 10, 0.010)]
    third = 0.333333
    rows = Site(readings=readings, allocations=[holds(j, 1, 0, 10, third) for j in (1, 2, 3)]).usage()
    # 10 mJ / 3: 3 each, and the last goes to the first of equal remainders. Nobody is idle until the jobs end, unmetered then.
    assert {h: r["energy_mj"] for h, r in rows.items()} == {"job:1": 4, "job:2": 3, "job:3": 3, "idle": None}
    assert rows["idle"]["held_us"] == 3_590_000_000
    assert sum(row["held_us"] for row in rows.values()) == 3_600_000_000


def test_shares_beyond_the_whole_are_scaled_and_leave_nothing_idle() -> None:
    assert _parts(holds(1, 1, 0, 3600, 0.9), holds(2, 1, 0, 3600, 0.9)) == {"job:1": 180_000_000, "job:2": 180_000_000}


def test_two_jobs_that_claim_the_whole_device_get_none_of_the_overlap() -> None:
    site = Site(readings=FULL, allocations=[holds(1, 1, 0, 1800), holds(2, 1, 900, 3600)])
    assert {h: r["energy_mj"] for h, r in site.usage().items()} == {
        "job:1": 90_000_000,
        "job:2": 180_000_000,
        "unattributed:overlap": 90_000_000,
    }
    found = site.close().findings.row(0, named=True)
    assert (found["kind"], found["start_at"], found["end_at"]) == ("overlapping_allocations", at(900), at(1800))
    assert found["evidence"] == '{"jobs":[1,2]}'


def test_two_records_of_one_job_are_one_holder() -> None:
    assert _parts(holds(1, 1, 0, 3600), {**holds(1, 1, 0, 3600), "allocation_id": 5}) == {"job:1": 360_000_000}


def test_an_open_allocation_runs_to_the_end_of_the_window() -> None:
    assert _parts(holds(7, 1, 1800, None)) == {"idle": 180_000_000, "job:7": 180_000_000}


def test_the_open_hour_is_provisional_and_ends_now() -> None:
    site = Site(readings=FULL, allocations=[holds(7, 1, 0, None)])
    result = site.close(Window(HOUR, at(1200), HOUR))
    assert result.usage["held_us"].to_list() == [1_200_000_000]
    assert result.lines["status"].unique().to_list() == ["provisional"]


def test_time_without_any_meter_has_no_energy_but_is_still_held() -> None:
    rows = Site(allocations=[holds(7, 1, 0, 3600)]).usage()
    assert (rows["job:7"]["energy_mj"], rows["job:7"]["held_us"], rows["job:7"]["coverage"]) == (None, 3_600_000_000, 0)


def test_uncovered_edges_of_a_job_are_coverage_not_invented_energy() -> None:
    row = Site(readings=steady(1, 600, 1800, 100), allocations=[holds(7, 1, 0, 2400)]).usage()["job:7"]
    assert (row["energy_mj"], row["coverage"]) == (120_000_000, 0.5)


def test_a_device_placed_mid_hour_is_on_the_books_from_then() -> None:
    row = Site(placements=[placed(1, 1800)]).usage()["idle"]
    assert (row["held_us"], row["state"]) == (1_800_000_000, "down")


def test_active_idle_and_throttled_time_come_from_the_row_that_ends_the_interval() -> None:
    readings = [
        reading(1, 0, 0, 70, gpu_util_percent=0, clocks_event_reasons=0),
        reading(1, 10, 7, 700, gpu_util_percent=90, clocks_event_reasons=0x4),
        reading(1, 20, 14, 75, gpu_util_percent=0, clocks_event_reasons=0x4),
        reading(1, 30, 21, 200, gpu_util_percent=0, clocks_event_reasons=0),
    ]
    row = Site(readings=readings, allocations=[holds(7, 1, 0, 40)]).usage()["job:7"]
    # 10 s of work under the power cap; 10 s at the floor; then no work yet 200 W: neither active nor idle.
    assert (row["active_us"], row["idle_us"], row["throttled_us"]) == (10_000_000, 10_000_000, 10_000_000)


def test_violation_counters_beat_the_reason_bits() -> None:
    more = {"gpu_util_percent": 90, "clocks_event_reasons": 0x40}
    readings = [reading(1, 0, 0, 700, throttled_ns=0, **more), reading(1, 10, 7, 700, throttled_ns=3 * 10**9, **more)]
    assert Site(readings=readings).usage()["idle"]["throttled_us"] == 3_000_000


def test_an_event_reading_without_gauges_takes_the_state_of_the_row_after_it() -> None:
    readings = [reading(1, 0, 0, 70, gpu_util_percent=0), reading(1, 4, 1), reading(1, 10, 7, 700, gpu_util_percent=90)]
    assert Site(readings=readings).usage()["idle"]["active_us"] == 10_000_000


def test_unknown_utilization_is_unknown_not_idle() -> None:
    row = Site(readings=FULL, allocations=[holds(7, 1, 0, 3600)]).usage()["job:7"]
    assert (row["active_us"], row["idle_us"], row["throttled_us"], row["state"]) == (None, None, None, "used")


def test_node_overhead_goes_to_the_users_of_its_devices_by_energy() -> None:
    # Node 1000 W, two boards 300 W and 100 W: 600 W overhead, three quarters to the holder of board 1.
    site = Site(
        readings=[*steady(1, 0, 3600, 300), *steady(2, 0, 3600, 100), *steady(9, 0, 3600, 1000)],
        devices=[device(1), device(2), device(9, kind="node", accelerators=8, model="chassis")],
        allocations=[holds(7, 1, 0, 3600)],
    )
    result = site.close()
    overhead = {row["holder"]: row["energy_mj"] for row in result.usage.filter(device_id=9).iter_rows(named=True)}
    assert overhead == {"job:7": 1_620_000_000, "idle": 540_000_000}
    assert result.usage["energy_mj"].sum() == 3_600_000_000
    assert result.usage.filter(device_id=9)["held_us"].sum() == 0


def test_a_node_that_saw_less_than_its_devices_is_a_finding() -> None:
    site = Site(
        readings=[*steady(1, 0, 3600, 300), *steady(9, 0, 3600, 200)],
        devices=[device(1), device(9, kind="node", model="chassis")],
    )
    result = site.close()
    assert result.findings["kind"].to_list() == ["negative_remainder"]
    assert result.usage.filter(pl.col("device_id") == 9).is_empty()


def test_overhead_of_an_hour_not_wholly_seen_is_unknown() -> None:
    site = Site(
        readings=[*steady(1, 0, 1800, 300), *steady(9, 0, 3600, 1000)],
        devices=[device(1), device(9, kind="node", model="chassis")],
    )
    assert "overhead_unknown" in site.close().quality["reason"].to_list()


def test_a_node_metered_as_a_whole_is_booked_by_itself_until_its_boards_are_known() -> None:
    """1,000 W all hour, held by job 7; of its board, 300 W, an agent tells from 59:00 on, when the meter becomes the node's."""
    known = 3540
    site = Site(
        readings=[*steady(9, -60, 3660, 1000), *steady(1, known, 3660, 300, epoch_id=2)],
        devices=[device(1), device(9, kind="node", accelerators=8), device(90, kind="chassis", model="chassis")],
        placements=[placed(9), placed(1, known)],
        epochs=[epoch(), epoch(2, boot_id="agent")],
        allocations=[holds(7, 9, -100, 4000)],
    )
    rows = site.close().usage.select("device_id", "holder", "energy_mj", "held_us").rows()
    assert rows == [
        (1, "idle", 300 * 60 * 1000, 60_000_000),
        (9, "job:7", 1000 * known * 1000, known * 1_000_000),
    ]


def _looked(job: int | None, util_ppm: int) -> dict[str, Any]:
    """Of the first minute."""
    told = {"device_id": 1, "at": at(60), "span_us": 60_000_000, "method": "process_utilization"}
    return {**told, "job_id": job, "sm_util_ppm": util_ppm}


FLOOR_100_W = (device(idle_power_mw=100_000),)
MINUTE = steady(1, 0, 60, 500)
"""30 kJ in 60 s, of which 6 kJ are the floor."""


def test_what_halves_of_a_board_did_is_estimated_with_bounds_and_no_millijoule_is_lost() -> None:
    site = Site(
        readings=MINUTE,
        devices=FLOOR_100_W,
        allocations=[holds(job, 1, 0, 60, 0.5) for job in (1, 2)],
        shares=[_looked(1, 600_000), _looked(2, 200_000)],
    )
    rows = site.usage()
    # 3 kJ of floor each; 24 kJ of work 3 : 1. May be 5.1 % of the 24 kJ off, 1,224 J.
    assert [
        (rows[name]["energy_mj"], rows[name]["estimated_mj"], rows[name]["energy_low_mj"], rows[name]["energy_high_mj"])
        for name in ("job:1", "job:2")
    ] == [(21_000_000, 21_000_000, 19_776_000, 22_224_000), (9_000_000, 9_000_000, 7_776_000, 10_224_000)]
    assert (rows["job:1"]["held_us"], rows["job:1"]["covered_us"]) == (30_000_000, 30_000_000)
    # After their minute no meter tells of the board, and nobody has it.
    assert (rows["idle"]["held_us"], rows["idle"]["down_us"], rows["idle"]["energy_mj"]) == (
        3_540_000_000,
        3_540_000_000,
        None,
    )


def test_work_of_processes_that_are_no_jobs_is_nobodys_and_has_no_time_of_its_own() -> None:
    site = Site(
        readings=MINUTE,
        devices=FLOOR_100_W,
        allocations=[holds(1, 1, 0, 60, 0.5)],
        shares=[_looked(1, 600_000), _looked(None, 200_000)],
    )
    rows = site.usage()
    assert {holder: row["energy_mj"] for holder, row in rows.items()} == {
        "job:1": 21_000_000,
        "unattributed:no_job": 6_000_000,
        "idle": 3_000_000,
    }
    stranger = rows["unattributed:no_job"]
    assert (stranger["held_us"], stranger["estimated_mj"], stranger["energy_low_mj"]) == (0, 6_000_000, 4_776_000)


def test_halves_of_a_gap_are_estimated_and_what_was_measured_beside_it_is_not() -> None:
    # 1 J measured before and after, 30 J of the 300 s between: half of each, at 0.1 W below any floor.
    readings = [reading(1, 0, 0), reading(1, 10, 1), reading(1, 310, 31), reading(1, 320, 32)]
    rows = Site(readings=readings, allocations=[holds(job, 1, 0, 320, 0.5) for job in (1, 2)]).usage()
    row = rows["job:1"]
    assert (row["energy_mj"], row["estimated_mj"]) == (16_000, 15_000)
    assert (row["held_us"], row["covered_us"]) == (160_000_000, 10_000_000)


def test_bounds_of_a_shared_gap_and_of_shared_work_add_up() -> None:
    # Floor 0.1 W. 10 J in 20 s, of which 8 J are work that nobody looked at: 17.2 % of 8 J, 1.376 J; the gap's 30 J are certain.
    readings = [reading(1, 0, 0), reading(1, 10, 5), reading(1, 310, 35), reading(1, 320, 40)]
    halves = [holds(job, 1, 0, 320, 0.5) for job in (1, 2)]
    row = Site(readings=readings, devices=[device(idle_power_mw=100)], allocations=halves).usage()["job:1"]
    assert (row["energy_mj"], row["energy_low_mj"], row["energy_high_mj"]) == (20_000, 18_624, 21_376)


def test_an_estimated_millijoule_has_bounds_and_a_measured_kilowatt_hour_has_none() -> None:
    readings = [reading(1, 0, 0), reading(1, 10, 0), reading(1, 310, 0.001), reading(1, 320, 0.001)]
    row = Site(readings=readings, allocations=[holds(1, 1, -100, None)]).usage()["job:1"]
    assert (row["estimated_mj"], row["energy_low_mj"], row["energy_high_mj"]) == (1, 1, 1)
    measured = Site(readings=FULL).usage()["idle"]
    assert (measured["estimated_mj"], measured["energy_low_mj"], measured["energy_high_mj"]) == (0, None, None)


def test_a_device_that_stands_nowhere_is_on_the_books_only_where_a_meter_tells_of_it() -> None:
    assert Site(placements=[]).usage() == {}
    assert Site(placements=[]).close().quality.is_empty()
    seen = Site(placements=[], readings=FULL).usage()
    assert seen["idle"]["energy_mj"] == 360_000_000
    # Also where all that is told of it is the size of a gap, which is nobody's.
    lost = Site(placements=[], readings=[reading(1, 0, 0), reading(1, 300, 30)])
    assert {holder: row["energy_mj"] for holder, row in lost.usage().items()} == {
        "idle": None,
        "unattributed:telemetry_gap": 30_000,
    }
    found = {row["reason"]: row["time_us"] for row in lost.close().quality.iter_rows(named=True)}
    assert found == {"telemetry_gap": 300_000_000, "no_data": 3_300_000_000}


def test_a_dropped_reading_is_told_with_the_hour_that_it_is_of_from_its_first_instant_to_before_its_last() -> None:
    readings = [reading(1, second, None, -1) for second in (-1, 0, 3600, 5400, 7200)]
    result = Site(readings=readings, hours=2).close()
    rows = result.quality.sort("hour_at", "reason").select("hour_at", "reason", "readings", "time_us", "unbooked_mj")
    assert rows.rows() == [
        (HOUR, "no_data", 0, 3_600_000_000, 0),
        (HOUR, "not_positive", 1, 0, 0),
        (at(3600), "no_data", 0, 3_600_000_000, 0),
        (at(3600), "not_positive", 2, 0, 0),
    ]


def test_of_two_gaps_of_a_holding_the_one_it_outlasts_is_its_and_the_one_it_ends_in_is_nobodys() -> None:
    # 100 W; silent from 100 to 400 s and from 2,900 to 3,200 s, and the job ends at 3,000 s.
    readings = [row for row in FULL if not (at(100) < row["at"] < at(400) or at(2900) < row["at"] < at(3200))]
    site = Site(readings=readings, allocations=[holds(7, 1, 0, 3000)])
    rows = site.usage()
    assert {holder: (row["energy_mj"], row["estimated_mj"], row["held_us"]) for holder, row in rows.items()} == {
        "job:7": (290_000_000, 30_000_000, 3_000_000_000),
        "idle": (40_000_000, 0, 600_000_000),
        "unattributed:telemetry_gap": (30_000_000, 30_000_000, 0),
    }
    lost = rows["unattributed:telemetry_gap"]
    assert [lost[name] for name in ("covered_us", "reserved_us", "down_us")] == [0, 0, 0]
    assert site.close().quality.select("reason", "time_us").rows() == [("telemetry_gap", 600_000_000)]


def test_an_hour_that_a_meter_covers_has_nothing_to_tell_of_its_quality() -> None:
    assert Site(readings=FULL).close().quality.is_empty()
