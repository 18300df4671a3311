"""Counter values that hooks read at allocations, between the readings of the same counter: worked out by hand."""

from typing import Any

from tests.fakes.site import Site, at, epoch, holds, reading

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
