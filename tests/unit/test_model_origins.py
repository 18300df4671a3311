"""What an hour without a meter says of itself: what the telemetry nearest to it was, never what came last."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from tests.fakes.site import HOUR, Site, device, epoch, reading

SIMULATED, IMPORTED, LIVE = 4, 2, 1
LAST_MONTH, NEXT_WEEK = HOUR - timedelta(days=30), HOUR + timedelta(days=7)


def origins(site: Site) -> list[int]:
    """The origin of the device's idle time, hour by hour."""
    together = site.close().usage.sort("hour_at")["origin"].to_list()
    alone: list[Any] = [site.close(site.window(hour, 1)).usage["origin"].item() for hour in range(site.hours)]
    assert together == alone  # any window finds the same
    return together


def two_lives(*readings: dict[str, Any], hours: int = 1) -> Site:
    """A node that was simulated last month and reports as a real one from next week on."""
    simulated = epoch(1, boot_id="s", origin=SIMULATED, first_seen_at=LAST_MONTH)
    live = epoch(2, boot_id="l", origin=LIVE, first_seen_at=NEXT_WEEK)
    return Site(epochs=[simulated, live], readings=readings, hours=hours)


def test_a_silent_hour_is_what_the_last_reading_before_it_was() -> None:
    first = [reading(1, second, second, epoch_id=1) for second in (0, 10)]
    third = [reading(1, 7200 + second, second, epoch_id=2) for second in (0, 10)]
    assert origins(two_lives(*first, *third, hours=4)) == [SIMULATED, SIMULATED, LIVE, LIVE]


def test_before_the_first_reading_it_is_what_the_first_one_is() -> None:
    assert (
        origins(two_lives(reading(1, 9000, 1, epoch_id=2), reading(1, 9010, 2, epoch_id=2), hours=3))[:2] == [LIVE] * 2
    )


def test_further_from_any_reading_than_the_reach_the_epochs_of_its_node_say() -> None:
    long_after = reading(1, 60 * 3600, 1, epoch_id=2)
    assert origins(two_lives(long_after)) == [SIMULATED]
    assert origins(two_lives()) == [SIMULATED]
    not_yet_seen = two_lives().epochs[1:]
    assert origins(replace(two_lives(), epochs=not_yet_seen)) == [LIVE]


def test_a_reading_as_far_off_as_the_reach_still_says_it_and_a_microsecond_further_does_not() -> None:
    reach_s = Site().policy.gaps.reach_us / 1_000_000
    for beyond_s, origin in ((0, LIVE), (0.000001, SIMULATED)):
        assert origins(two_lives(reading(1, -reach_s - beyond_s, 1, epoch_id=2))) == [origin]


def test_a_device_of_which_nothing_is_known_is_what_its_row_says() -> None:
    assert origins(Site(devices=[device(origin=IMPORTED)], epochs=[])) == [IMPORTED]


def test_of_two_feeds_at_one_instant_the_most_direct_one_counts() -> None:
    feeds = [epoch(1, feed=1, origin=LIVE), epoch(2, feed=4, origin=IMPORTED)]
    both = [reading(1, -10, 5, epoch_id=number) for number in (2, 1)]
    assert origins(Site(epochs=feeds, readings=both)) == [LIVE]
