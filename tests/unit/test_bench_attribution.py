"""The fleet that the attribution benchmarks close: what it is made of, before any row."""

from __future__ import annotations

import numpy as np
import polars as pl

from bench.attribution_fleet import HOUR_US, Fleet, FleetSpec
from bench.trace_fleet import Traces

NOTHING = Traces([], np.empty(0), np.empty(0))
"""Who holds what is known without a trace."""


def test_the_day_has_as_many_jobs_as_it_says() -> None:
    spec = FleetSpec()
    fleet = Fleet(spec, NOTHING)
    assert FleetSpec.sized(10_000, 24) == spec
    assert fleet.jobs.height == 4_000
    assert fleet.jobs["account"].n_unique() == 200
    shared = fleet.holds.filter((pl.col("device_id") > spec.devices) | pl.col("share_ppm").is_not_null())
    nodes_of_shared = fleet.shared_nodes.size
    assert nodes_of_shared == 62  # 5 % of 1,250 nodes
    assert shared["job_id"].n_unique() == 62 * 3 * 3  # three slots, three jobs each
    assert fleet.jobs["end_us"].null_count() == 40  # 1 % of 4,000: nobody saw them end
    short = fleet.jobs.filter(pl.col("end_us") - pl.col("start_us") < 300_000_000)
    assert 250 < short.height < 450  # a tenth of the jobs that hold whole boards


def test_no_board_is_held_as_a_whole_by_two_jobs_at_once() -> None:
    fleet = Fleet(FleetSpec.sized(512, 24), NOTHING)
    whole = fleet.holds.filter(pl.col("device_id").is_not_null() & pl.col("share_ppm").is_null()).sort(
        "device_id", "start_us"
    )
    following = pl.col("start_us").shift(-1).over("device_id")
    ends = pl.col("end_us").fill_null(2**62)
    assert whole.filter(following < ends).is_empty()


def test_equal_specs_are_of_one_file_and_another_seed_is_of_another() -> None:
    assert FleetSpec.sized(64, 1).digest == FleetSpec.sized(64, 1).digest
    assert FleetSpec.sized(64, 1).digest != FleetSpec.sized(64, 2).digest
    assert Fleet(FleetSpec.sized(64, 2), NOTHING).holds.equals(Fleet(FleetSpec.sized(64, 2), NOTHING).holds)
    assert Fleet(FleetSpec.sized(64, 2), NOTHING).holds["start_us"].min() >= FleetSpec().start_us - HOUR_US  # type: ignore[operator]
