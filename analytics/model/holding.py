"""Who held what when: allocations x devices x hours become disjoint pieces of each device, and holders of each piece.

Time only: no energy, no tenants. A piece is cut wherever an hour, an allocation or a placement begins or ends, so every
quantity of a device and hour is the sum over its pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from analytics.frames import HOLDER_IDLE, HOLDER_JOB_PREFIX, UNATTRIBUTED_OVERLAP
from analytics.units import PPM, US_PER_HOUR


@dataclass(frozen=True, slots=True)
class Holdings:
    """Pieces of devices and who held them."""

    pieces: pl.DataFrame
    """piece, device_id, hour_us, from_us, to_us, placed; sorted by device and time."""
    holders: pl.DataFrame
    """piece, holder, job_id, holder_key, weight, weights: the holder's part of the piece is weight / weights.

    ``holder_key`` is the holder by names instead of ids: what leftovers are ordered by.
    """
    overlaps: pl.DataFrame
    """device_id, hour_us, from_us, to_us, jobs: pieces that several jobs claim as a whole."""


def spans(allocations: pl.DataFrame, until_us: int) -> pl.DataFrame:
    """Return device_id, job_id, job_key, share_ppm, start_us, end_us; an open allocation runs to ``until_us``, empty ones vanish."""
    end_us = pl.col("end_at").dt.epoch("us").fill_null(until_us)
    return allocations.select(
        "device_id",
        "job_id",
        "job_key",
        "share_ppm",
        pl.col("start_at").dt.epoch("us").alias("start_us"),
        end_us.alias("end_us"),
    ).filter(pl.col("start_us") < pl.col("end_us"))


def hold(devices: pl.DataFrame, held: pl.DataFrame, from_us: int, to_us: int) -> Holdings:
    """Return the pieces of every device over [from, to) and their holders. ``held``: as of :func:`spans`."""
    inside = held.filter((pl.col("start_us") < to_us) & (pl.col("end_us") > from_us))
    pieces = _pieces(devices, inside, from_us, to_us)
    claims = _claims(pieces, inside)
    counted = claims.group_by("piece").agg(
        pl.len().alias("jobs"),
        pl.col("share_ppm").is_null().sum().alias("wholes"),
        pl.col("share_ppm").sum().alias("shares"),
    )
    contested = counted.filter((pl.col("jobs") > 1) & (pl.col("wholes") > 0))
    free = pieces.join(counted, on="piece", how="anti").select("piece")
    partly = counted.filter((pl.col("wholes") == 0) & (pl.col("shares") < PPM))
    jobs = claims.join(contested, on="piece", how="anti").join(counted, on="piece", how="left", maintain_order="left")
    weights = pl.max_horizontal(pl.col("shares").cast(pl.Int64), pl.lit(PPM, dtype=pl.Int64))
    whole = pl.col("share_ppm").is_null()
    holders = pl.concat(
        [
            jobs.select(
                "piece",
                (HOLDER_JOB_PREFIX + pl.col("job_id").cast(pl.String)).alias("holder"),
                "job_id",
                (HOLDER_JOB_PREFIX + pl.col("job_key")).alias("holder_key"),
                pl.when(whole).then(PPM).otherwise(pl.col("share_ppm")).cast(pl.Int64).alias("weight"),
                pl.when(whole).then(PPM).otherwise(weights).cast(pl.Int64).alias("weights"),
            ),
            _not_a_job(partly, HOLDER_IDLE, PPM - pl.col("shares")),
            _not_a_job(free, HOLDER_IDLE, pl.lit(PPM)),
            _not_a_job(contested, UNATTRIBUTED_OVERLAP, pl.lit(PPM)),
        ]
    ).sort("piece", "holder")
    overlaps = (
        pieces.join(claims.join(contested, on="piece", how="semi"), on="piece", how="inner")
        .group_by("piece", "device_id", "hour_us", "from_us", "to_us")
        .agg(pl.col("job_id").sort().alias("jobs"))
        .sort("piece")
    )
    return Holdings(pieces, holders, overlaps.drop("piece"))


def whole_holder(gaps: pl.DataFrame, held: pl.DataFrame) -> pl.Series:
    """Return for each gap (device_id, from_us, to_us) whether jobs held the device unchanged throughout it.

    DESIGN §7.1: only then does the gap's energy go to them; an idle device whose agent was silent proves nothing.
    """
    touching = (
        gaps.with_row_index("gap")
        .join(held, on="device_id", how="left", maintain_order="left")
        .with_columns(
            ((pl.col("start_us") < pl.col("to_us")) & (pl.col("end_us") > pl.col("from_us")))
            .fill_null(value=False)
            .alias("touches"),
            ((pl.col("start_us") <= pl.col("from_us")) & (pl.col("end_us") >= pl.col("to_us")))
            .fill_null(value=False)
            .alias("spans"),
        )
        .group_by("gap", maintain_order=True)
        .agg((pl.col("touches").any() & (pl.col("spans") == pl.col("touches")).all()).alias("held"))
        .sort("gap")
    )
    return touching["held"]


def _pieces(devices: pl.DataFrame, held: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    first = from_us // US_PER_HOUR * US_PER_HOUR
    edges = pl.DataFrame({"cut_us": [*range(first, to_us, US_PER_HOUR), to_us]}, schema={"cut_us": pl.Int64})
    placed_from, placed_to = pl.col("placed_from_at").dt.epoch("us"), pl.col("placed_to_at").dt.epoch("us")
    moves = [devices.select("device_id", bound.alias("cut_us")).drop_nulls() for bound in (placed_from, placed_to)]
    ends = [held.select("device_id", pl.col(name).alias("cut_us")) for name in ("start_us", "end_us")]
    inner = pl.concat([*ends, *moves]).filter(
        pl.col("cut_us").is_between(from_us, to_us) & pl.col("device_id").is_in(devices["device_id"].implode())
    )
    cuts = pl.concat([devices.select("device_id").join(edges, how="cross"), inner]).unique().sort("device_id", "cut_us")
    same = pl.col("device_id").shift(-1) == pl.col("device_id")
    placed = devices.select("device_id", placed_from.alias("placed_from_us"), placed_to.alias("placed_to_us"))
    return (
        cuts.with_columns(pl.col("cut_us").shift(-1).alias("to_us"), same.alias("same"))
        .filter(pl.col("same"))
        .select(
            "device_id",
            (pl.col("cut_us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us"),
            pl.col("cut_us").alias("from_us"),
            "to_us",
        )
        .join(placed, on="device_id", how="left", maintain_order="left")
        .with_columns(
            (
                (pl.col("from_us") >= pl.col("placed_from_us")).fill_null(value=True)
                & (pl.col("to_us") <= pl.col("placed_to_us")).fill_null(value=True)
            ).alias("placed")
        )
        .drop("placed_from_us", "placed_to_us")
        .with_row_index("piece")
    )


def _claims(pieces: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    """One row per piece and job; several shares of one job add up, a whole among them is a whole."""
    share = pl.when(pl.col("share_ppm").is_null().any()).then(None)
    return (
        pieces.select("piece", "device_id", "from_us", "to_us")
        .join(held, on="device_id", how="inner")
        .filter((pl.col("start_us") <= pl.col("from_us")) & (pl.col("end_us") >= pl.col("to_us")))
        .group_by("piece", "job_id")
        .agg(
            share.otherwise(pl.min_horizontal(pl.col("share_ppm").sum(), pl.lit(PPM)))
            .cast(pl.Int64)
            .alias("share_ppm"),
            pl.col("job_key").first(),
        )
    )


def _not_a_job(pieces: pl.DataFrame, holder: str, weight: pl.Expr) -> pl.DataFrame:
    return pieces.select(
        "piece",
        pl.lit(holder).alias("holder"),
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        pl.lit(holder).alias("holder_key"),
        weight.cast(pl.Int64).alias("weight"),
        pl.lit(PPM, dtype=pl.Int64).alias("weights"),
    )
