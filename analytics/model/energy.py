"""The interpolated counter: one cumulative energy per device that can be read at any instant, in integers.

Between readings i and i+1 of one segment ``C(t) = c_i + floor((c_{i+1} - c_i) (t - t_i) / (t_{i+1} - t_i))``, so energy
is additive under any cutting, to the millijoule (docs/methodology.md, ADR 0006). The same construction carries covered,
active, idle and throttled time. It attributes nothing to anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from analytics.errors import InputError
from analytics.model.readings import Instrument, KeySpace, Timeline
from analytics.policy import THROTTLE_BITS, Policy
from analytics.units import MW_PER_W, NS_PER_US, US_PER_SECOND

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

_DT: Final = pl.col("key").shift(-1) - pl.col("key")
"""Microseconds to the next reading, where it is the same device's."""

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
    unbooked_mj: what a counter that began anew shows at their end, if so much can have been drawn in them; else 0."""
    lacking: pl.DataFrame | None

    def at(self, cuts: pl.DataFrame, names: Sequence[str] = QUANTITIES) -> pl.DataFrame:
        """Return ``names`` of the :data:`QUANTITIES` (Int64) at each (device_id, at_us), in the order given.

        Before a device's first reading and after its last nothing grows, so differences are right everywhere.
        """
        key = cuts.select(self.keys.key(pl.col("device_id"), pl.col("at_us"))).to_series()
        left = self.key.search_sorted(key, side="right").cast(pl.Int64) - 1
        started, before = left >= 0, left - 1
        here = left.clip(0, None)
        offset = key - self.key.gather(here)
        width = (self.key.gather((here + 1).clip(0, self.key.len() - 1)) - self.key.gather(here)).clip(1, None)
        frame = pl.DataFrame({"started": started, "inner": before >= 0, "offset": offset, "width": width})
        columns = []
        for name in names:
            if name not in self.sums.columns:
                columns.append(pl.lit(0, dtype=pl.Int64).alias(name))
                continue
            running = self.sums[name]
            frame = frame.with_columns(
                running.gather(here).alias(f"{name}:to"), running.gather(before.clip(0, None)).alias(f"{name}:from")
            )
            start = pl.when(pl.col("inner")).then(pl.col(f"{name}:from")).otherwise(0)
            grown = (pl.col(f"{name}:to") - start).cast(pl.Int128) * pl.col("offset") // pl.col("width")
            columns.append(pl.when(pl.col("started")).then(start + grown.cast(pl.Int64)).otherwise(0).alias(name))
        return frame.select(columns)


def interpolated(delta: pl.Expr, offset_us: pl.Expr, width_us: pl.Expr) -> pl.Expr:
    """Return floor(delta x offset / width) exactly; the product may need more than 64 bits."""
    return (delta.cast(pl.Int128) * offset_us // width_us).cast(pl.Int64)


def meter(timeline: Timeline, devices: pl.DataFrame, keys: KeySpace, policy: Policy) -> Meter:
    """Return the meter of one timeline. ``devices``: device_id, accelerators, idle_power_mw; must know every device."""
    present = timeline.rows["device_id"].rle().struct.field("value")
    limits = _device_limits(present, devices, policy)
    same_device = (pl.col("device_id").shift(-1) == pl.col("device_id")).fill_null(value=False)
    step = timeline.rows.lazy().select(
        "key",
        "device_id",
        same_device.alias("same_device"),
        _DT.alias("dt_us"),
        _verdict(timeline.instrument, limits["max_power_mw"], policy).alias("verdict"),
        _growth(timeline.instrument).alias("delta_mj"),
        *_state_at_end(timeline.rows, limits["idle_below_mw"], policy),
    )
    usable = pl.col("same_device") & pl.col("verdict").is_in([COVERED, GAP])
    judged = step.with_columns(
        pl.when(usable).then(pl.col("delta_mj")).otherwise(0).alias("delta_mj"),
        pl.when(pl.col("same_device") & (pl.col("verdict") == COVERED))
        .then(pl.col("dt_us"))
        .otherwise(0)
        .alias("covered_us"),
    ).collect()
    sums = judged.select(
        pl.col("delta_mj").cum_sum().alias("energy_mj"), pl.col("covered_us").cum_sum(), *_state_sums(judged)
    )
    holes = _holes(judged, timeline, keys, limits["max_power_mw"], policy)
    return Meter(
        timeline.feed, timeline.origin, timeline.instrument, keys, judged["key"], present, sums, holes, timeline.lacking
    )


def _holes(
    judged: pl.DataFrame, timeline: Timeline, keys: KeySpace, max_power_mw: pl.Expr, policy: Policy
) -> pl.DataFrame:
    at = judged.select(pl.arg_where(pl.col("same_device") & (pl.col("verdict") != COVERED))).to_series()
    following = timeline.rows["value"].gather(at.cast(pl.Int64) + 1).alias("then_mj")
    at_us = keys.at_us(pl.col("device_id"), pl.col("key"))
    anew = pl.lit(timeline.instrument == "counter") & pl.col("verdict").is_in([COUNTER_RESET, EPOCH_CHANGE])
    possible = pl.col("then_mj") <= _most_mj(max_power_mw, pl.col("dt_us"), policy)
    return (
        judged.select("device_id", "key", "dt_us", "delta_mj", "verdict")[at]
        .with_columns(following)
        .select(
            "device_id",
            at_us.alias("from_us"),
            (at_us + pl.col("dt_us")).alias("to_us"),
            "delta_mj",
            pl.col("verdict").cast(pl.Int16).replace_strict(REASONS, return_dtype=pl.String).alias("reason"),
            pl.when(anew & possible).then(pl.col("then_mj")).otherwise(0).alias("unbooked_mj"),
        )
    )


def _device_limits(ids: pl.Series, devices: pl.DataFrame, policy: Policy) -> dict[str, pl.Expr]:
    """Return per-row expressions of what depends on the device; a literal where all devices agree."""
    floor = pl.coalesce("idle_power_mw", pl.col("accelerators") * policy.idle.default_idle_power_mw)
    table = devices.select(
        "device_id",
        (pl.col("accelerators").cast(pl.Int64) * policy.gaps.max_power_mw).alias("max_power_mw"),
        (floor.cast(pl.Int64) * policy.idle.near_floor_percent // 100).alias("idle_below_mw"),
    )
    unknown = ids.filter(~ids.is_in(table["device_id"].implode()))
    if unknown.len():
        raise InputError(f"readings of devices {sorted(unknown.to_list())[:5]} came without their device rows")
    limits = {}
    for name in ("max_power_mw", "idle_below_mw"):
        values = table[name]
        limits[name] = (
            pl.lit(values[0], dtype=pl.Int64)
            if values.n_unique() == 1
            else pl.col("device_id").replace_strict(table["device_id"], values, return_dtype=pl.Int64)
        )
    return limits


def _verdict(instrument: Instrument, max_power_mw: pl.Expr, policy: Policy) -> pl.Expr:
    """Say of each interval whether its energy counts, and if not, why not (first reason that applies)."""
    dt = _DT
    growth = pl.col("value").shift(-1) - pl.col("value")
    verdict = (
        pl.when(pl.col("segment").shift(-1) != pl.col("segment"))
        .then(EPOCH_CHANGE)
        .when(dt > (policy.gaps.reach_us if instrument == "counter" else pl.col("max_gap_us")))
        .then(NO_DATA)
    )
    if instrument == "counter":
        verdict = (
            verdict.when(growth < 0)
            .then(COUNTER_RESET)
            .when(growth > _most_mj(max_power_mw, dt, policy))
            .then(IMPLAUSIBLE)
            .when(dt > pl.col("max_gap_us"))
            .then(GAP)
        )
    return verdict.otherwise(COVERED).cast(pl.Int8)


def _most_mj(max_power_mw: pl.Expr, dt_us: pl.Expr, policy: Policy) -> pl.Expr:
    """Return what a counter can have grown by between two readings.

    On either side of a refresh they differ by all that was drawn since the one before it, however close they are.
    """
    # Divided before multiplied: 1,024 accelerators for an hour stay inside 64 bits.
    return max_power_mw // MW_PER_W * (dt_us + policy.gaps.refresh_us) // MW_PER_W + 1


def _growth(instrument: Instrument) -> pl.Expr:
    value, following = pl.col("value"), pl.col("value").shift(-1)
    if instrument == "counter":
        return (following - value).fill_null(0)
    return ((value + following) * _DT // (2 * US_PER_SECOND)).fill_null(0)


def _state_at_end(rows: pl.DataFrame, idle_below_mw: pl.Expr, policy: Policy) -> list[pl.Expr]:
    """What the reading that ends an interval says of it: a row's gauges speak of the span before it.

    An event reading carries no gauges; the periodic row after it speaks for both of its intervals.
    """
    soon = (pl.col("device_id").shift(-2) == pl.col("device_id")) & (
        pl.col("key").shift(-2) - pl.col("key").shift(-1) <= policy.gaps.max_gap_us
    )

    def ending(name: str) -> pl.Expr:
        column = pl.col(name)
        if rows[name].null_count() == 0:
            return column.shift(-1)
        return pl.coalesce(column.shift(-1), pl.when(soon).then(column.shift(-2)))

    found = []
    if rows["gpu_util_percent"].null_count() < rows.height:
        util = ending("gpu_util_percent")
        found += [
            util.is_not_null().alias("known"),
            (util > 0).fill_null(value=False).alias("active"),
            ((util == 0) & (ending("power_mw") <= idle_below_mw)).fill_null(value=False).alias("idle"),
        ]
        if rows["clocks_event_reasons"].null_count() < rows.height:
            # An idle board reports power cap too (RTX 2080S at 39 W of 250 W): only work can be slowed.
            bits = ending("clocks_event_reasons").cast(pl.Int64).and_(THROTTLE_BITS) != 0
            found.append(((util > 0) & bits).fill_null(value=False).alias("bits"))
    if rows["throttled_ns"].null_count() < rows.height:
        violation = (pl.col("throttled_ns").shift(-1) - pl.col("throttled_ns")) // NS_PER_US
        found.append(pl.when(violation >= 0).then(violation).alias("violation_us"))
    return found


def _state_sums(judged: pl.DataFrame) -> list[pl.Expr]:
    covered, present = pl.col("covered_us"), set(judged.columns)

    def while_(condition: pl.Expr) -> pl.Expr:
        return pl.when(condition).then(covered).otherwise(0)

    sums = {f"{name}_us": while_(pl.col(name)) for name in ("known", "active", "idle") if name in present}
    bits = while_(pl.col("bits")) if "bits" in present else None
    if "violation_us" in present:
        violation = pl.col("violation_us")
        counted = pl.min_horizontal(violation, covered)
        sums["throttle_counter_us"] = while_(violation.is_not_null())
        sums["throttled_us"] = (
            counted.fill_null(0) if bits is None else pl.when(violation.is_null()).then(bits).otherwise(counted)
        )
    elif bits is not None:
        sums["throttled_us"] = bits
    if bits is not None:
        sums["throttle_bits_us"] = bits
    return [total.cum_sum().alias(name) for name, total in sums.items()]
