"""Counter values that hooks read at allocations, between the readings of the same counter: worked out by hand."""

from typing import Any

import polars as pl

from analytics.frames import Anchors, DeviceReadings, Epochs
from analytics.model.anchors import insert
from analytics.model.readings import KeySpace, timelines
from analytics.policy import Policy
from analytics.units import to_us
from tests.fakes.site import HOUR, Site, at, device, epoch, holds, reading, table

NATIVE, DCGM, IMPORTED = epoch(1), epoch(2, feed=2), epoch(3, feed=4, origin=2)


def anchor(seconds: float, joules: float) -> dict[str, Any]:
    return {"device_id": 1, "at": at(seconds), "energy_mj": round(joules * 1000)}


def _read(*changed: dict[str, Any], step: int = 60, epoch_id: int = 1) -> list[dict[str, Any]]:
    """Read each minute: 100 W, and 400 W from 90 to 150 s."""
    rows = [
        reading(1, second, 100 * second + 300 * (min(max(second, 90), 150) - 90), epoch_id=epoch_id)
        for second in range(0, 3601, step)
    ]
    return [*rows, *changed]


def _rejected(site: Site) -> int:
    rows = site.close().quality.filter(reason="anchor_rejected")
    return int(rows["readings"].sum())


JOB = [holds(7, 1, 90, 150)]
ANCHORS = [anchor(90, 9_000), anchor(150, 33_000)]


def test_a_job_with_a_counter_value_at_both_ends_has_exactly_what_the_counter_grew_by() -> None:
    # 60 s of 400 W. By levels of the minutes around it alone it has what the idle device leaves.
    row = Site(readings=_read(), allocations=JOB, anchors=ANCHORS).usage()["job:7"]
    assert (row["energy_mj"], row["estimated_mj"], row["source"]) == (24_000_000, 0, "measured")


def test_a_value_that_the_counter_cannot_have_had_then_is_rejected_and_counted() -> None:
    for wrong in (5_999, 15_001 + 6_000, -1):
        site = Site(readings=_read(), allocations=JOB, anchors=[anchor(90, wrong), ANCHORS[1]])
        assert _rejected(site) == 1
        assert sum(row["energy_mj"] for row in site.usage().values()) == 378_000_000


def test_values_of_one_interval_that_contradict_each_other_are_all_rejected() -> None:
    site = Site(readings=_read(), anchors=[anchor(70, 8_000), anchor(80, 7_500), ANCHORS[1]])
    assert _rejected(site) == 2


def test_a_value_of_another_driver_load_is_rejected() -> None:
    # The counter began anew between 60 s and 120 s: a value in between is of one or the other, and none knows which.
    readings = [
        reading(1, 0, 500),
        reading(1, 60, 600),
        reading(1, 120, 10, epoch_id=4),
        reading(1, 180, 20, epoch_id=4),
    ]
    site = Site(readings=readings, epochs=[NATIVE, epoch(4, driver_epoch=2)], anchors=[anchor(90, 5)])
    assert _rejected(site) == 1
    assert site.usage()["idle"]["energy_mj"] == 110_000


def test_before_the_first_reading_and_after_the_last_nothing_is_anchored() -> None:
    site = Site(readings=[reading(1, 600, 0), reading(1, 660, 6_000)], anchors=[anchor(10, 0), anchor(700, 6_100)])
    assert _rejected(site) == 2
    assert site.usage()["idle"]["energy_mj"] == 6_000_000


def test_at_the_instant_of_a_reading_the_reading_stands() -> None:
    site = Site(readings=_read(), anchors=[anchor(60, 6_001)])
    assert _rejected(site) == 0
    assert site.usage()["idle"]["energy_mj"] == 378_000_000


def test_an_anchor_cuts_a_silence_into_two_of_known_energy() -> None:
    # Silent from 0 to 1,800 s; the job's end at 600 s was read: 240 kJ of the 360 kJ are the job's.
    readings = [
        reading(1, 0, 0),
        *[reading(1, second, 360_000 + 100 * (second - 1800)) for second in range(1800, 3601, 10)],
    ]
    site = Site(readings=readings, allocations=[holds(7, 1, 0, 600)], anchors=[anchor(600, 240_000)])
    rows = site.usage()
    assert (rows["job:7"]["energy_mj"], rows["job:7"]["covered_us"]) == (240_000_000, 0)
    assert rows["unattributed:telemetry_gap"]["energy_mj"] == 120_000_000


