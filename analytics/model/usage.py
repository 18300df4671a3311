"""Energy and time of pieces become usage hours: device x hour x holder, summing to the meter in integer millijoules.

For each device and hour the lowest feed whose readings span part of it is authoritative, a counter before a gauge. Knows
no tenants and no prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from analytics.errors import BooksError
from analytics.frames import HOLDER_IDLE, UNATTRIBUTED_GAP
from analytics.model.energy import GAP, QUANTITIES, REASONS, Meter, interpolated
from analytics.model.holding import Holdings, whole_holder
from analytics.model.money import spread
from analytics.units import US_PER_HOUR

DEVICE_HOUR: Final = ["device_id", "hour_us"]
_SPLIT: Final = (
    "metered_mj", "kept_mj", "hole_us", "kept_us",
    "covered_us", "known_us", "active_us", "idle_us", "throttled_us", "throttle_bits_us", "throttle_counter_us",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """Pieces with what the authoritative meter of their hour says."""

    pieces: pl.DataFrame
    """The pieces' columns, :data:`QUANTITIES`, gap_mj, gap_us, kept_mj, kept_us, feed, origin, gauge."""
    holes: pl.DataFrame
    """Uncovered intervals clipped to device hours: device_id, hour_us, reason, time_us."""
    meter_of: dict[int, pl.DataFrame]
    """Index of a meter -> the (device_id, hour_us) it is authoritative for."""


def measure(holdings: Holdings, meters: Sequence[Meter], held: pl.DataFrame) -> Measured:
    """Return each piece's quantities from the meter of authority; without one they are 0 and ``feed`` is null."""
    left = holdings.pieces
    done, holes, meter_of = [], [], {}
    for index, meter in enumerate(meters):
        able = left.filter(pl.col("device_id").is_in(meter.devices.implode()))
        if meter.lacking is not None:
            able = able.join(meter.lacking, on=DEVICE_HOUR, how="semi", maintain_order="left")
        if able.is_empty():
            continue
        read = _read(able, meter, held)
        spanned = read.group_by(DEVICE_HOUR).agg((pl.col("covered_us") + pl.col("gap_us")).sum().alias("spanned_us"))
        mine = spanned.filter(pl.col("spanned_us") > 0).select(DEVICE_HOUR)
        if mine.is_empty():
            continue
        meter_of[index] = mine
        done.append(read.join(mine, on=DEVICE_HOUR, how="semi", maintain_order="left"))
        holes.append(_clipped_holes(meter, done[-1]))
        left = left.join(mine, on=DEVICE_HOUR, how="anti", maintain_order="left")
    done.append(_unmetered(left))
    return Measured(pl.concat(done).sort("piece"), pl.concat(holes) if holes else _NO_HOLES.clone(), meter_of)


def attribute(measured: Measured, holdings: Holdings) -> pl.DataFrame:
    """Return rows by hour_us, device_id, holder, job_id, holder_key with summed quantities; raise if they do not sum to the meter."""
    pieces = measured.pieces.with_columns(
        (pl.col("energy_mj") - pl.col("gap_mj")).alias("metered_mj"),
        (pl.col("to_us") - pl.col("from_us") - pl.col("covered_us")).alias("hole_us"),
    )
    parts = pieces.join(holdings.holders, on="piece", how="inner", maintain_order="left")
    parts = parts.filter(
        pl.col("placed") | (pl.col("holder") != HOLDER_IDLE) | (pl.col("covered_us") + pl.col("gap_us") > 0)
    )
    whole = parts.filter(pl.col("weight") == pl.col("weights"))
    shared = parts.filter(pl.col("weight") != pl.col("weights"))
    for name in _SPLIT:
        shared = spread(shared, group=["piece"], weight="weight", ties=["holder_key"], total=name, into=name)
    rows = (
        pl.concat([whole, shared.select(whole.columns)])
        .with_columns(
            pl.when(pl.col("gauge")).then(pl.col("metered_mj")).otherwise(0).alias("gauged_mj"),
        )
        .group_by("hour_us", "device_id", "holder", "job_id", "holder_key")
        .agg(
            (pl.col("metered_mj") + pl.col("kept_mj")).sum().alias("energy_mj"),
            (pl.col("gauged_mj") + pl.col("kept_mj")).sum().alias("estimated_mj"),
            (pl.col("covered_us") + pl.col("hole_us")).sum().alias("held_us"),
            (pl.col("covered_us") + pl.col("kept_us")).sum().alias("spanned_us"),
            *(pl.col(name).sum() for name in QUANTITIES if name != "energy_mj"),
            pl.col("feed").first(),
            pl.col("origin").first(),
        )
    )
    rows = pl.concat([rows, _lost_in_gaps(measured.pieces).select(rows.columns)]).sort("hour_us", "device_id", "holder")
    _check_balance(rows, measured.pieces)
    return rows.with_columns(
        pl.when(pl.col("spanned_us") > 0).then(pl.col("energy_mj")).alias("energy_mj"),
        pl.when(pl.col("spanned_us") > 0).then(pl.col("estimated_mj")).alias("estimated_mj"),
    )


