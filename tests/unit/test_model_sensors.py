"""How far an estimate may be off: worked out by hand."""

from typing import Any

import polars as pl
import pytest

from analytics.model import sensors
from analytics.policy import Policy
from tests.fakes.site import Site, device, epoch, holds, reading, steady


def _bounds(row: dict[str, Any]) -> tuple[float, float]:
    """In joules."""
    return row["energy_low_mj"] / 1000, row["energy_high_mj"] / 1000


def _gauge(watts: float, until: int) -> list[dict[str, Any]]:
    return [reading(1, at, None, watts) for at in range(0, until + 1, 10)]


@pytest.mark.parametrize(
    ("model", "low_j", "high_j"),
    [
        ("NVIDIA H100 80GB HBM3", 171_000, 189_000),  # averages over all of its second: 5 %
        ("NVIDIA A100-SXM4-80GB", 167_400, 192_600),  # looks at 25 of 100 ms: 7 %
        ("Tesla V100-SXM2-32GB", 167_400, 192_600),
        ("unknown", 167_400, 192_600),
        ("AMD Instinct MI300X", 171_000, 189_000),
    ],
)
def test_a_gauges_energy_may_be_off_by_what_it_does_not_see(model: str, low_j: int, high_j: int) -> None:
    # 300 W for 600 s.
    row = Site(readings=_gauge(300, 600), devices=[device(model=model)]).usage()["idle"]
    assert (row["energy_mj"], row["estimated_mj"]) == (180_000_000, 180_000_000)
    assert _bounds(row) == (low_j, high_j)


def test_what_a_counter_told_has_no_bounds() -> None:
    row = Site(readings=steady(1, 0, 3600, 100)).usage()["idle"]
    assert (row["energy_low_mj"], row["energy_high_mj"]) == (None, None)


def test_of_a_gap_over_the_hour_each_part_has_what_the_rest_can_not_have_drawn() -> None:
    # Silent from 3,540 to 4,140 s, 60 kJ; an H100 draws 700 W at most, so 42 kJ in its 60 s of the first hour, and 378 kJ in the
    # other 540: of the first hour's part nothing is certain, of the second's 18 kJ.
    readings = [reading(1, 3530, 0), reading(1, 3540, 0), reading(1, 4140, 60_000), reading(1, 4150, 60_000)]
    usage = Site(readings=readings, allocations=[holds(7, 1, 0, 7200)], hours=2).close().usage.sort("hour_at")
    rows = list(usage.iter_rows(named=True))
    assert [row["energy_mj"] for row in rows] == [6_000_000, 54_000_000]
    assert [_bounds(row) for row in rows] == [(0, 42_000), (18_000, 60_000)]


def test_a_gap_inside_an_hour_has_one_energy_whoever_had_it() -> None:
    readings = [reading(1, 0, 0), reading(1, 10, 1), reading(1, 310, 31), reading(1, 320, 32)]
    kept = Site(readings=readings, allocations=[holds(7, 1, -100, None)]).usage()["job:7"]
    assert _bounds(kept) == (32, 32)
    # Two holders in it: nobody's, and still all of it, though it is told in two pieces.
    lost = Site(readings=readings, allocations=[holds(7, 1, -100, 200), holds(8, 1, 200, None)]).usage()
    assert _bounds(lost["unattributed:telemetry_gap"]) == (30, 30)


def test_bounds_of_parts_add_up() -> None:
    # The agent's gap of 600 s as above, then DCGM's gauge for 1,000 s at 300 W, of which 300 kJ may be 15 kJ off.
    readings = [reading(1, 3000, 0), reading(1, 3010, 0), reading(1, 3590, 58_000), reading(1, 3600, 58_000)]
    gauge = [reading(1, at, None, 300, epoch_id=2) for at in range(1000, 2001, 10)]
    row = Site(
        readings=[*readings, *gauge], epochs=[epoch(1), epoch(2, feed=2)], allocations=[holds(7, 1, 0, 7200)]
    ).usage()["job:7"]
    assert (row["energy_mj"], row["estimated_mj"]) == (358_000_000, 358_000_000)
    assert _bounds(row) == (343_000, 373_000)


def test_a_board_nobody_has_a_data_sheet_of_may_draw_what_no_interval_may_pass() -> None:
    devices = pl.DataFrame(
        {
            "device_id": [1, 2, 3],
            "model": ["NVIDIA H200", "B200", "QPU-1"],
            "kind": ["gpu"] * 3,
            "accelerators": [1, 8, 1],
        }
    )
    assert sensors.instruments(devices, Policy())["most_mw"].to_list() == [700_000, 9_600_000, 20_000_000]
