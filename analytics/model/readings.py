"""Orders readings, drops and counts what cannot be used, and cuts them into one timeline per feed, origin, instrument.

A timeline is one sorted key per reading, ``device x span + time``, so that finding an instant is one binary search. It
integrates nothing and attributes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import polars as pl

from analytics.errors import InputError
from analytics.policy import Policy
from analytics.units import MW_PER_W, US_PER_HOUR

Instrument = Literal["counter", "gauge"]
_KEY_LIMIT: Final = 2**62
_STEADY: Final = 10
"""A step over a wrap may be at this many times the power of the interval before or after it: more is a counter that began anew."""
SPIKE: Final = "spike"
"""Why a counter's reading was dropped that those on either side of it contradict."""
_STATE_COLUMNS: Final = ("power_mw", "gpu_util_percent", "clocks_event_reasons", "throttled_ns")
_KEPT: Final = ("device_id", "epoch_id", "energy_mj", *_STATE_COLUMNS)


@dataclass(frozen=True, slots=True)
class KeySpace:
    """Maps (device, instant) to one ordered integer, over the window and the reach around it."""

    base_us: int
    span_us: int

    @classmethod
    def around(cls, from_us: int, to_us: int, reach_us: int) -> KeySpace:
        return cls(from_us - reach_us, to_us - from_us + 2 * reach_us + 1)

    def key(self, device: pl.Expr, at_us: pl.Expr) -> pl.Expr:
        return device.cast(pl.Int64) * self.span_us + (at_us - self.base_us)

    def at_us(self, device: pl.Expr, key: pl.Expr) -> pl.Expr:
        return key - device.cast(pl.Int64) * self.span_us + self.base_us

    def contains(self, at_us: pl.Expr) -> pl.Expr:
        return at_us.is_between(self.base_us, self.base_us + self.span_us - 1)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Usable readings of one feed, origin and instrument, by key: unique, ascending."""

    feed: int
    origin: int
    instrument: Instrument
    rows: pl.DataFrame
    """key, device_id, segment (equal = counters comparable), max_gap_us, value, and the state columns."""
    lacking: pl.DataFrame | None
    """For a gauge: the (device_id, hour_us) that have a reading without counter; only these may use it."""


def timelines(
    readings: pl.DataFrame, epochs: pl.DataFrame, keys: KeySpace, policy: Policy
) -> tuple[list[Timeline], pl.DataFrame]:
    """Return the timelines in order of authority (feed, origin, counter before gauge) and the readings dropped.

    Dropped: device_id, at_us, reason ``not_positive``, ``repeated`` or ``spike``, one row each.
    """
    rows = _in_reach(readings, keys)
    used = _used_epochs(rows, epochs, policy)
    found: list[Timeline] = []
    dropped: list[pl.DataFrame] = [_dropped(rows.clear(), "repeated")]
    feeds = used.select("feed", "origin").unique().sort("feed", "origin")
    for feed, origin in feeds.iter_rows():
        mine = used.filter((pl.col("feed") == feed) & (pl.col("origin") == origin))
        of_feed = rows if feeds.height == 1 else rows.filter(pl.col("epoch_id").is_in(mine["epoch_id"].implode()))
        of_feed, repeated = _ordered(of_feed, mine)
        dropped.append(repeated)
        for timeline, bad in _instruments(_with_segments(of_feed, mine), feed, origin, keys, policy):
            dropped.append(bad)
            if timeline is not None:
                found.append(timeline)
    return found, pl.concat(dropped).with_columns(keys.at_us(pl.col("device_id"), pl.col("key")).alias("at_us")).drop(
        "key"
    )


def _in_reach(readings: pl.DataFrame, keys: KeySpace) -> pl.DataFrame:
    """Add the key and keep only what the model reads: the sort that follows moves every column once."""
    if readings.is_empty():
        return readings.select(pl.lit(0, dtype=pl.Int64).alias("key"), *_KEPT)
    at_us = pl.col("at").dt.epoch("us")
    first, last, lowest, highest = readings.select(
        at_us.min(), at_us.max().alias("last"), pl.col("device_id").min(), pl.col("device_id").max().alias("highest")
    ).row(0)
    if lowest < 0 or (highest + 1) * keys.span_us >= _KEY_LIMIT:
        raise InputError(
            f"device ids {lowest} to {highest} over {keys.span_us} µs leave 64 bits; close fewer hours at once"
        )
    if first < keys.base_us or last >= keys.base_us + keys.span_us:
        readings = readings.filter(keys.contains(at_us))
    return readings.select(keys.key(pl.col("device_id"), at_us).alias("key"), *_KEPT)


def _used_epochs(rows: pl.DataFrame, epochs: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    ids = rows["epoch_id"].rle().struct.field("value").unique()
    used = epochs.filter(pl.col("epoch_id").is_in(ids.implode()))
    if used.height != ids.len():
        missing = sorted(set(ids.to_list()) - set(used["epoch_id"].to_list()))[:5]
        raise InputError(f"readings of epochs {missing} came without their epoch rows; load Epochs with them")
    return used.with_columns(
        pl.struct("node_id", "boot_id", "driver_epoch").rank("dense").cast(pl.Int32).alias("segment"),
        pl.max_horizontal(
            pl.lit(policy.gaps.max_gap_us, dtype=pl.Int64),
            # Stored before a cadence was bounded, it may be any number of 64 bits.
            pl.col("cadence_us").clip(None, policy.gaps.reach_us) * policy.gaps.max_gap_cadences,
        ).alias("max_gap_us"),
    )


def _with_segments(rows: pl.DataFrame, epochs: pl.DataFrame) -> pl.DataFrame:
    """Add the epoch's segment and gap limit; without a look-up per row where the epochs make it unnecessary."""
    ids = epochs["epoch_id"]
    segment = pl.col("epoch_id")
    if epochs["segment"].n_unique() != ids.len():
        segment = segment.replace_strict(ids, epochs["segment"], return_dtype=pl.Int32)
    limits = epochs["max_gap_us"].unique()
    max_gap = pl.lit(limits.item(), dtype=pl.Int64) if limits.len() == 1 else None
    if max_gap is None:
        max_gap = pl.col("epoch_id").replace_strict(ids, epochs["max_gap_us"], return_dtype=pl.Int64)
    return rows.with_columns(segment.alias("segment"), max_gap.alias("max_gap_us"))


