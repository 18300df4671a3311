"""Divides the energy of a shared board among its holders: the floor by what each is entitled to, the rest by who was active.

Pieces of one board with two holders or more, none of a board that one holder has alone. The parts of a piece always sum to it. It knows
no meter and no money; what was seen of activity comes from ``activity``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analytics.frames import UNATTRIBUTED_NO_JOB
from analytics.model.activity import on_pieces
from analytics.model.levels import EVEN, levels
from analytics.model.methods import least_exact
from analytics.policy import SharingError
from analytics.units import PPM

Ints = NDArray[np.int64]
Numbers = NDArray[Any]
"""64-bit integers, or Python's own where a product would not fit."""


_NJ_PER_MJ: Final = 1_000_000
_MOST: Final = 2**62


def split_shared(
    pieces: pl.DataFrame, holders: pl.DataFrame, seen: pl.DataFrame, floors: pl.DataFrame, error: SharingError
) -> pl.DataFrame:
    """Return piece, holder, job_id, holder_key, energy_mj, active_mj (of it), energy_low_mj, energy_high_mj, method.

    Parts sum to their piece. ``pieces``: piece, device_id, hour_us, from_us, to_us, energy_mj, covered_us. ``holders``, at least one of each:
    piece, holder, job_id, holder_key, weight, weights, method. ``seen``: ``activity.LOOKS``. ``floors``: device_id, idle_power_mw, of each device.

    floor = min(E, idle power x covered time) goes by weight; E - floor by activity x the job's level (``levels``). Where activity is not
    known of all in a piece, or nobody was active, that goes by weight too, and ``method`` is the allocation's. Active processes that
    hold nothing are ``unattributed:no_job``. Bounds (90 %): the energy -+ the method's error of the active part, between 0 and E, in
    whole millijoules outwards. Rows are sorted by piece and holder_key. Source: DESIGN §7.6.
    """
    order = pieces.sort("piece").with_row_index("place").join(floors, on="device_id", how="left", maintain_order="left")
    floor_mj = _floor_mj(order)
    whole_mj = order["energy_mj"].to_numpy()
    active_mj = whole_mj - floor_mj
    rows = _of_holders(order, holders, seen)
    place = rows["place"].to_numpy().astype(np.int64)
    weight, worked = rows["weight"].to_numpy(), _worked(order, rows, active_mj)
    known = sums(worked, place, len(whole_mj))[place] > 0
    of_active = parts(active_mj, np.where(known, worked, weight), place)
    energy_mj = parts(floor_mj, weight, place) + of_active
    rows = rows.with_columns(
        pl.when(pl.Series(known, dtype=pl.Boolean))
        .then(pl.coalesce("seen_method", "piece_method"))
        .otherwise("method")
        .alias("method"),
        pl.Series("energy_mj", energy_mj, dtype=pl.Int64),
        pl.Series("active_mj", of_active, dtype=pl.Int64),
    )
    wide = _error_mj(rows["method"], active_mj[place], error)
    bounds = (
        pl.Series("energy_low_mj", np.maximum(energy_mj - wide, 0), dtype=pl.Int64),
        pl.Series("energy_high_mj", np.minimum(energy_mj + wide, whole_mj[place]), dtype=pl.Int64),
    )
    columns = ("piece", "holder", "job_id", "holder_key", "energy_mj", "active_mj")
    # Somebody without a job who did nothing is nobody.
    worth = (pl.col("holder") != UNATTRIBUTED_NO_JOB) | (pl.col("energy_mj") > 0)
    return rows.with_columns(*bounds).filter(worth).select(*columns, "energy_low_mj", "energy_high_mj", "method")


def by_span(
    pieces: pl.DataFrame, holders: pl.DataFrame, seen: pl.DataFrame, floors: pl.DataFrame, error: SharingError
) -> pl.DataFrame:
    """Return span, holder, job_id, holder_key, energy_mj, active_mj, below_mj, above_mj, seen_us, method of spans that several hold.

    As :func:`split_shared`, summed over the pieces of a span: ``pieces`` with span and gap_mj, which is not divided here, and ``holders``
    by span. ``active_mj`` is the part that is an estimate, ``below_mj`` and ``above_mj`` how far the bounds lie off; ``seen_us`` is how
    long those who hold nothing (``unattributed:no_job``) were seen, 0 of others. Sorted by span and holder_key.
    """
    several = holders.filter(pl.col("weight") != pl.col("weights"))
    mine = pieces.join(several.select("span").unique(), on="span", how="semi").with_columns(
        pl.col("energy_mj") - pl.col("gap_mj")
    )
    of_piece = mine.select("piece", "span").join(several, on="span", how="inner")
    rows = split_shared(mine, of_piece.drop("span"), seen, floors, error).join(
        mine.select("piece", "span", "covered_us"), on="piece", how="left", maintain_order="left"
    )
    strange = pl.col("holder") == UNATTRIBUTED_NO_JOB
    return (
        rows.group_by("span", "holder", "job_id", "holder_key")
        .agg(
            pl.col("energy_mj", "active_mj").sum(),
            (pl.col("energy_mj") - pl.col("energy_low_mj")).sum().alias("below_mj"),
            (pl.col("energy_high_mj") - pl.col("energy_mj")).sum().alias("above_mj"),
            pl.when(strange).then("covered_us").otherwise(0).sum().alias("seen_us"),
            least_exact(pl.col("method")).alias("method"),
        )
        .sort("span", "holder_key", "holder")
    )


