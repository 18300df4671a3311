"""How each figure came to its holder is on the row and on the line."""

from decimal import Decimal

import polars as pl

from analytics.frames import UsageHours
from analytics.model.cost import gather
from analytics.model.methods import least_exact
from tests.fakes.site import Site, device, holds, price, steady


def test_a_row_tells_the_least_exact_of_its_holdings_and_what_nobody_held_tells_of_all() -> None:
    site = Site(
        readings=steady(1, 0, 3600, 100) + steady(2, 0, 3600, 100) + steady(3, 0, 3600, 100),
        devices=[device(1), device(2), device(3)],
        allocations=[
            holds(1, 1, 0, 1800, 0.5),
            # One of the two that nobody holds by name.
            {**holds(1, 1, 1800, 3600), "device_id": None, "node_id": 1, "evidence": "sacct"},
            holds(2, 2, 0, 3600),
        ],
    )
    told = {(row["device_id"], row["holder"]): row["method"] for row in site.close().usage.to_dicts()}
    assert told == {
        (1, "job:1"): "count",
        (1, "idle"): "count",
        (2, "job:2"): "whole",
        (3, "job:1"): "count",
        (3, "idle"): "count",
    }


def test_a_holding_of_another_hour_says_nothing_of_this_one() -> None:
    shared = {**holds(1, 1, 3600, 7200, 0.5), "method": "share"}
    site = Site(readings=steady(1, 0, 7200, 100), allocations=[holds(1, 1, 0, 3600), shared], hours=2)
    rows = site.close().usage.filter(pl.col("job_id") == 1).sort("hour_at")
    assert rows["method"].to_list() == ["whole", "share"]


def test_overhead_rides_on_lines_of_its_own_that_cost_their_electricity_only() -> None:
    # 1,000 W at the node over one board of 700 W for an hour: 300 W of overhead, 1,080,000 J, all of it the job's.
    site = Site(
        readings=steady(1, 0, 3600, 700) + steady(9, 0, 3600, 1000),
        devices=[device(1), device(9, kind="node", model="node", idle_power_mw=None)],
        allocations=[holds(1, 1, 0, 3600)],
        prices=[price(1, "2.0")],
    )
    lines = site.close().lines.sort("charge_category", "device_model")
    told = lines.select(
        "charge_category", "method", "pool", "energy_mj", "billed_cost", "quantity", "quantity_unit"
    ).rows()
    assert told == [
        ("electricity", "whole", "job", None, None, 2_520_000_000, "mJ"),
        ("electricity", "overhead", "job", None, None, 1_080_000_000, "mJ"),
        ("gpu_owned", "whole", "job", 2_520_000_000, Decimal(2), 3_600_000_000, "accelerator-us"),
        ("node_overhead", "overhead", "job", 1_080_000_000, Decimal(0), 1_080_000_000, "mJ"),
    ]


def test_a_node_with_nothing_but_its_meter_is_no_overhead() -> None:
    site = Site(readings=steady(9, 0, 3600, 500), devices=[device(9, kind="node")], allocations=[holds(1, 9, 0, 3600)])
    assert site.close().usage["method"].to_list() == ["node_meter"]
    assert set(site.close().lines["charge_category"]) == {"electricity", "gpu_owned"}


def test_the_least_exact_of_nothing_is_not_said() -> None:
    none = pl.DataFrame({"method": [None, None]}, schema={"method": pl.String})
    assert none.select(least_exact(pl.col("method"))).item() is None


def test_bounds_of_a_line_hold_the_exact_parts_at_their_worth() -> None:

    row = {"held_us": 10, "covered_us": 10, "accelerators": 1, "state": "used", "holder": "idle", "source": "measured"}
    rows = [
        {**row, "device_id": 1, "energy_mj": 100, "energy_low_mj": 90, "energy_high_mj": 130, "reserved_us": 0},
        {**row, "device_id": 2, "energy_mj": 50, "source": "assumed", "method": "whole"},
    ]
    usage = pl.DataFrame(
        [{name: one.get(name) for name in UsageHours.column_names()} for one in rows],
        schema=UsageHours.create_empty().schema,
    ).with_columns(hour_us=pl.lit(0), holder_key=pl.lit("idle"), device_model=pl.lit("H100"))
    (line,) = gather(usage, by_category=True).to_dicts()
    assert (line["energy_low_mj"], line["energy_mj"], line["energy_high_mj"]) == (140, 150, 180)
    assert (line["source"], line["method"]) == ("assumed", "whole")
