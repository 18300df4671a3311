"""Divides the energy of a shared board among its holders: the floor by what each is entitled to, the rest by who was active.

Spans that two holders or more have of one board, none of a board that one holder has alone. The parts of each piece sum to it. It knows
no meter and no money; what was seen of activity comes from ``activity``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analytics.frames import METHODS, UNATTRIBUTED_NO_JOB
from analytics.model.activity import Worked, worked
from analytics.model.instants import Ints
from analytics.model.levels import EVEN, levels
from analytics.policy import IdlePolicy, SharingError
from analytics.units import PPM

Numbers = NDArray[Any]
"""64-bit integers, or Python's own where a product would not fit."""

_NJ_PER_MJ: Final = 1_000_000
_MOST: Final = 2**62


def split_shared(
    pieces: pl.DataFrame, holders: pl.DataFrame, seen: pl.DataFrame, floors: pl.DataFrame, error: SharingError
) -> pl.DataFrame:
    """Return span, holder, job_id, holder_key, energy_mj, active_mj, below_mj, above_mj, seen_us, method.

    ``pieces``, by device and time: piece, span, device_id, hour_us, from_us, to_us, energy_mj, gap_mj, covered_us. ``holders``: span, holder, job_id, holder_key,
    weight, weights, method; spans whose holder has it alone are left out. ``seen``: ``activity.LOOKS``. ``floors``: device_id, idle_power_mw.

    Of a piece, without gaps: floor = min(E, idle power x covered time) goes by weight; E - floor by activity x the job's level (``levels``).
    Where activity is not known of all, or nobody was active, that goes by weight too, and ``method`` is the allocation's. Active processes
    that hold nothing are ``unattributed:no_job``, with ``seen_us`` the time there was. ``active_mj`` is the energy of pieces that had an active
    part: whoever has a part of them, or none, has it by estimate. 90 % bounds lie ``below_mj`` and ``above_mj`` off:
    the method's error of the board's active energy, between 0 and E of each piece, in whole millijoules outwards. ``method`` is the least
    exact of the pieces'. Rows are sorted by span and holder_key. Source: DESIGN §7.6.
    """
    of_span = _holders(holders, pieces, seen)
    mine = pieces.filter(pl.col("span").is_in(of_span["span"].unique().implode()))
    if mine.is_empty():
        return _NOTHING.clone()
    rows = _Rows(mine, of_span)
    floor_mj, active_mj = _floor_and_active(mine, floors)
    found = worked(rows.frame, rows.first, of_span, seen)
    energy_mj, known = _parts(rows, floor_mj, active_mj, found)
    method = np.where(known, found.method, _codes(of_span["method"])[rows.of])
    wide = _error_mj(method, active_mj[rows.place], error)
    whole_mj = (floor_mj + active_mj)[rows.place]
    sums = {
        "energy_mj": energy_mj,
        "active_mj": np.where(active_mj[rows.place] > 0, energy_mj, 0),
        "below_mj": energy_mj - np.maximum(energy_mj - wide, 0),
        "above_mj": np.minimum(energy_mj + wide, whole_mj) - energy_mj,
    }
    by_holder = {name: added(values, rows.of, of_span.height) for name, values in sums.items()}
    strange = (of_span["holder"] == UNATTRIBUTED_NO_JOB).to_numpy()
    covered = added(mine["covered_us"].to_numpy()[rows.place], rows.of, of_span.height)
    least = np.full(of_span.height, -1, dtype=np.int64)
    np.maximum.at(least, rows.of, method)
    # Somebody without a job who did nothing is nobody.
    worth = pl.Series(~strange | (by_holder["energy_mj"] > 0))
    return of_span.select(
        "span",
        "holder",
        "job_id",
        "holder_key",
        *(pl.Series(name, values, dtype=pl.Int64) for name, values in by_holder.items()),
        pl.Series("seen_us", np.where(strange, covered, 0), dtype=pl.Int64),
        pl.Series("method", least, dtype=pl.Int64).replace_strict(dict(enumerate(METHODS)), return_dtype=pl.String),
    ).filter(worth)


def at_rest(devices: pl.DataFrame, policy: IdlePolicy) -> pl.DataFrame:
    """Return device_id, idle_power_mw of each device: its own, or what the policy says of so many accelerators."""
    assumed = pl.col("accelerators").cast(pl.Int64) * policy.default_idle_power_mw
    return devices.select(
        "device_id", pl.coalesce(pl.col("idle_power_mw").cast(pl.Int64), assumed).alias("idle_power_mw")
    )


class _Rows:
    """Each piece by each of its span's holders, in their order: arrays instead of a frame, since there may be millions."""

    def __init__(self, pieces: pl.DataFrame, of_span: pl.DataFrame) -> None:
        spans, starts, counts = np.unique(of_span["span"].to_numpy(), return_index=True, return_counts=True)
        which = np.searchsorted(spans, pieces["span"].to_numpy())
        many = counts[which]
        self.frame = pieces
        self.first: Ints = np.cumsum(many) - many
        """Row of the first holder of each piece."""
        self.place: Ints = np.repeat(np.arange(pieces.height), many)
        """Piece of each row."""
        self.of: Ints = starts[which][self.place] + np.arange(len(self.place)) - self.first[self.place]
        """Row of ``of_span`` of each row."""
        self.weight: Ints = of_span["weight"].to_numpy()[self.of]
        self.job: Ints = of_span["job"].to_numpy()[self.of]


