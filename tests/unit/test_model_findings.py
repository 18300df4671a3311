"""Idle waste needs two signals, throttling needs work, and both carry their evidence and price."""

import json
from decimal import Decimal
from typing import Any

import polars as pl

from analytics.model.findings import idle_waste, json_of, to_json
from analytics.pipeline import read_meters, resolve_holds
from analytics.policy import Policy
from analytics.units import to_us
from tests.fakes.site import HOUR, Site, at, device, epoch, holds, job, reading, steady, tariff

IDLE = {"gpu_util_percent": 0, "clocks_event_reasons": 0}
BUSY = {"gpu_util_percent": 95, "clocks_event_reasons": 0}


def _findings(site: Site) -> list[dict[str, Any]]:
    return site.close().findings.to_dicts()


def test_a_held_device_idle_by_utilization_and_power_is_waste_with_its_price() -> None:
    readings = [*steady(1, 0, 1190, 75, **IDLE), *steady(1, 1200, 3600, 75, **BUSY)]
    readings = [{**row, "energy_mj": (row["at"] - HOUR).seconds * 75_000} for row in readings]
    site = Site(readings=readings, allocations=[holds(7, 1, 0, 3600)], tariffs=[tariff(1, "3.60")])
    (found,) = _findings(site)
    # The row at 1,200 s reports work, so the idle run ends at 1,190 s: 75 W x 1,190 s = 89.25 kJ, at 3.60 a kWh 0.08925.
    assert (found["kind"], found["job_id"], found["start_at"], found["end_at"]) == ("idle_waste", 7, HOUR, at(1190))
    assert (found["waste_energy_mj"], found["avoidable_cash"]) == (89_250_000, Decimal("0.08925"))
    assert found["capacity_freed_us"] == 1_190_000_000
    assert {signal["instrument"] for signal in json.loads(found["evidence"])["signals"]} == {
        "gpu_util_percent",
        "power",
    }


def test_low_utilization_alone_is_not_waste() -> None:
    # No kernel runs but 300 W are drawn: something works that utilization does not see.
    assert _findings(Site(readings=steady(1, 0, 3600, 300, **IDLE), allocations=[holds(7, 1, 0, 3600)])) == []


def test_nine_idle_minutes_are_no_finding() -> None:
    readings = [*steady(1, 0, 540, 75, **IDLE)]
    assert _findings(Site(readings=readings, allocations=[holds(7, 1, 0, 3600)])) == []


def test_an_idle_device_nobody_holds_is_not_waste() -> None:
    assert _findings(Site(readings=steady(1, 0, 3600, 75, **IDLE))) == []


def test_an_episode_across_the_hour_is_found_in_both_hours_from_either_side() -> None:
    # Idle from 3,300 s to 4,200 s: five minutes in the first hour, ten in the second, one episode of fifteen.
    site = Site(readings=steady(1, 3300, 4200, 75, **IDLE), allocations=[holds(7, 1, 0, None)], hours=2)
    both = _findings(site)
    assert [(row["start_at"], row["end_at"]) for row in both] == [(at(3300), at(3600)), (at(3600), at(4200))]
    alone = [row for hour in (0, 1) for row in site.close(site.window(hour, 1)).findings.to_dicts()]
    assert alone == both


def test_throttling_is_priced_with_its_assumed_loss_and_two_sources() -> None:
    hot = {"gpu_util_percent": 99, "clocks_event_reasons": 0x40}
    readings = [
        {**row, "throttled_ns": (row["at"] - HOUR).seconds * 500_000_000} for row in steady(1, 0, 3600, 700, **hot)
    ]
    (found,) = _findings(Site(readings=readings, allocations=[holds(7, 1, 0, 3600)], tariffs=[tariff(1, "1")]))
    # Half of each second by the counters: 1,800 s; a fifth of 0.35 kWh and of 1,800 s is lost.
    assert found["kind"] == "throttling"
    assert (found["waste_energy_mj"], found["avoidable_cash"]) == (252_000_000, Decimal("0.07"))
    assert (found["capacity_freed_us"], found["confidence"]) == (360_000_000, 0.9)
    assert json.loads(found["evidence"])["loss_source"] == "assumed"


def test_bits_that_the_violation_counters_deny_are_no_throttling() -> None:
    capped = {"gpu_util_percent": 99, "clocks_event_reasons": 0x4, "throttled_ns": 0}
    assert _findings(Site(readings=steady(1, 0, 3600, 700, **capped), allocations=[holds(7, 1, 0, 3600)])) == []


def test_an_idle_board_that_reports_its_power_cap_is_not_throttled() -> None:
    capped = {"gpu_util_percent": 0, "clocks_event_reasons": 0x4}
    kinds = [
        row["kind"]
        for row in _findings(Site(readings=steady(1, 0, 3600, 39, **capped), allocations=[holds(7, 1, 0, 3600)]))
    ]
    assert kinds == ["idle_waste"]


