"""Which meter speaks for which part of an hour, and what stays open: worked out by hand."""

import polars as pl

from analytics.model.authority import IMPORT_FEED, energy_of
from analytics.pipeline import read_meters
from analytics.policy import Policy
from analytics.units import to_us
from collector.wire import Feed
from tests.fakes.site import HOUR, Site, at, device, epoch, holds, reading, steady

NATIVE, DCGM, IMPORTED = epoch(1), epoch(2, feed=2, driver_epoch=8), epoch(3, feed=4, origin=2, boot_id="import")


def _reasons(site: Site) -> dict[str, tuple[int, int]]:
    """Seconds and unbooked joules by reason."""
    rows = site.close().quality.iter_rows(named=True)
    return {row["reason"]: (row["time_us"] // 1_000_000, row["unbooked_mj"] // 1_000) for row in rows}


def test_a_feed_that_spoke_for_five_minutes_does_not_silence_the_next_for_the_rest_of_the_hour() -> None:
    # 100 W all hour: 300 s of it by the agent, 3,300 s by DCGM.
    site = Site(
        readings=[*steady(1, 0, 300, 100), *steady(1, 0, 3600, 100, step=30, epoch_id=2)], epochs=[NATIVE, DCGM]
    )
    row = site.usage()["idle"]
    assert (row["energy_mj"], row["covered_us"], row["feed"], row["source"]) == (
        360_000_000,
        3_600_000_000,
        1,
        "measured",
    )
    assert site.close().quality.is_empty()


def test_where_two_feeds_speak_the_first_is_believed_and_the_other_fills_what_it_left_open() -> None:
    # The import says 999 W of what the agent measured as 100 W; it is asked from 1,800 s on only.
    site = Site(readings=[*steady(1, 0, 3600, 999, epoch_id=3), *steady(1, 0, 1800, 100)], epochs=[NATIVE, IMPORTED])
    row = site.usage()["idle"]
    assert (row["energy_mj"], row["feed"], row["origin"]) == (180_000_000 + 1_798_200_000, 1, 2)


def test_an_hours_edges_and_holders_cut_what_is_filled_like_anything_else() -> None:
    # The agent falls silent at 305 s, between two readings of DCGM; a job holds the device from 1,000 s on.
    site = Site(
        readings=[*steady(1, -55, 305, 100), *steady(1, -60, 3660, 200, step=30, epoch_id=2)],
        epochs=[NATIVE, DCGM],
        allocations=[holds(7, 1, 1000, 2000)],
    )
    rows = site.usage()
    assert rows["job:7"]["energy_mj"] == 200_000_000
    assert rows["idle"]["energy_mj"] == 30_500_000 + (695 + 1600) * 200_000
    assert (rows["job:7"]["feed"], rows["idle"]["feed"]) == (2, 1)


def test_a_gap_that_the_first_counter_spans_is_not_asked_of_the_second() -> None:
    # 600 s without the agent, whose counter went on: 60 kJ of known size, whatever DCGM says of it.
    readings = [*steady(1, 0, 1000, 100), *[
        reading(1, second, 100 * second) for second in range(1600, 3601, 10)
    ]]  # fmt: skip
    site = Site(readings=[*readings, *steady(1, 0, 3600, 300, step=30, epoch_id=2)], epochs=[NATIVE, DCGM])
    assert sum(row["energy_mj"] for row in site.usage().values()) == 360_000_000
    assert site.usage()["unattributed:telemetry_gap"]["energy_mj"] == 60_000_000


RELOAD = [
    reading(1, 0, 900),
    reading(1, 10, 901),
    reading(1, 2410, 240, epoch_id=4),
    reading(1, 2420, 241, epoch_id=4),
]
"""The driver is loaded again somewhere in 40 minutes of silence; 240 J have been counted since when the agent is back."""


def test_a_driver_reload_inside_a_silence_books_nothing_and_says_what_the_new_counter_had_counted() -> None:
    site = Site(readings=RELOAD, epochs=[NATIVE, epoch(4, driver_epoch=2)])
    assert site.usage()["idle"]["energy_mj"] == 2_000
    assert _reasons(site) == {"epoch_change": (2400, 240), "no_data": (1180, 0)}


def test_a_reload_that_kept_boot_and_number_shows_in_the_counter_alone() -> None:
    site = Site(readings=[{**row, "epoch_id": 1} for row in RELOAD])
    assert site.usage()["idle"]["energy_mj"] == 2_000
    assert _reasons(site) == {"counter_reset": (2400, 240), "no_data": (1180, 0)}


def test_a_counter_that_cannot_have_begun_anew_since_says_nothing_of_what_was_lost() -> None:
    # Another boot id, and a counter 10 MJ on: 10 s of it would be 1 MW.
    site = Site(
        readings=[reading(1, 0, 10**7), reading(1, 10, 10**7 + 500, epoch_id=4)],
        epochs=[NATIVE, epoch(4, boot_id="other")],
    )
    assert _reasons(site)["epoch_change"] == (10, 0)


def test_a_second_reader_of_a_counter_does_not_fill_the_interval_in_which_it_began_anew() -> None:
    # DCGM noticed no reload and reads 100 W throughout: whatever it makes of the counter, it is the same one.
    dcgm = steady(1, 0, 3600, 100, step=30, epoch_id=2)
    site = Site(readings=[*RELOAD, *dcgm], epochs=[NATIVE, DCGM, epoch(4, driver_epoch=2)])
    # 20 s by the agent, 1,180 s after it by DCGM, the silence by nobody.
    assert site.usage()["idle"]["energy_mj"] == 2_000 + 118_000_000
    assert _reasons(site) == {"epoch_change": (2400, 240)}


def test_a_reload_that_the_second_feed_alone_lived_through_costs_its_interval_there() -> None:
    # The agent comes at 2,000 s; DCGM, there since 0 s, lost 300 s to the reload at about 1,000 s.
    dcgm = [*steady(1, 0, 900, 100, step=30, epoch_id=2), *[
        reading(1, second, second - 1000, epoch_id=5) for second in range(1200, 3601, 30)
    ]]  # fmt: skip
    native = [reading(1, second, second - 1000) for second in range(2000, 3601, 10)]
    site = Site(readings=[*dcgm, *native], epochs=[NATIVE, DCGM, epoch(5, feed=2, driver_epoch=9)])
    # 90 kJ before, 800 J after the reload by DCGM, 1,600 J by the agent; of 300 s it is known that 200 J were drawn at least.
    assert site.usage()["idle"]["energy_mj"] == 90_000_000 + 800_000 + 1_600_000
    assert _reasons(site) == {"epoch_change": (300, 200)}


def test_with_a_reload_in_both_feeds_the_agents_counts() -> None:
    dcgm = [reading(1, 0, 900, epoch_id=2), reading(1, 30, 903, epoch_id=2), reading(1, 2430, 242, epoch_id=5)]
    site = Site(
        readings=[*RELOAD, *dcgm],
        epochs=[NATIVE, DCGM, epoch(4, driver_epoch=2), epoch(5, feed=2, driver_epoch=9)],
    )
    # DCGM lost 10 s more of it, whose energy the agent's 240 J and DCGM's 242 J both hold: told once.
    assert site.usage()["idle"]["energy_mj"] == 2_000
    assert _reasons(site)["epoch_change"] == (2410, 240)


def test_an_instrument_of_its_own_fills_the_interval_in_which_the_counter_began_anew() -> None:
    imported = [reading(1, second, None, 50, epoch_id=3) for second in range(0, 3601, 30)]
    site = Site(readings=[*RELOAD, *imported], epochs=[NATIVE, IMPORTED, epoch(4, driver_epoch=2)])
    row = site.usage()["idle"]
    # 50 W for the 3,580 s that the counter does not tell of.
    assert (row["energy_mj"], row["estimated_mj"]) == (2_000 + 179_000_000, 179_000_000)
    assert site.close().quality.is_empty()


def test_the_feed_of_imports_is_the_wires() -> None:
    assert int(Feed.IMPORT) == IMPORT_FEED


def test_two_holes_of_one_counter_are_filled_each_for_itself() -> None:
    # 100 W by the agent but from 600 to 1,200 s and from 1,800 to 2,400 s, where the driver was loaded again; 50 W by the import.
    native = [
        *steady(1, 0, 600, 100),
        *steady(1, 1200, 1800, 100, epoch_id=4),
        *steady(1, 2400, 3600, 100, epoch_id=5),
    ]
    imported = [reading(1, second, None, 50, epoch_id=3) for second in range(0, 3601, 30)]
    epochs = [NATIVE, IMPORTED, epoch(4, driver_epoch=2), epoch(5, driver_epoch=3)]
    row = Site(readings=[*native, *imported], epochs=epochs).usage()["idle"]
    assert (row["energy_mj"], row["estimated_mj"]) == (240_000_000 + 60_000_000, 60_000_000)
    # Without it both are told, each with what the new counter had counted by then: nothing.
    alone = Site(readings=native, epochs=epochs).close().quality
    assert alone.select("reason", "time_us", "unbooked_mj").rows() == [("epoch_change", 1_200_000_000, 0)]


def test_a_gap_has_a_time_and_no_energy_that_is_not_booked() -> None:
    site = Site(readings=[*steady(1, 0, 600, 100), *[reading(1, at, 100 * at) for at in range(900, 3601, 10)]])
    assert site.close().quality.select("reason", "time_us", "unbooked_mj").rows() == [("telemetry_gap", 300_000_000, 0)]


def test_devices_side_by_side_have_what_their_own_counters_say() -> None:
    # Both end their pieces where the next one's begin: the hour is cut at 1,800 s by a job on the first.
    site = Site(
        readings=[*steady(1, 0, 3600, 100), *steady(2, 0, 3600, 300)],
        devices=[device(1), device(2)],
        allocations=[holds(7, 1, 1800, 3600)],
    )
    usage = site.close().usage.sort("device_id", "holder").select("device_id", "holder", "energy_mj").rows()
    assert usage == [(1, "idle", 180_000_000), (1, "job:7", 180_000_000), (2, "idle", 1_080_000_000)]


def test_of_two_gaps_in_one_hour_each_holder_has_the_bounds_of_its_own() -> None:
    # 60 kJ in 600 s over the hour's end (42 kJ of it at most in its 60 s), and 30 kJ in 300 s that lie inside it: those are certain.
    readings = [
        reading(1, 0, 0), reading(1, 10, 0), reading(1, 310, 30_000), reading(1, 320, 30_000),
        reading(1, 3530, 30_000), reading(1, 3540, 30_000), reading(1, 4140, 90_000), reading(1, 4150, 90_000),
    ]  # fmt: skip
    jobs = [holds(7, 1, 0, 1000), holds(8, 1, 1000, 7200)]
    usage = Site(readings=readings, allocations=jobs, hours=2).close().usage.sort("hour_at", "holder")
    found = {
        (row["hour_at"].hour, row["holder"]): (row["energy_mj"], row["energy_low_mj"], row["energy_high_mj"])
        for row in usage.iter_rows(named=True)
    }
    assert found[10, "job:7"] == (30_000_000, 30_000_000, 30_000_000)
    assert found[10, "job:8"] == (6_000_000, 0, 42_000_000)
    assert found[11, "job:8"] == (54_000_000, 18_000_000, 60_000_000)


def test_of_a_gap_around_a_whole_holding_no_energy_is_lost() -> None:
    # 100 W; silent from 1,000 to 1,600 s, a job from 1,100 to 1,500 s: nobody's, to the joule.
    readings = [*steady(1, 0, 1000, 100), *[reading(1, second, 100 * second) for second in range(1600, 3601, 10)]]
    rows = Site(readings=readings, allocations=[holds(7, 1, 1100, 1500)]).usage()
    assert {holder: (row["energy_mj"], row["held_us"]) for holder, row in rows.items()} == {
        "idle": (300_000_000, 3_200_000_000),
        "job:7": (None, 400_000_000),
        "unattributed:telemetry_gap": (60_000_000, 0),
    }


def test_a_gap_over_the_hour_that_is_nobodys_is_as_uncertain_as_one_that_is_somebodys() -> None:
    # 60 kJ in 600 s, 60 of them in the first hour; 700 W at most.
    readings = [reading(1, 3530, 0), reading(1, 3540, 0), reading(1, 4140, 60_000), reading(1, 4150, 60_000)]
    usage = Site(readings=readings, hours=2).close().usage.filter(holder="unattributed:telemetry_gap").sort("hour_at")
    assert usage.select("energy_mj", "energy_low_mj", "energy_high_mj").rows() == [
        (6_000_000, 0, 42_000_000),
        (54_000_000, 18_000_000, 60_000_000),
    ]


def test_holes_of_devices_that_follow_each_other_are_filled_from_their_own_instruments() -> None:
    # The last hole of the first ends at 2,400 s, where the first hole of the second begins. 50 and 70 W by the import.
    native = [
        *steady(1, 0, 600, 100),
        *steady(1, 1200, 1800, 100, epoch_id=4),
        *steady(1, 2400, 3600, 100, epoch_id=5),
        *steady(2, 0, 2400, 100),
        *steady(2, 3000, 3600, 100, epoch_id=4),
    ]
    imported = [
        reading(number, second, None, watts, epoch_id=3)
        for number, watts in ((1, 50), (2, 70))
        for second in range(0, 3601, 30)
    ]
    epochs = [NATIVE, IMPORTED, epoch(4, driver_epoch=2), epoch(5, driver_epoch=3)]
    usage = Site(readings=[*native, *imported], devices=[device(1), device(2)], epochs=epochs).close().usage
    assert usage.sort("device_id").select("energy_mj", "estimated_mj").rows() == [
        (300_000_000, 60_000_000),
        (342_000_000, 42_000_000),
    ]


def _by_hour(first: float, last: float, again: float, stop: float) -> list[tuple[int, str, int, int]]:
    """Hour, reason, seconds and unbooked joules, of a counter read from ``first`` to ``last``, reloaded and read again: 120 J by then."""
    native = [*steady(1, first, last, 100), reading(1, again, 120, epoch_id=4)]
    native += [
        reading(1, again + 10 * step, 120 + step, epoch_id=4) for step in range(1, round((stop - again) / 10) + 1)
    ]
    site = Site(readings=native, epochs=[NATIVE, epoch(4, driver_epoch=2)], hours=2)
    rows = site.close().quality.sort("hour_at", "reason").iter_rows(named=True)
    return [
        (row["hour_at"].hour, row["reason"], row["time_us"] // 1_000_000, row["unbooked_mj"] // 1000) for row in rows
    ]


def test_a_reload_before_the_hour_is_told_in_the_hour_in_which_the_counter_is_read_again() -> None:
    assert _by_hour(-1300, -1200, 1200, 7200) == [(10, "epoch_change", 1200, 120)]


def test_a_reload_that_ends_or_begins_on_the_hour_is_of_the_hour_it_lies_in() -> None:
    assert _by_hour(0, 2400, 3600, 3700) == [(10, "epoch_change", 1200, 120), (11, "no_data", 3500, 0)]
    assert _by_hour(10, 3600, 4800, 7200) == [(10, "no_data", 10, 0), (11, "epoch_change", 1200, 120)]


def test_energy_of_any_pieces_is_asked_of_the_same_meters_in_the_same_order() -> None:
    # As above: the agent's 100 W until 305 s, DCGM's 200 W afterwards and until 3,660 s; nobody tells of 4,000 s.
    site = Site(
        readings=[*steady(1, -55, 305, 100), *steady(1, -60, 3660, 200, step=30, epoch_id=2)], epochs=[NATIVE, DCGM]
    )
    meters = read_meters(site.inputs().usage, Policy()).meters
    hour_us = to_us(HOUR)
    spans = [(0, 600), (1000, 2000), (4000, 4060)]
    pieces = pl.DataFrame(
        [
            {"piece": n, "device_id": 1, "hour_us": hour_us, "from_us": to_us(at(a)), "to_us": to_us(at(b))}
            for n, (a, b) in enumerate(spans)
        ],
        schema_overrides={"piece": pl.UInt32, "device_id": pl.Int32},
    )
    told = energy_of(pieces, meters).select(
        "piece", "energy_mj", "covered_us", "gap_mj", "gauged_mj", "feed", "known_us"
    )
    assert told.rows() == [
        (0, 30_500_000 + 295 * 200_000, 600_000_000, 0, 0, 1, 0),
        (1, 200_000_000, 1_000_000_000, 0, 0, 2, 0),
        (2, 0, 0, 0, 0, None, 0),
    ]
    assert energy_of(pieces, []).select("energy_mj", "feed").rows() == [(0, None)] * 3
