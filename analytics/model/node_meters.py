"""Reads meters of nodes, and pieces of boards again, in the one form that overhead is worked out from. It compares nothing.

A controller is asked each half minute or minute, and now and then does not answer: its readings may be further apart than a board's,
which come every few seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import polars as pl

from analytics.model.authority import energy_of
from analytics.model.energy import Meter, meter
from analytics.model.node_balance import Read
from analytics.model.readings import KeySpace, timelines, unwrapped
from analytics.policy import Policy

ACCELERATORS: Final = 64
"""What a node's meter may show is bounded by so many accelerators' power: more is a broken counter."""


def metered(
    readings: pl.DataFrame, epochs: pl.DataFrame, meters: pl.DataFrame, keys: KeySpace, policy: Policy
) -> list[Meter]:
    """Return the meters of node readings, with the meter's id as ``device_id``. ``meters``: meter_id, wrap_mj, and from_us, since when that holds."""
    if readings.is_empty():
        return []
    absent = {"gpu_util_percent": pl.Int16, "clocks_event_reasons": pl.Int64, "throttled_ns": pl.Int64}
    readings = readings.select(
        pl.col("meter_id").alias("device_id"),
        "at",
        "epoch_id",
        "energy_mj",
        "power_mw",
        *(pl.lit(None, dtype=kind).alias(name) for name, kind in absent.items()),
    )
    patient = replace(policy, gaps=replace(policy.gaps, max_gap_us=policy.gaps.node_max_gap_us))
    of_each = meters.select(pl.col("meter_id").alias("device_id"), "wrap_mj", "from_us").with_columns(
        pl.lit(ACCELERATORS, dtype=pl.Int32).alias("accelerators")
    )
    known = of_each.unique("device_id").select(
        "device_id", "accelerators", pl.lit(None, dtype=pl.Int32).alias("idle_power_mw")
    )
    since = keys.key(pl.col("device_id"), pl.max_horizontal("from_us", pl.lit(keys.base_us)))
    wraps = of_each.select("device_id", "accelerators", "wrap_mj", since.alias("key"))
    lines, _ = timelines(readings, epochs, keys, patient)
    return [meter(unwrapped(line, wraps, patient), known, keys, patient) for line in lines]


def reader(meters: Sequence[Meter]) -> Read:
    """Return what gives the energy of spans by these meters, the one of authority for each."""

    def read(asked: pl.DataFrame) -> pl.DataFrame:
        told = energy_of(asked.with_row_index("piece"), meters)
        return asked.hstack(
            told.select("energy_mj", "gap_mj", "covered_us", (pl.col("gauged_mj") > 0).alias("gauge"), "feed", "origin")
        )

    return read
