"""Energy and time of pieces become usage hours: device x hour x holder, summing to the meter in integer millijoules.

Which meter speaks for a piece is settled before (``authority.py``). Knows no tenants and no prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from analytics.errors import BooksError
from analytics.frames import HOLDER_IDLE, UNATTRIBUTED_GAP
from analytics.model import sharing
from analytics.model.authority import DEVICE_HOUR, Measured
from analytics.model.energy import QUANTITIES
from analytics.model.holding import Holdings
from analytics.model.methods import least_exact
from analytics.model.states import times
from analytics.policy import SharingError
from analytics.units import US_PER_HOUR

_SPLIT: Final = (
    "metered_mj", "kept_mj", "gauged_mj", "edged_mj", "below_mj", "above_mj", "gap_us", "dark_us", "kept_us",
    "covered_us", "known_us", "active_us", "idle_us", "throttled_us", "throttle_bits_us", "throttle_counter_us",
)  # fmt: skip
_SPAN: Final = ("hour_us", "device_id", "standing", "declared")


@dataclass(frozen=True, slots=True)
class Activity:
    """What the energy of shared boards is divided by, beside what their holders are entitled to."""

    seen: pl.DataFrame
    """``activity.LOOKS``."""
    floors: pl.DataFrame
    """device_id, idle_power_mw of every device."""
    error: SharingError


def attribute(measured: Measured, holdings: Holdings, activity: Activity | None = None) -> pl.DataFrame:
    """Return rows by hour_us, device_id, holder, job_id, holder_key with summed quantities; raise if they do not sum to the meter.

    Times and energies of a span are its holders' by their weights, energy of what several hold by who was active (``sharing``), where
    ``activity`` is given. Also each row's ``reserved_us``, ``down_us``, ``declared`` (the state's reason) and ``method``.
    """
    spans = _spans(measured.pieces)
    parts = spans.join(holdings.holders, on="span", how="inner", maintain_order="left")
    on_books = pl.col("standing").is_not_null() | (pl.col("holder") != HOLDER_IDLE)
    parts = parts.filter(on_books | (pl.col("covered_us") + pl.col("gap_us") > 0)).with_columns(
        pl.lit(0, dtype=pl.Int64).alias(name) for name in ("worked_mj", "seen_us")
    )
    is_whole = pl.col("weight") == pl.col("weights")
    shared = _shared(parts.filter(~is_whole), measured, holdings, activity)
    parts = pl.concat([parts.filter(is_whole), shared.select(parts.columns)])
    # Split one by one, parts of estimates may pass parts of the whole by the last millijoule.
    guessed = pl.col("gauged_mj") + pl.col("edged_mj") + pl.col("worked_mj")
    estimated = pl.min_horizontal(guessed, "metered_mj") + pl.col("kept_mj")
    time_us = pl.col("covered_us") + pl.col("gap_us") + pl.col("dark_us")
    reserved, down = times(pl.col("holder"), pl.col("standing"), time_us, pl.col("dark_us"))
    rows = parts.group_by("hour_us", "device_id", "holder", "job_id", "holder_key").agg(
        (pl.col("metered_mj") + pl.col("kept_mj")).sum().alias("energy_mj"),
        estimated.sum().alias("estimated_mj"),
        pl.col("below_mj", "above_mj").sum(),
        time_us.sum().alias("held_us"),
        (pl.col("covered_us") + pl.col("kept_us") + pl.col("seen_us")).sum().alias("spanned_us"),
        *(pl.col(name).sum() for name in QUANTITIES if name != "energy_mj"),
        reserved.sum().alias("reserved_us"),
        down.sum().alias("down_us"),
        pl.col("declared").min(),
        least_exact(pl.col("method")).alias("method"),
        pl.col("feed").min(),
        pl.col("origin").max(),
    )
    rows = pl.concat([rows, _lost_in_gaps(measured.pieces).select(rows.columns)]).sort("hour_us", "device_id", "holder")
    _check_balance(rows, measured.pieces)
    spanned, guessed = pl.col("spanned_us") > 0, (pl.col("spanned_us") > 0) & (pl.col("estimated_mj") > 0)
    low = (pl.col("energy_mj") - pl.col("below_mj")).clip(0, None)
    return rows.with_columns(
        pl.when(guessed).then(low).alias("energy_low_mj"),
        pl.when(guessed).then(pl.col("energy_mj") + pl.col("above_mj")).alias("energy_high_mj"),
        *(pl.when(spanned).then(pl.col(name)).alias(name) for name in ("energy_mj", "estimated_mj")),
    ).drop("below_mj", "above_mj")


def _spans(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the pieces' quantities by span: whatever is divided by weight alone is divided once, not at every look."""
    summed = [name for name in _SPLIT if name not in ("metered_mj", "dark_us")]
    length = pl.col("to_us") - pl.col("from_us")
    return pieces.group_by("span", *_SPAN, maintain_order=True).agg(
        (pl.col("energy_mj") - pl.col("gap_mj")).sum().alias("metered_mj"),
        (length - pl.col("covered_us") - pl.col("gap_us")).sum().alias("dark_us"),
        pl.col(summed).sum(),
        pl.col("feed").min(),
        pl.col("origin").max(),
    )


