"""Counter values that hooks read where an allocation begins or ends, put between the readings of the same counter.

With one at both ends a job's energy is exact however seldom its device is read. An anchor is believed only where the readings on
either side allow it; it never replaces a reading and never reaches beyond the first or the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import polars as pl

from analytics.model.authority import IMPORT_FEED
from analytics.model.readings import KeySpace, Timeline, most_mj
from analytics.policy import Policy

REJECTED: Final = "anchor_rejected"
_STATES: Final = ("power_mw", "gpu_util_percent", "clocks_event_reasons")
_DROPPED: Final = {"device_id": pl.Int32, "reason": pl.String, "at_us": pl.Int64}


def insert(
    lines: Sequence[Timeline], anchors: pl.DataFrame, devices: pl.DataFrame, keys: KeySpace, policy: Policy
) -> tuple[list[Timeline], pl.DataFrame]:
    """Return the timelines with the anchors that fit, and those that fit into none (device_id, reason, at_us).

    ``anchors``: device_id, at, energy_mj. One fits between two readings of one segment if the counter lay between theirs and can have
    grown so fast on either side; several between the same two must agree with each other, or none of them does. At the instant of a
    reading it is not needed. Only feeds that read the device's own counter take them.
    """
    at_us = pl.col("at").dt.epoch("us")
    offered = (
        anchors.select("device_id", at_us.alias("at_us"), "energy_mj")
        .filter(keys.contains(pl.col("at_us")))
        .unique()
        .with_columns(keys.key(pl.col("device_id"), pl.col("at_us")).alias("key"))
        .sort("key", "energy_mj")
    )
    if offered.is_empty():
        return list(lines), pl.DataFrame(schema=_DROPPED)
    found, settled = [], pl.Series("settled", [False] * offered.height)
    for line in lines:
        if line.instrument != "counter" or line.feed == IMPORT_FEED:
            found.append(line)
            continue
        judged = _judged(line, offered, devices, policy)
        settled |= judged["needless"] | judged["fits"]
        found.append(_with(line, judged.filter("fits")))
    return found, offered.filter(~settled).select("device_id", pl.lit(REJECTED).alias("reason"), "at_us")


def _judged(line: Timeline, offered: pl.DataFrame, devices: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """Return the anchors in their order with the readings on either side, ``fits`` and ``needless``."""
    rows = line.rows
    after = rows["key"].search_sorted(offered["key"], side="left").cast(pl.Int64)
    before = (after - 1).clip(0, None)
    within = (after > 0) & (after < rows.height)
    after = after.clip(0, rows.height - 1)
    sides = ("key", "device_id", "segment", "max_gap_us", "value", "throttled_ns", *_STATES)
    pairs = pl.concat(
        [
            offered.with_columns(before.alias("interval"), within.alias("within")),
            rows.select(sides)[before].rename({name: f"{name}:before" for name in sides}),
            rows.select(sides)[after].rename({name: f"{name}:after" for name in sides}),
        ],
        how="horizontal",
    ).join(
        devices.select(
            "device_id", (pl.col("accelerators").cast(pl.Int64) * policy.gaps.max_power_mw).alias("most_mw")
        ),
        on="device_id",
        how="left",
        maintain_order="left",
    )
    since, until = pl.col("key") - pl.col("key:before"), pl.col("key:after") - pl.col("key")
    grown, more = pl.col("energy_mj") - pl.col("value:before"), pl.col("value:after") - pl.col("energy_mj")
    between = (
        pl.col("within")
        & (pl.col("device_id:before") == pl.col("device_id"))
        & (pl.col("device_id:after") == pl.col("device_id"))
        & (pl.col("segment:before") == pl.col("segment:after"))
        & (since > 0)
        & (until > 0)
        & (since + until <= policy.gaps.reach_us)
        & grown.is_between(0, most_mj(pl.col("most_mw"), since, policy))
        & more.is_between(0, most_mj(pl.col("most_mw"), until, policy))
    ).fill_null(value=False)
    step, rise = pl.col("key").diff().fill_null(1), pl.col("energy_mj").diff().fill_null(0)
    return (
        pairs.with_columns(
            between.alias("between"),
            ((pl.col("key:after") == pl.col("key")) & (pl.col("device_id:after") == pl.col("device_id"))).alias(
                "needless"
            ),
        )
        .with_columns((pl.col("between") & (step > 0) & (rise >= 0)).over("interval", "between").alias("_agrees"))
        .with_columns((pl.col("between") & pl.col("_agrees").all().over("interval", "between")).alias("fits"))
        .drop("_agrees")
    )


def _with(line: Timeline, fits: pl.DataFrame) -> Timeline:
    """Return the timeline with these anchors as readings: what the reading after them says of the interval is said of both its parts."""
    if fits.is_empty():
        return line
    near = pl.col("key:after") - pl.col("key:before") <= pl.col("max_gap_us:after")
    before, after = pl.col("throttled_ns:before"), pl.col("throttled_ns:after")
    share = (
        (after - before).cast(pl.Int128)
        * (pl.col("key") - pl.col("key:before"))
        // (pl.col("key:after") - pl.col("key:before"))
    )
    added = fits.select(
        "key",
        "device_id",
        pl.col("segment:after").alias("segment"),
        pl.col("max_gap_us:after").alias("max_gap_us"),
        pl.col("energy_mj").alias("value"),
        *(pl.when(near).then(pl.col(f"{name}:after")).alias(name) for name in _STATES),
        pl.when(near & (after >= before)).then(before + share.cast(pl.Int64)).alias("throttled_ns"),
    ).select(line.rows.columns)
    return replace(line, rows=line.rows.merge_sorted(added.cast(line.rows.schema), key="key"))
