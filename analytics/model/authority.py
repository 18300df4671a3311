"""Which instrument speaks for which time: pieces of devices are asked of their meters in order of authority.

The first meter (by feed, a counter before a gauge) takes each interval that it spans. What it leaves open is cut at the edges
of its holes and asked of the next: all of it where it had nothing to say; where its counter began anew or broke, only an
instrument that does not read that counter. It splits nothing among holders and knows no tenants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from analytics.model import sensors
from analytics.model.energy import GAP, NO_DATA, QUANTITIES, REASONS, Meter, interpolated
from analytics.model.holding import Holdings, whole_holder
from analytics.model.plain import Int64s

DEVICE_HOUR: Final = ["device_id", "hour_us"]
IMPORT_FEED: Final = 4
"""``collector.wire.Feed.IMPORT``: the one feed whose counter need not be the device's own."""
_SILENT: Final = REASONS[NO_DATA]
_ALWAYS_US: Final = 2**61
_GAPS: Final = (
    "gap_mj", "gap_us", "kept_mj", "kept_us", "below_mj", "above_mj", "lost_below_mj", "lost_above_mj",
)  # fmt: skip
_MEASURES: Final = (*QUANTITIES, *_GAPS, "gauged_mj", "edged_mj")
_ASKED: Final = ("piece", "device_id", "hour_us", "from_us", "to_us", "open", "since_us", "unbooked_mj")


@dataclass(frozen=True, slots=True)
class Measured:
    """Pieces with what the meters of authority say of them."""

    pieces: pl.DataFrame
    """The pieces' columns, one row each, :data:`QUANTITIES`, and of the energy: ``gap_mj`` inside gaps, of which ``kept_mj`` stays
    with the holders; ``gauged_mj`` by gauges; ``edged_mj`` split by levels (``edges.py``); ``below_mj`` and ``above_mj``, by how much
    less or more what stays with the holders may be (90 %), and ``lost_below_mj`` and ``lost_above_mj`` of the rest; ``gap_us``,
    ``kept_us``; ``feed``, the first that spoke, and ``origin``, the least real: both null where nobody did."""
    holes: pl.DataFrame
    """Time without a covered interval that has a reason: device_id, hour_us, reason, time_us, unbooked_mj (energy that a counter which
    began anew had counted by its first reading: known to be spent, not known when, never booked)."""
    meter_of: dict[int, pl.DataFrame]
    """Index of a meter -> the (device_id, hour_us) of which it tells more than any other."""
    taken: pl.DataFrame
    """What was taken from which meter: meter, piece, device_id, hour_us, from_us, to_us; within it the meter's holes are not its own."""


def measure(
    holdings: Holdings, meters: Sequence[Meter], held: pl.DataFrame, instruments: pl.DataFrame | None = None
) -> Measured:
    """Return each piece's quantities; where no meter speaks they are 0 and ``feed`` is null.

    ``held``: device_id, start_us, end_us of what jobs hold, far enough around the pieces to judge a gap. ``instruments``: as of
    :func:`sensors.instruments`; without it nothing is said of how far an estimate may be off.
    """
    taken, rest = _taken(ask(holdings.pieces), meters, held, instruments, QUANTITIES)
    parts = pl.concat([_NOTHING, *taken])
    told = _time(rest.filter(pl.col("open") != _SILENT), "open")
    return Measured(
        _summed(holdings.pieces, parts),
        pl.concat([*map(_gap_time, taken), told]),
        _mainly(parts),
        parts.select("meter", "piece", *DEVICE_HOUR, "from_us", "to_us"),
    )


def energy_of(pieces: pl.DataFrame, meters: Sequence[Meter]) -> pl.DataFrame:
    """Return pieces (piece, device_id, hour_us, from_us, to_us) as :func:`measure` does that nobody holds, by energy and covered time alone."""
    nobody = pl.DataFrame(schema={"device_id": pl.Int32, "start_us": pl.Int64, "end_us": pl.Int64})
    taken, _ = _taken(ask(pieces), meters, nobody, None, ("energy_mj", "covered_us"), ends=False)
    return _summed(pieces, pl.concat([_NOTHING, *taken]))