def _shared(parts: pl.DataFrame, measured: Measured, holdings: Holdings, activity: Activity | None) -> pl.DataFrame:
    """Return ``parts`` of spans that several hold with every quantity divided; energy by activity where that is known."""
    if parts.is_empty():
        return parts
    parts = _by_weight(parts)
    if activity is None:
        return parts
    by_work = sharing.split_shared(
        measured.pieces, holdings.holders, activity.seen, activity.floors, activity.error
    ).select(
        "span",
        "holder",
        "job_id",
        "holder_key",
        pl.col("energy_mj").alias("metered_mj"),
        pl.col("active_mj").alias("worked_mj"),
        pl.col("below_mj").alias("work_below_mj"),
        pl.col("above_mj").alias("work_above_mj"),
        "seen_us",
        "method",
    )
    own = by_work.drop("holder_key", "job_id", "seen_us")
    known = parts.drop("metered_mj", "worked_mj", "method").join(
        own, on=["span", "holder"], how="left", maintain_order="left"
    )
    strangers = by_work.join(parts.select("span", "holder"), on=["span", "holder"], how="anti")
    of_span = parts.unique("span", keep="first", maintain_order=True).select("span", *_SPAN, "feed", "origin")
    added = strangers.join(of_span, on="span", how="inner")
    both = pl.concat([known, added], how="diagonal").with_columns(
        (pl.col("below_mj").fill_null(0) + pl.col("work_below_mj")).alias("below_mj"),
        (pl.col("above_mj").fill_null(0) + pl.col("work_above_mj")).alias("above_mj"),
    )
    return both.with_columns(pl.col(*_SPLIT, "worked_mj", "seen_us").fill_null(0))


def _by_weight(parts: pl.DataFrame) -> pl.DataFrame:
    """Return ``parts`` with each of the :data:`_SPLIT` of a span divided in proportion to ``weight``, leftovers in order of names."""
    parts = parts.sort("span", "holder_key", "holder")
    span, weight = parts["span"].to_numpy(), parts["weight"].to_numpy()
    is_first = np.append(True, span[1:] != span[:-1])
    place = np.cumsum(is_first) - 1
    return parts.with_columns(
        pl.Series(name, sharing.parts(parts[name].to_numpy()[is_first], weight, place)) for name in _SPLIT
    )


def quality(measured: Measured, dropped: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    """Return hour_us, device_id, reason, readings, time_us, unbooked_mj: what was dropped and what time no meter covers."""
    none = pl.lit(0, dtype=pl.Int64)
    counted = (
        dropped.filter((pl.col("at_us") >= from_us) & (pl.col("at_us") < to_us))
        .group_by("device_id", (pl.col("at_us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us"), "reason")
        .agg(pl.len().cast(pl.Int64).alias("readings"), none.alias("time_us"), none.alias("unbooked_mj"))
    )
    holes = measured.holes.select(*DEVICE_HOUR, "reason", none.alias("readings"), "time_us", "unbooked_mj")
    known = holes.group_by(DEVICE_HOUR).agg(pl.col("time_us").sum().alias("explained_us"))
    length = pl.col("to_us") - pl.col("from_us")
    on_books = pl.any_horizontal(pl.col("standing", "segment").is_not_null()) | (
        pl.col("covered_us") + pl.col("gap_us") > 0
    )
    silent = (
        measured.pieces.filter(on_books)
        .group_by(DEVICE_HOUR)
        .agg((length - pl.col("covered_us")).sum().alias("open_us"))
        .join(known, on=DEVICE_HOUR, how="left")
        .select(
            *DEVICE_HOUR,
            pl.lit("no_data").alias("reason"),
            none.alias("readings"),
            (pl.col("open_us") - pl.col("explained_us").fill_null(0)).alias("time_us"),
            none.alias("unbooked_mj"),
        )
        .filter(pl.col("time_us") > 0)
    )
    rows = pl.concat([counted.select(silent.columns), holes, silent])
    return rows.group_by("hour_us", "device_id", "reason").agg(pl.col("readings", "time_us", "unbooked_mj").sum())


def _lost_in_gaps(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the energy of gaps that no job held throughout: known energy, unknown cause, no time of its own."""
    lost = pl.col("gap_mj") - pl.col("kept_mj")
    nothing = [
        pl.lit(0, dtype=pl.Int64).alias(name)
        for name in ("held_us", "reserved_us", "down_us", *(q for q in QUANTITIES if q != "energy_mj"))
    ]
    return (
        pieces.filter(pl.col("gap_us") > pl.col("kept_us"))
        .group_by("hour_us", "device_id")
        .agg(
            lost.sum().alias("energy_mj"),
            (pl.col("gap_us") - pl.col("kept_us")).sum().alias("spanned_us"),
            pl.col("lost_below_mj").sum().alias("below_mj"),
            pl.col("lost_above_mj").sum().alias("above_mj"),
            pl.col("feed").min(),
            pl.col("origin").max(),
        )
        .with_columns(
            pl.lit(UNATTRIBUTED_GAP).alias("holder"),
            pl.lit(UNATTRIBUTED_GAP).alias("holder_key"),
            pl.lit(None, dtype=pl.Int64).alias("job_id"),
            pl.col("energy_mj").alias("estimated_mj"),
            pl.lit(None, dtype=pl.String).alias("declared"),
            pl.lit("whole").alias("method"),
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