def quality(measured: Measured, dropped: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    """Return hour_us, device_id, reason, readings, time_us: what was dropped and what time no meter covers."""
    counted = (
        dropped.filter((pl.col("at_us") >= from_us) & (pl.col("at_us") < to_us))
        .group_by("device_id", (pl.col("at_us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us"), "reason")
        .agg(pl.len().cast(pl.Int64).alias("readings"), pl.lit(0, dtype=pl.Int64).alias("time_us"))
    )
    holes = (
        measured.holes.group_by(*DEVICE_HOUR, "reason")
        .agg(pl.col("time_us").sum())
        .select(*DEVICE_HOUR, "reason", pl.lit(0, dtype=pl.Int64).alias("readings"), "time_us")
    )
    known = holes.group_by(DEVICE_HOUR).agg(pl.col("time_us").sum().alias("explained_us"))
    length = pl.col("to_us") - pl.col("from_us")
    silent = (
        measured.pieces.group_by(DEVICE_HOUR)
        .agg((length - pl.col("covered_us")).sum().alias("open_us"))
        .join(known, on=DEVICE_HOUR, how="left")
        .select(
            *DEVICE_HOUR,
            pl.lit("no_data").alias("reason"),
            pl.lit(0, dtype=pl.Int64).alias("readings"),
            (pl.col("open_us") - pl.col("explained_us").fill_null(0)).alias("time_us"),
        )
        .filter(pl.col("time_us") > 0)
    )
    rows = pl.concat([counted.select(silent.columns), holes, silent])
    return rows.group_by("hour_us", "device_id", "reason").agg(pl.col("readings").sum(), pl.col("time_us").sum())


def _read(pieces: pl.DataFrame, meter: Meter, held: pl.DataFrame) -> pl.DataFrame:
    start = meter.at(pieces.select("device_id", pl.col("from_us").alias("at_us")))
    end = meter.at(pieces.select("device_id", pl.col("to_us").alias("at_us")))
    grown = pl.select(end[name] - start[name] for name in QUANTITIES)
    return (
        pieces.hstack(grown)
        .join(_gap_parts(pieces, meter, held), on="piece", how="left", maintain_order="left")
        .with_columns(
            pl.col("gap_mj", "gap_us", "kept_mj", "kept_us").fill_null(0),
            pl.lit(meter.feed, dtype=pl.Int16).alias("feed"),
            pl.lit(meter.origin, dtype=pl.Int16).alias("origin"),
            pl.lit(meter.instrument == "gauge").alias("gauge"),
        )
    )


def _gap_parts(pieces: pl.DataFrame, meter: Meter, held: pl.DataFrame) -> pl.DataFrame:
    """Return per piece the energy and time inside gaps, and of these what stays with the piece's holders."""
    gaps = meter.holes.filter(pl.col("reason") == REASONS[GAP])
    gaps = gaps.with_columns(whole_holder(gaps, held).alias("kept"))
    both = gaps.rename({"from_us": "gap_from_us", "to_us": "gap_to_us"}).join(
        pieces.select("piece", "device_id", "from_us", "to_us"), on="device_id", how="inner"
    )
    start, end = pl.max_horizontal("from_us", "gap_from_us"), pl.min_horizontal("to_us", "gap_to_us")
    width = pl.col("gap_to_us") - pl.col("gap_from_us")
    until = interpolated(pl.col("delta_mj"), end - pl.col("gap_from_us"), width)
    since = interpolated(pl.col("delta_mj"), start - pl.col("gap_from_us"), width)
    return (
        both.filter(start < end)
        .select("piece", "kept", (until - since).alias("gap_mj"), (end - start).alias("gap_us"))
        .group_by("piece")
        .agg(
            pl.col("gap_mj", "gap_us").sum(),
            pl.col("gap_mj").filter(pl.col("kept")).sum().alias("kept_mj"),
            pl.col("gap_us").filter(pl.col("kept")).sum().alias("kept_us"),
        )
    )


_NO_HOLES: Final = pl.DataFrame(
    schema={"device_id": pl.Int32, "hour_us": pl.Int64, "reason": pl.String, "time_us": pl.Int64}
)


def _clipped_holes(meter: Meter, pieces: pl.DataFrame) -> pl.DataFrame:
    hours = pieces.group_by(DEVICE_HOUR).agg(
        pl.col("from_us").min().alias("start_us"), pl.col("to_us").max().alias("end_us")
    )
    time = pl.min_horizontal("to_us", "end_us") - pl.max_horizontal("from_us", "start_us")
    return (
        meter.holes.join(hours, on="device_id", how="inner")
        .select(*DEVICE_HOUR, "reason", time.alias("time_us"))
        .filter(pl.col("time_us") > 0)
    )


def _unmetered(pieces: pl.DataFrame) -> pl.DataFrame:
    zeros = (*QUANTITIES, "gap_mj", "gap_us", "kept_mj", "kept_us")
    return pieces.with_columns(
        *(pl.lit(0, dtype=pl.Int64).alias(name) for name in zeros),
        pl.lit(None, dtype=pl.Int16).alias("feed"),
        pl.lit(None, dtype=pl.Int16).alias("origin"),
        pl.lit(value=False).alias("gauge"),
    )


def _lost_in_gaps(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the energy of gaps that no job held throughout: known energy, unknown cause, no time of its own."""
    lost = pl.col("gap_mj") - pl.col("kept_mj")
    nothing = [
        pl.lit(0, dtype=pl.Int64).alias(name) for name in ("held_us", *(q for q in QUANTITIES if q != "energy_mj"))
    ]
    return (
        pieces.filter(pl.col("gap_us") > pl.col("kept_us"))
        .group_by("hour_us", "device_id")
        .agg(
            lost.sum().alias("energy_mj"),
            (pl.col("gap_us") - pl.col("kept_us")).sum().alias("spanned_us"),
            pl.col("feed").first(),
            pl.col("origin").first(),
        )
        .with_columns(
            pl.lit(UNATTRIBUTED_GAP).alias("holder"),
            pl.lit(UNATTRIBUTED_GAP).alias("holder_key"),
            pl.lit(None, dtype=pl.Int64).alias("job_id"),
            pl.col("energy_mj").alias("estimated_mj"),
            *nothing,
        )
    )


def _check_balance(rows: pl.DataFrame, pieces: pl.DataFrame) -> None:
    books = rows.group_by("hour_us", "device_id").agg(pl.col("energy_mj").sum().alias("booked_mj"))
    meter = pieces.group_by("hour_us", "device_id").agg(pl.col("energy_mj").sum().alias("meter_mj"))
    off = meter.join(books, on=["hour_us", "device_id"], how="left").filter(
        pl.col("booked_mj").fill_null(0) != pl.col("meter_mj")
    )
    negative = rows.filter((pl.col("energy_mj") < 0) | (pl.col("estimated_mj") < 0) | (pl.col("held_us") < 0))
    if off.height or negative.height:
        raise BooksError(
            f"{off.height} device hours do not sum to their meter and {negative.height} rows are negative, "
            f"first: {(off if off.height else negative).row(0, named=True)}"
        )