def parts(total: Ints, weight: Ints, place: Ints) -> Ints:
    """Return each row's part of its place's ``total`` in proportion to its ``weight``, by largest remainder, ties by row order.

    ``place``: index into ``total``, ascending. All numbers are >= 0; parts sum to the total. Where all weights are 0 the first row has it.
    """
    if not len(place):
        return np.zeros(0, dtype=np.int64)
    first = np.concatenate([[True], place[1:] != place[:-1]])
    given = sums(weight, place, len(total))
    weight = np.where((given[place] == 0) & first, 1, weight)
    given = np.maximum(given, 1)[place]
    fits = int(total.max(initial=0)) * max(int(weight.max(initial=0)), 1) < _MOST
    size: Numbers = total[place] if fits else total[place].astype(object)
    product = size * weight
    whole = product // given
    rest = (product - whole * given).astype(np.int64)
    part: Ints = whole.astype(np.int64)
    left = total - sums(part, place, len(total))
    # One more millijoule to as many rows as are left over: those with the largest remainder, which are fewer than rows.
    ranked = np.lexsort((-rest, place))
    starts = np.flatnonzero(first)
    rank = np.arange(len(place)) - np.repeat(starts, np.diff(np.append(starts, len(place))))
    part[ranked[rank < left[place]]] += 1
    return part


def sums(values: Ints, place: Ints, places: int) -> Ints:
    """Return the sum of the values of each place, exactly."""
    total = np.zeros(places, dtype=np.int64)
    np.add.at(total, place, values)
    return total


def _floor_mj(order: pl.DataFrame) -> Ints:
    at_rest = pl.col("idle_power_mw").cast(pl.Int64) * pl.col("covered_us") // _NJ_PER_MJ
    return order.select(pl.min_horizontal("energy_mj", at_rest)).to_series().to_numpy()


def _of_holders(order: pl.DataFrame, holders: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return the holders of each place, whoever was active there without holding anything among them, with their activity."""
    of_place = ("place", "piece", "device_id", "hour_us")
    theirs = order.select(*of_place).join(holders, on="piece", how="inner")
    active = on_pieces(order, theirs.select("place", "job_id"), seen)
    of_piece = active.group_by("place").agg(pl.col("seen_method").min().alias("piece_method"))
    strangers = order.select(*of_place).join(active.filter(pl.col("job_id").is_null()).drop("job_id"), on="place")
    rows = theirs.join(active.drop_nulls("job_id"), on=["place", "job_id"], how="left").select(
        *of_place,
        "holder",
        "job_id",
        "holder_key",
        pl.col("weight").cast(pl.Int64),
        "method",
        "activity_ppm",
        "seen_method",
    )
    strange = strangers.select(
        *of_place,
        pl.lit(UNATTRIBUTED_NO_JOB).alias("holder"),
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        pl.lit(UNATTRIBUTED_NO_JOB).alias("holder_key"),
        pl.lit(0, dtype=pl.Int64).alias("weight"),
        pl.col("seen_method").alias("method"),
        "activity_ppm",
        "seen_method",
    )
    return (
        pl.concat([rows, strange])
        .join(of_piece, on="place", how="left")
        .with_columns(pl.col("activity_ppm").fill_null(0))
        .sort("place", "holder_key", "holder")
    )


def _worked(order: pl.DataFrame, rows: pl.DataFrame, active_mj: Ints) -> Ints:
    """Return activity x level of each row; 0 of who did nothing."""
    measured = order.select("place", "covered_us", (pl.col("to_us") - pl.col("from_us")).alias("length_us"))
    measured = measured.with_columns(pl.Series("active_mj", active_mj)).filter(
        pl.col("covered_us") == pl.col("length_us")
    )
    active = rows.filter(pl.col("activity_ppm") > 0).join(measured, on="place")
    of_job = ["device_id", "hour_us", "job_id"]
    level = rows.select(of_job).join(levels(active), on=of_job, how="left", nulls_equal=True, maintain_order="left")[
        "level"
    ]
    worked: Ints = rows["activity_ppm"].to_numpy() * level.fill_null(EVEN).to_numpy()
    return worked


def _error_mj(method: pl.Series, active_mj: Ints, error: SharingError) -> Ints:
    """Return the half-width of the bounds: the method's part of the board's active energy, rounded up."""
    known = asdict(error)
    ppm = method.replace_strict(
        list(known), list(known.values()), default=error.share, return_dtype=pl.Int64
    ).to_numpy()
    size: Numbers = active_mj.astype(object) if active_mj.max(initial=0) >= _MOST // PPM else active_mj
    wide: Ints = (-(-size * ppm // PPM)).astype(np.int64)
    return wide