def _taken(
    asked: pl.DataFrame,
    meters: Sequence[Meter],
    held: pl.DataFrame,
    instruments: pl.DataFrame | None,
    names: Sequence[str],
    *,
    ends: bool = True,
) -> tuple[list[pl.DataFrame], pl.DataFrame]:
    """Return what is taken from each meter, and what none of them told; without ``ends`` nobody wants to know why the last told nothing."""
    taken = []
    for index, meter in enumerate(meters):
        able, others = may_tell(asked, meter)
        if able.is_empty():
            continue
        read = _read(able, meter, held, instruments, names)
        spans = pl.col("covered_us") + pl.col("gap_us")
        took = read.filter(spans > 0)
        if took.height:
            taken.append(took.with_columns(pl.lit(index, dtype=pl.Int32).alias("meter")).select(_NOTHING.columns))
        if not ends and index == len(meters) - 1:
            break
        short = read.filter(spans < pl.col("to_us") - pl.col("from_us"))
        asked = pl.concat([others, left_open(short.select(_ASKED), meter)])
    return taken, asked


def ask(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return pieces (piece, device_id, hour_us, from_us, to_us) as nobody has told anything of them yet."""
    return pieces.select(
        "piece",
        *DEVICE_HOUR,
        "from_us",
        "to_us",
        pl.lit(_SILENT).alias("open"),
        # From when on nobody of more authority has told anything, within the hour.
        pl.col("hour_us").alias("since_us"),
        pl.lit(0, dtype=pl.Int64).alias("unbooked_mj"),
    )


def may_tell(asked: pl.DataFrame, meter: Meter) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows that the meter may be asked of, and the others."""
    may = asked["device_id"].is_in(meter.devices.implode())
    if meter.instrument == "counter" and meter.feed != IMPORT_FEED:
        may &= asked["open"] == _SILENT
    if meter.lacking is not None:
        hours = asked.select(DEVICE_HOUR).join(
            meter.lacking.with_columns(pl.lit(value=True).alias("lacks")),
            on=DEVICE_HOUR,
            how="left",
            maintain_order="left",
        )
        may &= hours["lacks"].fill_null(value=False)
    return (asked, asked.clear()) if may.all() else (asked.filter(may), asked.filter(~may))


def grown(pieces: pl.DataFrame, meter: Meter, names: Sequence[str]) -> pl.DataFrame:
    """Return by how much the meter's quantities grew in each piece (device_id, from_us, to_us).

    Where one piece follows the other in order, the end of one is the beginning of the other and is read once.
    """
    start = meter.at(pieces.select("device_id", pl.col("from_us").alias("at_us")), names)
    follows = (pl.col("device_id").shift(-1) == pl.col("device_id")) & (pl.col("from_us").shift(-1) == pl.col("to_us"))
    alone = pieces.select(pl.arg_where(~follows.fill_null(value=False))).to_series()
    end = meter.at(pieces[alone].select("device_id", pl.col("to_us").alias("at_us")), names)
    return pl.DataFrame(
        {name: _steps(start[name].to_numpy(), alone.to_numpy(), end[name].to_numpy()) for name in names}
    )


def _steps(start: Int64s, alone: Int64s, end: Int64s) -> Int64s:
    """Return by how much each row's value is passed by the next one's, of the rows ``alone`` by ``end``."""
    grown = np.empty_like(start)
    np.subtract(start[1:], start[:-1], out=grown[:-1])
    grown[alone] = end - start[alone]
    return grown


def _read(
    asked: pl.DataFrame, meter: Meter, held: pl.DataFrame, instruments: pl.DataFrame | None, names: Sequence[str]
) -> pl.DataFrame:
    gauge = meter.instrument == "gauge"
    read = _with_gaps(asked.hstack(grown(asked, meter, names)), meter, held, instruments).with_columns(
        pl.lit(meter.feed, dtype=pl.Int16).alias("feed"),
        pl.lit(meter.origin, dtype=pl.Int16).alias("origin"),
        (pl.col("energy_mj") if gauge else pl.lit(0, dtype=pl.Int64)).alias("gauged_mj"),
        *(pl.lit(0, dtype=pl.Int64).alias(name) for name in ("edged_mj", *(q for q in QUANTITIES if q not in names))),
    )
    if not gauge or instruments is None:
        return read
    error = sensors.gauge_error_mj(pl.col("energy_mj"), pl.col("gauge_error_ppm"))
    return (
        read.join(instruments.select("device_id", "gauge_error_ppm"), on="device_id", how="left", maintain_order="left")
        .with_columns((pl.col(name) + error).alias(name) for name in ("below_mj", "above_mj"))
        .drop("gauge_error_ppm")
    )


def _with_gaps(asked: pl.DataFrame, meter: Meter, held: pl.DataFrame, instruments: pl.DataFrame | None) -> pl.DataFrame:
    """Add the energy and time inside gaps, what of these stays with the piece's holders, and how far either may be off."""
    nothing = [pl.lit(0, dtype=pl.Int64).alias(name) for name in _GAPS]
    gaps = meter.holes.filter(pl.col("reason") == REASONS[GAP])
    gaps = gaps.filter(pl.col("device_id").is_in(asked["device_id"].unique().implode()))
    if gaps.is_empty():
        return asked.with_columns(nothing)
    gaps = gaps.with_columns(whole_holder(gaps, held).alias("kept")).with_row_index("gap")
    asked = asked.with_row_index("part")
    both = (
        gaps.rename({"from_us": "gap_from_us", "to_us": "gap_to_us"})
        .select("gap", "device_id", "gap_from_us", "gap_to_us", "delta_mj", "kept")
        .join(asked.select("part", "device_id", "hour_us", "from_us", "to_us"), on="device_id", how="inner")
        .with_columns(
            pl.max_horizontal("from_us", "gap_from_us").alias("from_us"),
            pl.min_horizontal("to_us", "gap_to_us").alias("to_us"),
            (pl.col("gap_to_us") - pl.col("gap_from_us")).alias("width_us"),
        )
        .filter(pl.col("from_us") < pl.col("to_us"))
    )
    until = interpolated(pl.col("delta_mj"), pl.col("to_us") - pl.col("gap_from_us"), pl.col("width_us"))
    since = interpolated(pl.col("delta_mj"), pl.col("from_us") - pl.col("gap_from_us"), pl.col("width_us"))
    both = both.with_columns((until - since).alias("gap_mj"), (pl.col("to_us") - pl.col("from_us")).alias("gap_us"))
    both = _with_bounds(both, instruments)
    kept = pl.col("kept")
    summed = both.group_by("part").agg(
        pl.col("gap_mj", "gap_us").sum(),
        pl.col("gap_mj").filter(kept).sum().alias("kept_mj"),
        pl.col("gap_us").filter(kept).sum().alias("kept_us"),
        pl.col("below_mj").filter(kept).sum(),
        pl.col("above_mj").filter(kept).sum(),
        pl.col("below_mj").filter(~kept).sum().alias("lost_below_mj"),
        pl.col("above_mj").filter(~kept).sum().alias("lost_above_mj"),
    )
    return (
        asked.join(summed, on="part", how="left", maintain_order="left")
        .with_columns(pl.col(_GAPS).fill_null(0))
        .drop("part")
    )


def _with_bounds(parts: pl.DataFrame, instruments: pl.DataFrame | None) -> pl.DataFrame:
    """Add below_mj and above_mj. What stays with nobody is judged by device and hour, as it is booked, and said with its first part."""
    if instruments is None:
        return parts.with_columns(pl.lit(0, dtype=pl.Int64).alias(name) for name in ("below_mj", "above_mj"))
    whole = pl.when(pl.col("kept")).then(pl.col("part")).otherwise(pl.col("part").min().over("gap", "hour_us"))
    low, high = sensors.gap_bounds_mj(pl.col("delta_mj"), pl.col("own_us"), pl.col("width_us"), pl.col("most_mw"))
    first = pl.col("part") == pl.col("whole")
    return (
        parts.with_columns(whole.alias("whole"))
        .with_columns(
            pl.col("gap_us").sum().over("gap", "whole").alias("own_us"),
            pl.col("gap_mj").sum().over("gap", "whole").alias("own_mj"),
        )
        .join(instruments.select("device_id", "most_mw"), on="device_id", how="left", maintain_order="left")
        .with_columns(
            pl.when(first).then((pl.col("own_mj") - low).clip(0, None)).otherwise(0).alias("below_mj"),
            pl.when(first).then((high - pl.col("own_mj")).clip(0, None)).otherwise(0).alias("above_mj"),
        )
    )


def left_open(short: pl.DataFrame, meter: Meter) -> pl.DataFrame:
    """Return what the meter does not span of these rows of :func:`ask`, cut at the edges of its holes, each with the reason."""
    if short.is_empty():
        return short
    ids = short["device_id"].unique().sort()
    base = ids.cast(pl.Int64) * meter.keys.span_us
    first = meter.key.gather(meter.key.search_sorted(base, side="left")) - base + meter.keys.base_us
    last_of = meter.key.search_sorted(base + meter.keys.span_us, side="left").cast(pl.Int64) - 1
    last = meter.key.gather(last_of) - base + meter.keys.base_us
    ends = [
        pl.DataFrame({"device_id": ids, "hole_from_us": since, "hole_to_us": until}).with_columns(
            pl.lit(_SILENT).alias("reason"), pl.lit(0, dtype=pl.Int64).alias("then_mj")
        )
        for since, until in ((pl.repeat(-_ALWAYS_US, ids.len(), dtype=pl.Int64, eager=True), first),
                             (last, pl.repeat(_ALWAYS_US, ids.len(), dtype=pl.Int64, eager=True)))
    ]  # fmt: skip
    inner = meter.holes.filter((pl.col("reason") != REASONS[GAP]) & pl.col("device_id").is_in(ids.implode())).select(
        "device_id",
        pl.col("from_us").alias("hole_from_us"),
        pl.col("to_us").alias("hole_to_us"),
        "reason",
        pl.col("unbooked_mj").alias("then_mj"),
    )
    still = pl.col("open") != _SILENT
    # What a counter shows in the end is of all of its hole: where a meter before it spoke in some of it, that is told already.
    alone = (pl.col("hole_from_us") >= pl.col("since_us")) | (pl.col("since_us") == pl.col("hour_us"))
    ends_here = pl.when(alone & (pl.col("hole_to_us") <= pl.col("to_us"))).then(pl.col("then_mj")).otherwise(0)
    return (
        short.join(pl.concat([*ends, inner]), on="device_id", how="inner")
        .filter((pl.col("hole_from_us") < pl.col("to_us")) & (pl.col("hole_to_us") > pl.col("from_us")))
        .with_columns(
            pl.when(still)
            .then(pl.when(pl.col("hole_to_us") >= pl.col("to_us")).then(pl.col("unbooked_mj")).otherwise(0))
            .otherwise(ends_here)
            .alias("unbooked_mj"),
            pl.when(still).then(pl.col("open")).otherwise(pl.col("reason")).alias("open"),
            pl.max_horizontal("from_us", "hole_from_us").alias("from_us"),
            pl.min_horizontal("to_us", "hole_to_us").alias("to_us"),
            pl.max_horizontal("since_us", "hole_from_us").alias("since_us"),
        )
        .select(_ASKED)
    )


def _summed(pieces: pl.DataFrame, parts: pl.DataFrame) -> pl.DataFrame:
    said = parts.select("piece", *_MEASURES, "feed", "origin")
    if said["piece"].n_unique() < said.height:
        said = said.group_by("piece").agg(pl.col(_MEASURES).sum(), pl.col("feed").min(), pl.col("origin").max())
    return pieces.join(said, on="piece", how="left", maintain_order="left").with_columns(pl.col(_MEASURES).fill_null(0))


def _mainly(parts: pl.DataFrame) -> dict[int, pl.DataFrame]:
    if parts.is_empty():
        return {}
    spoke = parts.group_by(*DEVICE_HOUR, "meter").agg(
        (pl.col("covered_us") + pl.col("gap_us")).sum().alias("spanned_us")
    )
    most = spoke.sort("spanned_us", "meter", descending=[True, False]).unique(
        DEVICE_HOUR, keep="first", maintain_order=True
    )
    return {
        index: most.filter(pl.col("meter") == index).select(DEVICE_HOUR).sort(DEVICE_HOUR)
        for index in most["meter"].unique().sort().to_list()
    }


def _gap_time(took: pl.DataFrame) -> pl.DataFrame:
    return took.filter(pl.col("gap_us") > 0).select(
        *DEVICE_HOUR,
        pl.lit(REASONS[GAP]).alias("reason"),
        pl.col("gap_us").alias("time_us"),
        pl.lit(0, dtype=pl.Int64).alias("unbooked_mj"),
    )


def _time(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    return rows.select(
        *DEVICE_HOUR,
        pl.col(reason).alias("reason"),
        (pl.col("to_us") - pl.col("from_us")).alias("time_us"),
        "unbooked_mj",
    )


_NOTHING: Final = pl.DataFrame(
    schema={
        **dict.fromkeys(("piece",), pl.UInt32),
        "device_id": pl.Int32,
        **dict.fromkeys(("hour_us", "from_us", "to_us", *_MEASURES), pl.Int64),
        "feed": pl.Int16,
        "origin": pl.Int16,
        "meter": pl.Int32,
    }
)