def test_findings_of_simulated_data_are_marked() -> None:
    site = Site(readings=steady(1, 0, 3600, 75, **IDLE), allocations=[holds(7, 1, 0, 3600)], epochs=[epoch(origin=4)])
    assert [row["origin"] for row in _findings(site)] == [4]


def test_a_shared_device_is_not_called_idle_for_one_of_its_holders() -> None:
    shares = [holds(1, 1, 0, 3600, 0.5), holds(2, 1, 0, 3600, 0.5)]
    assert (
        _findings(Site(readings=[*steady(1, 0, 3600, 75, **IDLE), reading(1, 3610, 270.75, 75)], allocations=shares))
        == []
    )


def test_ten_idle_minutes_are_a_finding_and_its_evidence_says_the_mean_power() -> None:
    # 75 W for 600 s; work begins with the next reading.
    readings = [*steady(1, 0, 600, 75, **IDLE), reading(1, 610, 48_000, 300, **BUSY)]
    (found,) = _findings(Site(readings=readings, allocations=[holds(7, 1, 0, 3600)]))
    assert (found["start_at"], found["end_at"], found["waste_energy_mj"]) == (HOUR, at(600), 45_000_000)
    assert found["evidence"] == (
        '{"episode_at_least_us":600000000,"signals":[{"instrument":"gpu_util_percent","value":0},'
        '{"instrument":"power","mean_mw":75000}]}'
    )


def test_work_between_two_idle_runs_parts_them() -> None:
    # 590 s and 600 s of idle time around one reading at work: only the second is long enough.
    idle = steady(1, 0, 1200, 75, **IDLE)
    readings = [{**row, **BUSY} if row["at"] == at(600) else row for row in idle]
    (found,) = _findings(Site(readings=readings, allocations=[holds(7, 1, 0, 3600)]))
    assert (found["start_at"], found["end_at"]) == (at(600), at(1200))


def test_throttling_without_counters_has_one_signal_and_says_how_long_it_was_held() -> None:
    hot = {"gpu_util_percent": 99, "clocks_event_reasons": 0x40}
    (found,) = _findings(Site(readings=steady(1, 0, 3600, 700, **hot), allocations=[holds(7, 1, 600, 3600)]))
    assert (found["start_at"], found["end_at"], found["confidence"]) == (at(600), at(3600), 0.5)
    assert found["evidence"] == (
        '{"held_us":3000000000,"loss_percent":20,"loss_source":"assumed",'
        '"signals":[{"instrument":"clocks_event_reasons","throttled_us":3000000000}]}'
    )


def test_evidence_made_of_columns_is_what_is_made_of_each_row() -> None:
    rows = pl.DataFrame({"a": [1, -20], "b": [300, 0]})
    nested: dict[str, Any] = {"z": 'é " \\', "list": [{"b": 1, "a": None}, []], "flag": True, "ratio": 0.5}
    of_columns = rows.select(json_of(values=[pl.col("a"), {"deep": pl.col("b")}], **nested)).to_series()
    of_rows = [to_json(values=[a, {"deep": b}], **nested) for a, b in rows.iter_rows()]
    assert of_columns.to_list() == of_rows


def test_where_no_interval_is_idle_there_is_no_run_of_them() -> None:
    site = Site(readings=steady(1, 0, 3600, 300, **BUSY), allocations=[holds(7, 1, 0, 3600)])
    inputs = site.inputs().usage
    (meter,) = read_meters(inputs, Policy()).meters
    assert meter.sums["idle_us"].sum() == 0
    hours = pl.DataFrame({"device_id": [1], "hour_us": [to_us(HOUR)]}, schema_overrides={"device_id": pl.Int32})
    # Another meter of the device told of idle time in the hour.
    usage = hours.with_columns(pl.lit(7).alias("job_id"), pl.lit(1).alias("idle_us"))
    held = resolve_holds(inputs, Policy()).held
    assert idle_waste([meter], {0: hours}, usage, held, inputs.devices, Policy(), to_us(at(3600))).is_empty()


def _slow(percent: int, until: int = 3600, **more: Any) -> list[dict[str, Any]]:
    """700 W at work, slowed for so much of each second up to ``until`` by the counters."""
    hot = {"gpu_util_percent": 99, "clocks_event_reasons": 0x40} | more
    return [
        {**row, "throttled_ns": min((row["at"] - HOUR).seconds, until) * percent * 10_000_000}
        for row in steady(1, 0, 3600, 700, **hot)
    ]


def _kinds(readings: list[dict[str, Any]]) -> list[str]:
    return [row["kind"] for row in _findings(Site(readings=readings, allocations=[holds(7, 1, 0, 3600)]))]


def test_throttling_counts_from_the_policys_least_share_and_time_on() -> None:
    limits = Site().policy.throttle
    least = limits.min_throttled_percent
    seconds = limits.min_throttled_us // 1_000_000
    assert least * 36 >= seconds  # of an hour, the share is the longer of the two
    assert _kinds(_slow(least)) == ["throttling"]
    assert _kinds(_slow(least - 1)) == []


