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
