"""Every hour of a device is in one state, from capitalization to disposal; what nobody holds is as it was declared."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
import pytest

from analytics.model.states import device_states, word
from tests.fakes.site import LONG_AGO, Site, at, holds, placed, steady

FULL = steady(1, 0, 3600, 100)
STATES = ("used_us", "allocated_idle_us", "reserved_us", "available_us", "down_us")
SECOND_US = 1_000_000


def kept(kind: str, start: float, end: float | None, **of: Any) -> dict[str, Any]:
    dates = {"valid_from": at(start), "valid_to": None if end is None else at(end)}
    return {"hold_id": hash((kind, start)) % 2**31, "kind": kind, **dates, **of}


def asset(start: datetime, end: datetime | None = None, **of: Any) -> dict[str, Any]:
    return {"asset": "A-1", "capitalized_at": start, "disposed_at": end, **of}


def seconds(site: Site) -> dict[str, int]:
    """Return the seconds of device 1 in each state of the first hour."""
    (row,) = device_states(site.close().usage.filter(device_id=1)).head(1).to_dicts()
    assert (
        sum(row[name] for name in STATES)
        == site.close().usage.filter(device_id=1, hour_at=row["hour_at"])["held_us"].sum()
    )
    return {name.removesuffix("_us"): row[name] // SECOND_US for name in STATES if row[name]}


def test_a_board_that_goes_out_of_service_is_down_from_then() -> None:
    site = Site(readings=FULL, placements=[placed(1, None, 1800), placed(1, 1800, None, in_service=False)])
    assert seconds(site) == {"available": 1800, "down": 1800}
    (row,) = site.usage().values()
    assert (row["down_us"], row["held_us"], row["state"], row["reason"]) == (
        1_800_000_000,
        3_600_000_000,
        "available",
        None,
    )


def test_a_stranded_board_is_down_and_says_why() -> None:
    site = Site(readings=FULL, capacity=[kept("stranded", 600, None, device_id=1)])
    assert seconds(site) == {"available": 600, "down": 3000}
    row = site.usage()["idle"]
    assert (row["state"], row["reason"]) == ("down", "stranded")


def test_what_is_reserved_and_not_used_is_reserved() -> None:
    site = Site(readings=FULL, allocations=[holds(7, 1, 900, 1800)], capacity=[kept("reservation", 0, None, node_id=1)])
    assert seconds(site) == {"used": 900, "reserved": 2700}
    row = site.usage()["idle"]
    assert (row["reserved_us"], row["state"], row["reason"]) == (2_700_000_000, "reserved_unused", "reservation")


def test_maintenance_of_a_site_stands_before_a_reservation() -> None:
    site = Site(readings=FULL, capacity=[kept("reservation", 0, None, device_id=1), kept("maintenance", 1200, 2400)])
    assert seconds(site) == {"reserved": 2400, "down": 1200}


def test_a_job_on_a_board_that_is_down_uses_it() -> None:
    site = Site(readings=FULL, allocations=[holds(7, 1, 0, 3600)], capacity=[kept("stranded", 0, None, device_id=1)])
    assert seconds(site) == {"used": 3600}


def test_a_held_board_that_does_nothing_is_allocated_idle() -> None:
    idle = steady(1, 0, 3600, 70, gpu_util_percent=0)
    assert seconds(Site(readings=idle, allocations=[holds(7, 1, 0, 1200)])) == {
        "allocated_idle": 1200,
        "available": 2400,
    }


def test_a_board_nobody_hears_of_is_not_known_to_be_available() -> None:
    site = Site(readings=steady(1, 0, 900, 100))
    assert seconds(site) == {"available": 900, "down": 2700}
    assert site.usage()["idle"]["reason"] == "no_telemetry"


def test_a_silence_that_a_counter_spans_is_not_down() -> None:
    site = Site(
        readings=[
            *steady(1, 0, 600, 100),
            *({**row, "energy_mj": row["energy_mj"] + 240_000_000} for row in steady(1, 3000, 3600, 100)),
        ]
    )
    assert seconds(site)["available"] == 3600


@pytest.mark.parametrize("of", [{"device_id": 1}, {"node_id": 1}])
def test_a_board_is_on_the_books_from_capitalization_to_disposal(of: dict[str, int]) -> None:
    site = Site(placements=[placed(1)], assets=[asset(at(600), at(3000), **of)])
    assert seconds(site) == {"down": 2400}


def test_a_board_that_is_owned_and_installed_nowhere_is_down() -> None:
    site = Site(
        readings=steady(1, 0, 1200, 100), placements=[placed(1, None, 1200)], assets=[asset(LONG_AGO, device_id=1)]
    )
    assert seconds(site) == {"available": 1200, "down": 2400}
    assert site.usage()["idle"]["reason"] == "not_installed"


def test_a_board_that_is_neither_owned_nor_placed_is_not_on_the_books() -> None:
    site = Site(readings=steady(1, 0, 1200, 100), placements=[placed(1, None, 1200)])
    assert seconds(site) == {"available": 1200}
    assert site.close().quality.filter(reason="no_data").is_empty()


def test_the_unheld_part_of_a_shared_board_is_as_it_was_declared() -> None:
    """A quarter is held: three quarters of each microsecond are reserved for the first half, available for the rest."""
    site = Site(
        readings=FULL, allocations=[holds(7, 1, 0, 3600, 0.25)], capacity=[kept("reservation", 0, 1800, device_id=1)]
    )
    assert seconds(site) == {"used": 900, "reserved": 1350, "available": 1350}


def test_all_states_of_a_mixed_hour_sum_to_it() -> None:
    site = Site(
        readings=steady(1, 0, 3000, 100),
        placements=[placed(1, None, 3300), placed(1, 3300, None, in_service=False)],
        allocations=[holds(7, 1, 300, 900), holds(8, 1, 600, 1200, 0.5)],
        capacity=[kept("maintenance", 1500, 2100, node_id=1), kept("reservation", 1800, 2700, device_id=1)],
    )
    # Used: 300 s by job 7, 300 s that two claim, half of 300 s by job 8. Down: 600 s maintenance, 300 s silent, 300 s out of service.
    # Reserved: what maintenance leaves of it, 600 s. Available: the rest, 300 + 150 + 300 + 300 s.
    assert seconds(site) == {"used": 750, "reserved": 600, "available": 1050, "down": 1200}


@pytest.mark.parametrize(
    ("reserved_us", "down_us", "expected"),
    [
        (5, 5, "reserved_unused"),
        (4, 6, "down"),
        (4, 3, "reserved_unused"),
        (3, 3, "available"),
        (0, 5, "available"),
        (5, 0, "available"),
    ],
)
def test_where_two_states_have_the_same_time_the_more_useful_one_is_told(
    reserved_us: int, down_us: int, expected: str
) -> None:
    row = {
        "job_id": None,
        "holder": "idle",
        "held_us": 10,
        "idle_us": None,
        "reserved_us": reserved_us,
        "down_us": down_us,
    }
    kinds = {"job_id": pl.Int64, "idle_us": pl.Int64}
    assert pl.DataFrame([row], schema_overrides=kinds).select(word()).item() == expected
