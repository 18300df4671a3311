"""Shared IT by a meter: what it showed, nothing where it was silent, and never a node's overhead beside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from analytics.frames import MeterPeriods, Meters, NodeReadings, SharedIt
from analytics.inputs import Window
from analytics.pipeline import HourResult, close_hours, map_devices, reduce_shards
from analytics.shards import shards
from tests.fakes.site import LONG_AGO, Site, at, device, epoch, placed, steady, table

METER, SWITCH = 7, 95
J = 1_000


def shown(start: int, stop: int, watts: int, every: int = 30) -> list[dict[str, Any]]:
    return [
        {"meter_id": METER, "at": at(second), "epoch_id": 1, "energy_mj": watts * J * (second + 600)}
        for second in range(start, stop + 1, every)
    ]


def facts(
    readings: list[dict[str, Any]], periods: list[dict[str, Any]] | None = None, level: str = "node", **meter: Any
) -> dict[str, Any]:
    usual = {"meter_id": METER, "level": level, "name": "redfish", "covers": "it", "gain_ppm": 20_000}
    item = {"shared_it_id": 1, "device_id": SWITCH, "name": "leaf", "kind": "switch", "meter_id": METER, "error_ppm": 0}
    return {
        "node_meters": table(Meters, [usual | meter]),
        "node_readings": table(NodeReadings, readings),
        "shared_it": table(SharedIt, [item | {"valid_from": LONG_AGO}]),
        "meter_periods": table(MeterPeriods, periods or []),
    }


def site(hours: int = 1) -> Site:
    switch = device(SWITCH, kind="site", uuid="site:s/leaf", node_id=None, model="switch")
    chassis = device(90, kind="chassis", uuid="chassis:s/n1", model="chassis")
    return Site(
        readings=steady(1, -20, 3600 * hours + 20, 300),
        devices=(device(1), chassis, switch),
        placements=(placed(1),),
        hours=hours,
    )


def closed(of: Site, more: dict[str, Any], window: Window | None = None) -> HourResult:
    inputs = of.inputs(window)
    return close_hours(replace(inputs, usage=replace(inputs.usage, **more)), of.policy)


def told(result: HourResult) -> list[tuple[Any, ...]]:
    rows = result.usage.filter(device_id=SWITCH)
    return rows.select("energy_mj", "origin", "source", "coverage").rows()


def test_an_hour_in_which_the_meter_of_a_node_was_silent_is_not_known_and_closes() -> None:
    silent = facts(shown(-600, 3600, 500))
    by_day = closed(site(2), silent)
    assert told(by_day) == [(1_800_000 * J, 1, "measured", 1.0), (None, 2, "measured", 0.0)]
    times = by_day.quality.filter(reason="shared_it_unknown").select("hour_at", "time_us").rows()
    assert times == [(at(3600), 3_600_000_000)]
    # So it is where nothing of it is near the hour.
    assert told(closed(site(2), facts([]), site().window(1, 1))) == [(None, 2, "measured", 0.0)]


def test_an_hour_without_a_period_of_the_sites_meter_is_not_known() -> None:
    first = {"meter_id": METER, "from_at": at(0), "to_at": at(3600), "energy_mj": 500 * J, "source": "measured"}
    by_day = closed(site(2), facts([], [first], level="other"))
    assert told(by_day) == [(500 * J, 2, "measured", 1.0), (None, 2, "measured", 0.0)]
    assert told(closed(site(2), facts([], level="other"), site().window(1, 1))) == [(None, 2, "measured", 0.0)]


def test_a_meter_of_shared_it_is_no_overhead_of_the_node_that_speaks_for_it() -> None:
    usage = closed(site(), facts(shown(-600, 3900, 500))).usage
    assert usage.select("device_id", "energy_mj").rows() == [(1, 1_080_000 * J), (SWITCH, 1_800_000 * J)]


def test_a_meter_of_what_cools_a_node_is_no_overhead_of_it() -> None:
    cooling = facts([row | {"node_id": 1} for row in shown(-600, 3900, 500)], node_id=1, covers="cooling")
    nothing = {**cooling, "shared_it": cooling["shared_it"].clear()}
    assert closed(site(), nothing).usage["device_id"].to_list() == [1]


def test_shared_it_on_a_nodes_meter_is_the_same_however_nodes_are_divided() -> None:
    two = replace(
        site(),
        readings=steady(1, -20, 3620, 300) + [row | {"epoch_id": 2} for row in steady(2, -20, 3620, 300)],
        devices=(*site().devices, device(2, node_id=9)),
        placements=(placed(1), placed(2, node_id=9)),
        epochs=(epoch(), epoch(2, node_id=9)),
    )
    inputs = two.inputs()
    usage = replace(inputs.usage, **facts(shown(-600, 3900, 500)))
    at_once = map_devices(usage, two.policy)
    parts = [map_devices(part, two.policy) for part in shards(usage, 1)]
    assert len(parts) > 1
    books = [
        reduce_shards(usage.window, shard, inputs.references, inputs.api_calls).usage for shard in ([at_once], parts)
    ]
    assert books[0].rows() == books[1].rows()
    assert books[0].filter(device_id=SWITCH)["energy_mj"].to_list() == [1_800_000 * J]


def test_of_an_hour_with_a_silence_only_what_was_seen_is_known() -> None:
    # 100 W, silent from 600 s to 2,700 s, longer than node meters may be: 1,500 s were seen, and the jump is nobody's.
    seen = facts([*shown(-600, 600, 100), *shown(2700, 4200, 100)])
    assert told(closed(site(), seen)) == [(150_000 * J, 1, "measured", 1 - 2_100 / 3_600)]


def items(*rows: dict[str, Any]) -> dict[str, Any]:
    usual = {"device_id": SWITCH, "name": "leaf", "kind": "switch", "error_ppm": 0, "valid_from": LONG_AGO}
    return {
        "shared_it": table(SharedIt, [usual | {"shared_it_id": number} | row for number, row in enumerate(rows, 1)])
    }


def period(start: float, stop: float, energy_mj: int) -> dict[str, Any]:
    return {"meter_id": METER, "from_at": at(start), "to_at": at(stop), "energy_mj": energy_mj, "source": "measured"}


def bounds(result: HourResult) -> list[tuple[Any, ...]]:
    rows = result.usage.filter(device_id=SWITCH)
    return rows.select("energy_mj", "estimated_mj", "energy_low_mj", "energy_high_mj", "source").rows()


def unknown(result: HourResult) -> list[tuple[Any, ...]]:
    return result.quality.filter(reason="shared_it_unknown").select("hour_at", "time_us", "readings").rows()


def test_a_configured_power_is_cut_to_the_millijoule_and_so_is_what_it_may_be_off() -> None:
    # 1,001 mW for 3,599.5 s are 3,603,099.5 mJ; 100,002 ppm of it 360,317.1; of 1,001 mW for half a second, 500 mJ, 50.001.
    told_ppm = {"power_mw": 1_001, "error_ppm": 100_002}
    result = closed(site(), facts([]) | items({**told_ppm, "valid_from": at(0.5)}))
    assert bounds(result) == [(3_603_099, 3_603_099, 3_242_782, 3_963_416, "assumed")]
    # 999,999 ppm of 3 mJ are 2.999997.
    result = closed(site(), facts([]) | items({"power_mw": 3, "error_ppm": 999_999, "valid_to": at(1)}))
    assert bounds(result) == [(3, 3, 1, 5, "assumed")]
    assert unknown(result) == []


def test_a_period_over_two_hours_is_divided_by_time_and_any_of_it_may_lie_in_the_other() -> None:
    # Of 3 mJ in two hours 1.5 by the end of the first: 1, and what is left.
    over = facts([], [period(0, 7_200, 3)], level="other")
    assert bounds(closed(site(2), over)) == [(1, 1, 0, 3, "estimated"), (2, 2, 0, 3, "estimated")]


def test_periods_of_whole_hours_are_measured_each_by_itself() -> None:
    two = facts([], [period(0, 3_600, 500), period(3_600, 7_200, 700)], level="other")
    result = closed(site(2), two)
    assert bounds(result) == [(500, 0, None, None, "measured"), (700, 0, None, None, "measured")]
    assert unknown(result) == []


def test_of_half_an_hour_without_a_period_nothing_is_known() -> None:
    result = closed(site(), facts([], [period(0, 1_800, 500)], level="other"))
    assert bounds(result) == [(500, 0, None, None, "measured")]
    assert told(result) == [(500, 2, "measured", 0.5)]
    assert unknown(result) == [(at(0), 1_800_000_000, 0)]


def test_a_gauge_of_shared_it_is_estimated_with_what_it_may_be_off() -> None:
    # 500 W for an hour, 1,800 kJ, and 5 % of it either way.
    gauges = [{**row, "energy_mj": None, "power_mw": 500_000} for row in shown(-600, 3_900, 500)]
    kj = 1_000 * J
    assert bounds(closed(site(), facts(gauges))) == [(1_800 * kj, 1_800 * kj, 1_710 * kj, 1_890 * kj, "estimated")]


def test_a_meter_that_is_silent_adds_nothing_to_the_power_that_was_configured_after_it() -> None:
    # By a meter that says nothing until half past, at 2 W since.
    both = items({"meter_id": METER, "valid_to": at(1_800)}, {"power_mw": 2_000, "valid_from": at(1_800)})
    result = closed(site(), facts([]) | both)
    assert bounds(result) == [(3_600_000, 3_600_000, 3_600_000, 3_600_000, "assumed")]
    assert unknown(result) == [(at(0), 1_800_000_000, 0)]


def test_a_power_that_was_configured_until_the_hour_is_nothing_of_the_next() -> None:
    result = closed(site(2), facts([]) | items({"power_mw": 2_000, "valid_to": at(3_600)}))
    assert bounds(result) == [(7_200_000, 7_200_000, 7_200_000, 7_200_000, "assumed")]
