"""Which meter speaks for which part of an hour, and what stays open: worked out by hand."""

from analytics.model.authority import IMPORT_FEED
from collector.wire import Feed
from tests.fakes.site import Site, epoch, holds, reading, steady

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