def _ordered(keyed: pl.DataFrame, epochs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Sort by key; of several readings of one instant keep one, the same whatever the order of rows."""
    if not keyed["key"].is_sorted():
        keyed = keyed.sort("key")
    repeats = keyed.select(pl.col("key").diff() == 0).to_series()
    if not repeats.any():
        return keyed, _dropped(keyed.clear(), "repeated")
    twice = keyed.filter(repeats)["key"].unique().implode()
    # What tells two apart is what they say and, failing that, the boot they are of: ids differ from database to database.
    named = keyed.filter(pl.col("key").is_in(twice)).join(
        epochs.select("epoch_id", "boot_id", "driver_epoch", "cadence_us"), on="epoch_id", how="left"
    )
    order = ["key", "energy_mj", *_STATE_COLUMNS, "boot_id", "driver_epoch", "cadence_us", "epoch_id"]
    several = named.sort(order, nulls_last=True).select(keyed.columns)
    one = several.unique("key", keep="first", maintain_order=True)
    extra = several.filter(~pl.col("key").is_first_distinct())
    kept = pl.concat([keyed.filter(~pl.col("key").is_in(twice)), one]).sort("key")
    return kept, _dropped(extra, "repeated")


def _instruments(
    rows: pl.DataFrame, feed: int, origin: int, keys: KeySpace, policy: Policy
) -> Iterator[tuple[Timeline | None, pl.DataFrame]]:
    """Yield the counter timeline and, where some reading has no counter, the gauge timeline."""
    without = rows["energy_mj"].null_count()
    bad_counter = (pl.col("energy_mj") < 0).fill_null(value=False)
    dropped = _dropped(rows.filter(bad_counter), "not_positive")
    counters = rows if without == 0 else rows.filter(pl.col("energy_mj").is_not_null())
    counters = counters if dropped.is_empty() else counters.filter(~bad_counter)
    counters, spikes = _without_spikes(counters, policy)
    yield _timeline(feed, origin, "counter", counters, "energy_mj", None), pl.concat([dropped, spikes])
    if not without:
        return
    lacks = pl.col("energy_mj").is_null()
    power = pl.col("power_mw")
    gauges = rows.filter(power > 0)
    lacking = (
        gauges.filter(lacks)
        .select("device_id", keys.at_us(pl.col("device_id"), pl.col("key")).alias("at_us"))
        .select("device_id", (pl.col("at_us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us"))
        .unique()
    )
    bad = _dropped(rows.filter(lacks & (power <= 0)), "not_positive")
    yield _timeline(feed, origin, "gauge", gauges, "power_mw", lacking), bad


def _without_spikes(counters: pl.DataFrame, policy: Policy) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop readings that are not between those on either side of them, where these two agree: energy that nobody drew, booked as measured.

    A counter that fell and did not get back to where it was began anew, and stays. Where of two that contradict each other either might be
    the bad one, it is the higher one, which comes first. All are of one segment, and no further apart than half of what is loaded around
    every window, so that a reading is bad in all of them or in none.
    """
    value = pl.col("energy_mj")
    falls = counters.select((value < value.shift()).arg_true()).to_series().to_numpy().astype(np.int64)
    at = np.unique(np.concatenate([falls - 1, falls]))
    at = at[(at > 0) & (at < counters.height - 1)]
    before, here, after = (counters["energy_mj"].gather(at + step).to_numpy() for step in (-1, 0, 1))
    key = counters["key"]
    together = key.gather(at + 1).to_numpy() - key.gather(at - 1).to_numpy() <= policy.margin_us // 2
    for name in ("device_id", "segment"):
        of_each = [counters[name].gather(at + step).to_numpy() for step in (-1, 0, 1)]
        together &= (of_each[0] == of_each[1]) & (of_each[1] == of_each[2])
    together &= before <= after
    above, below = at[together & (here > after)], at[together & (here < before)]
    bad = np.union1d(above, np.setdiff1d(below, above + 1))
    if not len(bad):
        return counters, _dropped(counters.clear(), SPIKE)
    good = np.ones(counters.height, dtype=np.bool_)
    good[bad] = False
    return counters.filter(pl.Series(good)), _dropped(counters[bad], SPIKE)


def _timeline(
    feed: int, origin: int, instrument: Instrument, rows: pl.DataFrame, value: str, lacking: pl.DataFrame | None
) -> Timeline | None:
    if rows.is_empty():
        return None
    chosen = rows.select(
        "key",
        "device_id",
        "segment",
        "max_gap_us",
        pl.col(value).cast(pl.Int64).alias("value"),
        *_STATE_COLUMNS,
    )
    return Timeline(feed, origin, instrument, chosen, lacking)


def _dropped(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    return rows.select("device_id", "key", pl.lit(reason).alias("reason"))


def most_mj(max_power_mw: pl.Expr, dt_us: pl.Expr, policy: Policy) -> pl.Expr:
    """Return what a counter can have grown by between two readings.

    On either side of a refresh they differ by all that was drawn since the one before it, however close they are.
    """
    # Divided before multiplied: 1,024 accelerators for an hour stay inside 64 bits.
    return max_power_mw // MW_PER_W * (dt_us + policy.gaps.refresh_us) // MW_PER_W + 1


def unwrapped(line: Timeline, wraps: pl.DataFrame, policy: Policy) -> Timeline:
    """Return the timeline with counters going on where they began anew at their known limit.

    ``wraps``: device_id, key, wrap_mj, accelerators: from the key on, until the device's next row.

    A fall inside a segment is a wrap if what it would be then is possible, and no more than ten times the power of the interval before
    it or after it; else it stays a fall: a controller that was started again would otherwise invent a counter's worth of energy.
    """
    value, key = pl.col("value"), pl.col("key")
    wrapping = wraps.filter(pl.col("wrap_mj").is_not_null())["device_id"].unique()
    rows = line.rows.filter(pl.col("device_id").is_in(wrapping.implode()))
    of_one = pl.struct("device_id", "segment")
    same = (of_one == of_one.shift()).fill_null(value=False)
    falls = same & (value < value.shift())
    if line.instrument != "counter" or not rows.select(falls.any()).item():
        return line
    dt, grown = key.diff().over("device_id"), value.diff().over("device_id")
    lift = pl.col("grown") + pl.col("wrap_mj")
    rate = [
        (
            pl.col(f"grown:{at}").cast(pl.Int128) * _STEADY * (pl.col("dt") + policy.gaps.refresh_us)
            >= lift.cast(pl.Int128) * pl.col(f"dt:{at}")
        )
        & (pl.col(f"grown:{at}") >= 0)
        for at in ("before", "after")
    ]
    possible = lift.is_between(
        0, most_mj(pl.col("accelerators").cast(pl.Int64) * policy.gaps.max_power_mw, pl.col("dt"), policy)
    )
    beside = pl.col("beside:before") | pl.col("beside:after")
    steps = rows.select(
        "key",
        "device_id",
        falls.alias("falls"),
        dt.alias("dt"),
        grown.alias("grown"),
        dt.shift(1).alias("dt:before"),
        grown.shift(1).alias("grown:before"),
        (same & same.shift(1)).fill_null(value=False).alias("beside:before"),
        dt.shift(-1).alias("dt:after"),
        grown.shift(-1).alias("grown:after"),
        (same & same.shift(-1)).fill_null(value=False).alias("beside:after"),
    ).join_asof(wraps.sort("key"), on="key", by="device_id", check_sortedness=False)
    known = (pl.col("beside:before") & rate[0]) | (pl.col("beside:after") & rate[1])
    wrapped = pl.col("falls") & possible & (known | ~beside)
    lifts = steps.select(
        "key", pl.when(wrapped).then(pl.col("wrap_mj")).otherwise(0).cum_sum().over("device_id").alias("lift")
    )
    lifted = line.rows.join(lifts, on="key", how="left", maintain_order="left")
    return replace(line, rows=lifted.with_columns(value + pl.col("lift").fill_null(0)).select(line.rows.columns))
