"""The interpolated counter: one cumulative energy per device that can be read at any instant, in integers.

Between readings i and i+1 of one segment ``C(t) = c_i + floor((c_{i+1} - c_i) (t - t_i) / (t_{i+1} - t_i))``, so energy
is additive under any cutting, to the millijoule (docs/methodology.md, ADR 0006). The same construction carries covered,
active, idle and throttled time. It attributes nothing to anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from analytics.errors import InputError
from analytics.model.plain import Int64s, Place, Steps, odd, running_sums, steps
from analytics.model.readings import Instrument, KeySpace, Timeline, most_mj
from analytics.policy import Policy

TIMES: Final = (
    "covered_us",
    "known_us",
    "active_us",
    "idle_us",
    "throttled_us",
    "throttle_bits_us",
    "throttle_counter_us",
)
QUANTITIES: Final = ("energy_mj", *TIMES)

COVERED, GAP, COUNTER_RESET, EPOCH_CHANGE, IMPLAUSIBLE, NO_DATA = range(6)
REASONS: Final = {
    GAP: "telemetry_gap",
    COUNTER_RESET: "counter_reset",
    EPOCH_CHANGE: "epoch_change",
    IMPLAUSIBLE: "implausible",
    NO_DATA: "no_data",
}


@dataclass(frozen=True, slots=True)
class Meter:
    """Cumulative quantities of all devices of one timeline, readable at any instant of the key space."""

    feed: int
    origin: int
    instrument: Instrument
    keys: KeySpace
    key: pl.Series
    devices: pl.Series
    """Ids of the devices that have readings here."""
    sums: pl.DataFrame
    """Inclusive running sums of :data:`QUANTITIES` over intervals; a column that would be all zero is left out."""
    holes: pl.DataFrame
    """Intervals that are not covered: device_id, from_us, to_us, delta_mj (0 unless a gap that a counter spans), reason, and
    unbooked_mj: what a counter that began anew shows at their end, if so much can have been drawn in them and it is no more than half
    of what the old one showed; else 0."""
    lacking: pl.DataFrame | None

    def at(self, cuts: pl.DataFrame, names: Sequence[str] = QUANTITIES) -> pl.DataFrame:
        """Return ``names`` of the :data:`QUANTITIES` (Int64) at each (device_id, at_us), in the order given.

        Before a device's first reading and after its last nothing grows, so differences are right everywhere.
        """
        at = cuts.select(self.keys.key(pl.col("device_id"), pl.col("at_us"))).to_series().to_numpy()
        place = Place.of(self.key.to_numpy(), at)
        nothing = np.zeros(len(at), dtype=np.int64)
        return pl.DataFrame(
            {name: place.read(self.sums[name].to_numpy()) if name in self.sums.columns else nothing for name in names}
        )


def interpolated(delta: pl.Expr, offset_us: pl.Expr, width_us: pl.Expr) -> pl.Expr:
    """Return floor(delta x offset / width) exactly; the product may need more than 64 bits."""
    return (delta.cast(pl.Int128) * offset_us // width_us).cast(pl.Int64)


def meter(timeline: Timeline, devices: pl.DataFrame, keys: KeySpace, policy: Policy) -> Meter:
    """Return the meter of one timeline. ``devices``: device_id, accelerators, idle_power_mw; must know every device."""
    # In one piece: what follows looks at them as arrays again and again, and each look would put the pieces together anew.
    rows = timeline.rows.with_columns(timeline.rows[name].rechunk() for name in ("key", "device_id"))
    timeline = replace(timeline, rows=rows)
    runs = rows["device_id"].rle().struct.unnest()
    max_power_mw, idle_below_mw = _limits(runs, devices, policy)
    found = steps(timeline)
    judged = _judged(timeline, found, odd(timeline, found, max_power_mw, policy), max_power_mw, policy)
    at, verdict = judged["row"].to_numpy(), judged["verdict"].to_numpy()
    energy_mj, covered_us = found.growth, found.dt_us
    energy_mj *= found.is_one
    covered_us *= found.is_one
    energy_mj[at] = judged["delta_mj"].to_numpy()
    covered_us[at[verdict != COVERED]] = 0
    sums = running_sums(rows, energy_mj, covered_us, idle_below_mw, policy)
    holes = _holes(judged, timeline.instrument, keys, policy)
    return Meter(
        timeline.feed,
        timeline.origin,
        timeline.instrument,
        keys,
        rows["key"],
        runs["value"],
        sums,
        holes,
        timeline.lacking,
    )


def _judged(
    timeline: Timeline, found: Steps, intervals: Int64s, max_power_mw: Int64s | int, policy: Policy
) -> pl.DataFrame:
    """Return of these intervals row, device_id, key, dt_us, max_power_mw, verdict, delta_mj (0 where its energy does not count), value and then_mj."""
    begin, end = timeline.rows[intervals], timeline.rows[intervals + 1]
    most = max_power_mw if isinstance(max_power_mw, int) else max_power_mw[intervals]
    return (
        begin.select(
            pl.Series("row", intervals, dtype=pl.Int64),
            "device_id",
            "key",
            "segment",
            "max_gap_us",
            "value",
            pl.lit(most, dtype=pl.Int64).alias("max_power_mw")
            if isinstance(most, int)
            else pl.Series("max_power_mw", most, dtype=pl.Int64),
            pl.Series("dt_us", found.dt_us[intervals], dtype=pl.Int64),
            pl.Series("growth", found.growth[intervals], dtype=pl.Int64),
            end["value"].alias("then_mj"),
            end["segment"].alias("then_segment"),
        )
        .with_columns(_verdict(timeline.instrument, policy).alias("verdict"))
        .with_columns(
            pl.when(pl.col("verdict").is_in([COVERED, GAP])).then(pl.col("growth")).otherwise(0).alias("delta_mj")
        )
    )


def _holes(judged: pl.DataFrame, instrument: Instrument, keys: KeySpace, policy: Policy) -> pl.DataFrame:
    at_us = keys.at_us(pl.col("device_id"), pl.col("key"))
    # A counter that fell by less than half of what it showed is a broken one: nobody drew what it shows since.
    fell = (pl.col("verdict") == COUNTER_RESET) & (pl.col("then_mj") <= pl.col("value") // 2)
    anew = pl.lit(instrument == "counter") & (fell | (pl.col("verdict") == EPOCH_CHANGE))
    return judged.filter(pl.col("verdict") != COVERED).select(
        "device_id",
        at_us.alias("from_us"),
        (at_us + pl.col("dt_us")).alias("to_us"),
        "delta_mj",
        pl.col("verdict").cast(pl.Int16).replace_strict(REASONS, return_dtype=pl.String).alias("reason"),
        pl.when(anew & (pl.col("then_mj") <= most_mj(pl.col("max_power_mw"), pl.col("dt_us"), policy)))
        .then(pl.col("then_mj"))
        .otherwise(0)
        .alias("unbooked_mj"),
    )


def _limits(runs: pl.DataFrame, devices: pl.DataFrame, policy: Policy) -> tuple[Int64s | int, Int64s | int]:
    """Return max_power_mw and idle_below_mw of each reading's device; one number where all devices agree."""
    floor = pl.coalesce("idle_power_mw", pl.col("accelerators") * policy.idle.default_idle_power_mw)
    table = devices.select(
        "device_id",
        (pl.col("accelerators").cast(pl.Int64) * policy.gaps.max_power_mw).alias("max_power_mw"),
        (floor.cast(pl.Int64) * policy.idle.near_floor_percent // 100).alias("idle_below_mw"),
    )
    here = runs.join(table, left_on="value", right_on="device_id", how="left", maintain_order="left")
    unknown = here.filter(pl.col("max_power_mw").is_null())
    if unknown.height:
        raise InputError(f"readings of devices {sorted(unknown['value'].to_list())[:5]} came without their device rows")
    of_each = [here[name].to_numpy() for name in ("max_power_mw", "idle_below_mw")]
    lengths = here["len"].to_numpy()
    most, idle = (int(each[0]) if (each == each[0]).all() else np.repeat(each, lengths) for each in of_each)
    return most, idle


def _verdict(instrument: Instrument, policy: Policy) -> pl.Expr:
    """Say of each interval whether its energy counts, and if not, why not (first reason that applies)."""
    dt, growth = pl.col("dt_us"), pl.col("growth")
    verdict = (
        pl.when(pl.col("then_segment") != pl.col("segment"))
        .then(EPOCH_CHANGE)
        .when(dt > (policy.gaps.reach_us if instrument == "counter" else pl.col("max_gap_us")))
        .then(NO_DATA)
    )
    if instrument == "counter":
        verdict = verdict.when(growth < 0).then(COUNTER_RESET)
    verdict = verdict.when(growth > most_mj(pl.col("max_power_mw"), pl.col("dt_us"), policy)).then(IMPLAUSIBLE)
    if instrument == "counter":
        verdict = verdict.when(dt > pl.col("max_gap_us")).then(GAP)
    return verdict.otherwise(COVERED).cast(pl.Int8)