def test_a_feed_of_the_same_counter_takes_it_and_an_import_does_not() -> None:
    site = Site(readings=_read(epoch_id=2), epochs=[NATIVE, DCGM], allocations=JOB, anchors=ANCHORS)
    assert site.usage()["job:7"]["energy_mj"] == 24_000_000
    site = Site(readings=_read(epoch_id=3), epochs=[NATIVE, IMPORTED], anchors=ANCHORS)
    assert _rejected(site) == 2


def test_states_and_throttled_time_of_an_interval_stay_what_they_were() -> None:
    more = {"gpu_util_percent": 90, "clocks_event_reasons": 0x40}
    readings = [
        reading(1, 0, 0, 700, throttled_ns=0, **more),
        reading(1, 10, 7_000, 700, throttled_ns=3 * 10**9, **more),
    ]
    row = Site(readings=readings, anchors=[anchor(4, 2_800)]).usage()["idle"]
    assert (row["throttled_us"], row["active_us"], row["energy_mj"]) == (3_000_000, 10_000_000, 7_000_000)


def test_several_values_of_one_interval_that_agree_all_count() -> None:
    # 70 to 90 s of 100 W and 90 to 110 s of 400 W inside one minute; the second value is what the first was, an idle board's at 0 W.
    inside = [anchor(70, 7_000), anchor(90, 9_000), anchor(110, 17_000)]
    site = Site(readings=_read(), allocations=[holds(7, 1, 90, 110)], anchors=inside)
    assert (_rejected(site), site.usage()["job:7"]["energy_mj"]) == (0, 8_000_000)
    still = Site(readings=[reading(1, 0, 500), reading(1, 60, 500)], anchors=[anchor(20, 500), anchor(40, 500)])
    assert (_rejected(still), still.usage()["idle"]["energy_mj"]) == (0, 0)


def test_two_values_of_one_instant_contradict_each_other() -> None:
    site = Site(readings=_read(), anchors=[anchor(70, 7_000), anchor(70, 7_001)])
    assert _rejected(site) == 2


def test_a_value_that_a_board_cannot_have_reached_so_soon_is_rejected() -> None:
    # 30 minutes of silence and 36 MJ; a second after the last reading it cannot have been 40,001 J of these, at 20 kW, nor all but that at its end.
    readings = [reading(1, 0, 0), reading(1, 1800, 100_000)]
    for second, joules in ((1, 40_002), (1799, 59_998)):
        assert _rejected(Site(readings=readings, anchors=[anchor(second, joules)])) == 1, second
    assert _rejected(Site(readings=readings, anchors=[anchor(1, 40_000), anchor(1799, 60_000)])) == 0


def test_anchors_of_one_device_say_nothing_of_the_one_beside_it() -> None:
    others = [reading(2, second, 50 * second) for second in range(30, 3571, 60)]
    both = [device(1), device(2)]
    # Device 2 is read at 3,570 s last, and device 1 at 0 s first: in the order of keys device 2's value stands after all of device 1.
    site = Site(
        readings=[*_read(), *others],
        devices=both,
        anchors=[{**anchor(3580, 178_900), "device_id": 2}, anchor(3590, 376_900)],
    )
    assert _rejected(site) == 1


def test_what_gauges_say_after_a_silence_is_not_said_of_the_time_before_an_anchor_in_it() -> None:
    # 50 s before an anchor in 300 s of silence would be covered and active, by a reading 250 s later.
    readings = [reading(1, 0, 0, 100, gpu_util_percent=0), reading(1, 300, 30_000, 500, gpu_util_percent=90)]
    row = Site(readings=readings, anchors=[anchor(50, 5_000)]).usage()["idle"]
    assert (row["covered_us"], row["active_us"]) == (50_000_000, None)


def test_throttled_time_before_an_anchor_is_its_part_of_the_intervals() -> None:
    more = {"gpu_util_percent": 90, "clocks_event_reasons": 0x40}
    readings = [
        reading(1, 0, 0, 700, throttled_ns=10**9, **more),
        reading(1, 10, 7_000, 700, throttled_ns=4 * 10**9, **more),
    ]
    site = Site(readings=readings, allocations=[holds(7, 1, 0, 4)], anchors=[anchor(4, 2_800)])
    # 3 s of 10 throttled: 1.2 s of the first four.
    assert site.usage()["job:7"]["throttled_us"] == 1_200_000