def _parts(rows: _Rows, floor_mj: Ints, active_mj: Ints, found: Worked) -> tuple[Ints, NDArray[np.bool_]]:
    """Return of each row its energy, and whether that went by activity."""
    whole = rows.frame.select(pl.col("covered_us") == pl.col("to_us") - pl.col("from_us")).to_series().to_numpy()
    level = levels(rows.frame, rows.place, rows.job, np.where(whole[rows.place], found.activity_ppm, 0), active_mj)
    work = found.activity_ppm * np.where(level > 0, level, EVEN)
    known = added(work, rows.place, len(floor_mj))[rows.place] > 0
    of_active = parts(active_mj, np.where(known, work, rows.weight), rows.place)
    return parts(floor_mj, rows.weight, rows.place) + of_active, known


def parts(total: Ints, weight: Ints, place: Ints) -> Ints:
    """Return each row's part of its place's ``total`` in proportion to its ``weight``, by largest remainder, ties by row order.

    ``place``: index into ``total``, ascending. All numbers are >= 0; parts sum to the total. Where all weights are 0 the first row has it.
    """
    if not len(place):
        return np.zeros(0, dtype=np.int64)
    first = np.concatenate([[True], place[1:] != place[:-1]])
    given = added(weight, place, len(total))
    weight = np.where((given[place] == 0) & first, 1, weight)
    given = np.maximum(given, 1)[place]
    fits = int(total.max(initial=0)) * max(int(weight.max(initial=0)), 1) < _MOST
    size: Numbers = total[place] if fits else total[place].astype(object)
    product = size * weight
    whole = product // given
    rest = (product - whole * given).astype(np.int64)
    part: Ints = whole.astype(np.int64)
    left = total - added(part, place, len(total))
    # One more millijoule to as many rows as are left over, those with the largest remainders.
    part[_rank(rest, place) < left[place]] += 1
    return part


def _rank(rest: Ints, place: Ints) -> Ints:
    """Return how many rows of the same place come before each: larger ones, and equal ones that stand before it.

    Few rows share a place, so each is compared with its neighbours; to sort a million rows would take ten times as long.
    """
    rank = np.zeros(len(rest), dtype=np.int64)
    for apart in range(1, int(np.bincount(place).max(initial=0))):
        same = place[apart:] == place[:-apart]
        later_is_larger = rest[apart:] > rest[:-apart]
        rank[:-apart] += same & later_is_larger
        rank[apart:] += same & ~later_is_larger
    return rank


def added(values: Ints, to: Ints, count: int) -> Ints:
    """Return the exact sum of the values of each of ``count`` places."""
    total = np.zeros(count, dtype=np.int64)
    np.add.at(total, to, values)
    return total


def _holders(holders: pl.DataFrame, pieces: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return the holders of spans that several have, whoever may have been active there without holding anything among them.

    ``job`` numbers jobs in the order of their names, -1 those who have none.
    """
    several = holders.filter(pl.col("weight") != pl.col("weights"))
    nobodys = seen.filter(pl.col("job_id").is_null()).select("device_id").unique()
    strange = (
        pieces.join(nobodys, on="device_id", how="semi")
        .join(several.select("span"), on="span", how="semi")
        .select("span")
        .unique()
        .select(
            "span",
            pl.lit(UNATTRIBUTED_NO_JOB).alias("holder"),
            pl.lit(None, dtype=pl.Int64).alias("job_id"),
            pl.lit(UNATTRIBUTED_NO_JOB).alias("holder_key"),
            pl.lit(0, dtype=pl.Int64).alias("weight"),
            pl.lit(METHODS[0]).alias("method"),
        )
    )
    rows = pl.concat([several.select(strange.columns).cast(strange.schema), strange])
    is_job = pl.col("job_id").is_not_null()
    number = (
        pl.when(is_job).then(pl.col("holder_key").rank("dense").cast(pl.Int64)).when(_STRANGE).then(-1).otherwise(-2)
    )
    return rows.with_columns(number.alias("job")).sort("span", "holder_key", "holder")


_STRANGE: Final = pl.col("holder") == UNATTRIBUTED_NO_JOB
_NOTHING: Final = pl.DataFrame(
    schema={
        "span": pl.UInt32, "holder": pl.String, "job_id": pl.Int64, "holder_key": pl.String, "energy_mj": pl.Int64,
        "active_mj": pl.Int64, "below_mj": pl.Int64, "above_mj": pl.Int64, "seen_us": pl.Int64, "method": pl.String,
    }
)  # fmt: skip


def _floor_and_active(pieces: pl.DataFrame, floors: pl.DataFrame) -> tuple[Ints, Ints]:
    known = pieces.join(floors, on="device_id", how="left", maintain_order="left")
    energy_mj = pl.col("energy_mj") - pl.col("gap_mj")
    at_rest = pl.col("idle_power_mw").cast(pl.Int64) * pl.col("covered_us") // _NJ_PER_MJ
    both = known.select(pl.min_horizontal(energy_mj, at_rest).alias("floor"), energy_mj.alias("energy"))
    floor_mj = both["floor"].to_numpy()
    return floor_mj, both["energy"].to_numpy() - floor_mj


def _codes(method: pl.Series) -> Ints:
    known = list(METHODS)
    return method.replace_strict(known, list(range(len(known))), return_dtype=pl.Int64).to_numpy()


def _error_mj(method: Ints, active_mj: Ints, error: SharingError) -> Ints:
    """Return the half-width of the bounds: the method's part of the board's active energy, rounded up."""
    known = asdict(error)
    ppm = np.array([known.get(name, error.share) for name in METHODS], dtype=np.int64)[method]
    size: Numbers = active_mj.astype(object) if active_mj.max(initial=0) >= _MOST // PPM else active_mj
    wide: Ints = (-(-size * ppm // PPM)).astype(np.int64)
    return wide