def test_an_overlap_over_two_hours_is_told_in_each_with_what_is_of_it() -> None:
    both = [holds(1, 1, 3000, 4200), holds(2, 1, 3000, 4200)]
    site = Site(readings=steady(1, 0, 7200, 300), allocations=both, hours=2)
    rows = [row for row in _findings(site) if row["kind"] == "overlapping_allocations"]
    assert [(row["start_at"], row["end_at"]) for row in rows] == [(at(3000), at(3600)), (at(3600), at(4200))]
    assert {row["evidence"] for row in rows} == {'{"jobs":[1,2]}'}


def test_an_overlap_that_ends_on_the_hour_is_not_of_the_next() -> None:
    both = [holds(1, 1, 3000, 3600), holds(2, 1, 3000, 3600)]
    rows = _findings(Site(readings=steady(1, 0, 7200, 300), allocations=both, hours=2))
    assert [(row["start_at"], row["end_at"]) for row in rows] == [(at(3000), at(3600))]


def test_what_is_found_of_a_simulated_job_is_simulated_whatever_board_it_ran_on() -> None:
    readings = steady(1, 0, 3600, 75, **IDLE)
    of_job = {
        origin: Site(readings=readings, allocations=[holds(7, 1, 0, 3600)], jobs=[job(7, origin=origin)])
        for origin in (1, 4)
    }
    assert {origin: [row["origin"] for row in _findings(site)] for origin, site in of_job.items()} == {1: [1], 4: [4]}


def test_a_share_just_short_of_the_policys_least_is_none() -> None:
    # 4.99 % of an hour; and 59.9 s of a holding of twenty minutes, 4.992 %, are too short besides.
    readings = [{**row, "throttled_ns": (row["at"] - HOUR).seconds * 49_900_000} for row in _slow(0)]
    assert _kinds(readings) == []


def test_what_throttling_costs_is_cut_to_the_millijoule_twice() -> None:
    # Half of 2,519,999,999 mJ is 1,259,999,999.5, and a fifth of what is left 251,999,999.8.
    readings = _slow(50)
    readings[-1] = {**readings[-1], "energy_mj": 2_519_999_999}
    (found,) = _findings(Site(readings=readings, allocations=[holds(7, 1, 0, 3600)]))
    assert found["waste_energy_mj"] == 251_999_999


def test_an_end_nobody_told_that_falls_on_the_hour_is_found_in_the_hour_before_it() -> None:
    epochs = [epoch(), epoch(2, boot_id="later", first_seen_at=at(3600))]
    for hours in (1, 2):
        site = Site(
            readings=steady(1, 0, 3600 * hours, 100), allocations=[holds(7, 1, 1000, None)], epochs=epochs, hours=hours
        )
        (found,) = site.close().findings.filter(kind="allocation_without_end").to_dicts()
        assert (found["start_at"], found["end_at"]) == (at(1000), at(3600))


def test_an_episode_that_ends_on_the_hour_is_not_told_again_in_the_next() -> None:
    # Idle from 50:00 to the hour, at work for 100 s, idle again from 01:40 on for 700 s.
    readings = [
        {**row, **BUSY} if at(3600) < row["at"] <= at(3700) else row for row in steady(1, 3000, 4400, 75, **IDLE)
    ]
    found = _findings(Site(readings=readings, allocations=[holds(7, 1, 0, None)], hours=2))
    assert [(row["start_at"], row["end_at"]) for row in found] == [(at(3000), at(3600)), (at(3700), at(4400))]


def test_an_idle_run_begins_behind_the_first_interval_where_that_was_at_work() -> None:
    readings = [{**row, **BUSY} if row["at"] <= at(10) else row for row in steady(1, 0, 610, 75, **IDLE)]
    (found,) = _findings(Site(readings=readings, allocations=[holds(7, 1, 0, 3600)]))
    assert (found["start_at"], found["end_at"]) == (at(10), at(610))


def test_mean_power_of_an_idle_run_is_cut_to_the_milliwatt() -> None:
    # 45,000,450 mJ in 600 s: 75,000.75 mW.
    readings = steady(1, 0, 600, 75, **IDLE)
    readings[-1] = {**readings[-1], "energy_mj": 45_000_450}
    (found,) = _findings(Site(readings=readings, allocations=[holds(7, 1, 0, 3600)]))
    assert json.loads(found["evidence"])["signals"][1] == {"instrument": "power", "mean_mw": 75_000}


def test_an_idle_node_frees_the_time_of_each_of_its_accelerators() -> None:
    readings = steady(1, 0, 600, 600, **IDLE)
    node = device(1, kind="node", accelerators=8, model="8xH100", idle_power_mw=600_000)
    (found,) = _findings(Site(readings=readings, devices=(node,), allocations=[holds(7, 1, 0, 3600)]))
    assert (found["capacity_freed_us"], found["waste_energy_mj"]) == (8 * 600_000_000, 360_000_000)