def test_at_the_first_reading_of_all_and_a_microsecond_beside_a_reading_a_value_is_not_rejected() -> None:
    assert _rejected(Site(readings=_read(), anchors=[anchor(0, 0)])) == 0
    assert _rejected(Site(readings=_read(), anchors=[anchor(60.000001, 6_000), anchor(119.999999, 21_000)])) == 0


def test_a_value_between_two_boots_is_rejected_though_the_counter_seems_to_go_on() -> None:
    readings = [reading(1, 0, 0), reading(1, 60, 600), reading(1, 120, 700, epoch_id=4)]
    assert _rejected(Site(readings=readings, epochs=[NATIVE, epoch(4, boot_id="next")], anchors=[anchor(90, 650)])) == 1


def test_a_value_between_readings_further_apart_than_any_two_are_joined_is_rejected() -> None:
    # Two days are the reach: a day before and a day after fit, a microsecond more does not.
    day = 86_400
    for beyond_s, rejected in ((0, 0), (0.000001, 1)):
        readings = [reading(1, -day, 0), reading(1, day + beyond_s, 200)]
        assert _rejected(Site(readings=readings, anchors=[anchor(0, 100)])) == rejected


def test_beside_the_last_reading_of_another_device_a_value_has_no_neighbour() -> None:
    # In the order of keys device 1's last reading, two days after the hour, stands beside device 2's first, two days before it.
    policy, first, last = Policy(), -172_790, 3_600 + 172_790
    keys = KeySpace.around(to_us(HOUR), to_us(HOUR) + 3_600_000_000, policy.gaps.reach_us)
    rows = [reading(1, 0, 0), reading(1, last, 100), reading(2, first + 10, 300), reading(2, first + 20, 310)]
    (line,), _ = timelines(table(DeviceReadings, rows), table(Epochs, [NATIVE]), keys, policy)
    devices = pl.DataFrame({"device_id": [1, 2], "accelerators": [1, 1]}, schema_overrides={"device_id": pl.Int32})
    for said in ({**anchor(first, 200), "device_id": 2}, anchor(last + 5, 200)):
        found, rejected = insert([line], table(Anchors, [said]), devices, keys, policy)
        assert (found[0].rows.height, rejected.height) == (4, 1)
    # At the instant of a reading, whatever it says: the reading stands, once.
    found, rejected = insert(
        [line], table(Anchors, [{**anchor(first + 20, 309), "device_id": 2}]), devices, keys, policy
    )
    assert (found[0].rows.height, rejected.height) == (4, 0)
    fitting = {**anchor(first + 12, 305), "device_id": 2}
    found, rejected = insert([line], table(Anchors, [fitting]), devices, keys, policy)
    assert (found[0].rows["value"].to_list(), rejected.height) == ([0, 100_000, 300_000, 305_000, 310_000], 0)


def test_a_counter_of_throttling_says_nothing_of_the_time_before_an_anchor_in_a_silence() -> None:
    slowed = [reading(1, 0, 0, 100, throttled_ns=0), reading(1, 300, 30_000, 500, throttled_ns=300 * 10**9)]
    row = Site(readings=slowed, anchors=[anchor(50, 5_000)]).usage()["idle"]
    assert (row["covered_us"], row["throttled_us"]) == (50_000_000, None)


def test_slowed_time_before_an_anchor_is_cut_to_the_nanosecond() -> None:
    policy = Policy()
    keys = KeySpace.around(to_us(HOUR), to_us(HOUR) + 3_600_000_000, policy.gaps.reach_us)
    rows = [reading(1, 0, 0, throttled_ns=0), reading(1, 10, 10, throttled_ns=1)]
    (line,), _ = timelines(table(DeviceReadings, rows), table(Epochs, [NATIVE]), keys, policy)
    devices = pl.DataFrame({"device_id": [1], "accelerators": [1]}, schema_overrides={"device_id": pl.Int32})
    (found,), _ = insert([line], table(Anchors, [anchor(5, 5)]), devices, keys, policy)
    assert found.rows["throttled_ns"].to_list() == [0, 0, 1]
