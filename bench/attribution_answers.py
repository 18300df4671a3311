"""Compares what ours has booked with what DuckDB made of the same files and references; whatever differs must be allowed to.

Of each board and hour energy and times are equal, whoever holds it. Rows of holders are equal too, but where ours divides better
than by time or grant: at cuts without a reading, and on shared boards. Owned accelerators' lines are equal to the last digit; where
ours cut the time of a shared board once more, at the edge of what was seen of it, a third of it may be a microsecond longer, and
then lines differ by just these and by what rounding makes of them.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from bench.attribution_fleet import BOARDS_PER_NODE, Fleet
from bench.attribution_peer import PeerRun
from bench.stand import Stand
from ingest.store.arrow import command_session

_USAGE: Final = """
SELECT (extract(epoch FROM hour_at) * 1000000)::bigint AS hour_us, device_id, holder, energy_mj, held_us, covered_us, active_us, idle_us,
       throttled_us, source
FROM current_usage_hours JOIN devices ON devices.id = device_id WHERE devices.kind = 'gpu'
"""
_LINES: Final = """
SELECT (extract(epoch FROM hour_at) * 1000000)::bigint AS hour_us, coalesce('job:' || job_id, split_part(line_key, '|', 2)) AS holder, quantity,
       (billed_cost * 1000000000)::bigint AS nano, tenant_id
FROM current_ledger_lines WHERE charge_category = 'gpu_owned'
"""
_KEY: Final = ["hour_us", "device_id", "holder"]
_VALUES: Final = ("energy_mj", "held_us", "covered_us", "active_us", "idle_us", "throttled_us")
_SUMS: Final = ("energy_mj", "held_us", "covered_us")


def compare(on: Stand, fleet: Fleet, peer: PeerRun) -> dict[str, int]:
    """Return how many rows were compared and how many are divided otherwise; raises RuntimeError for any other difference."""
    with command_session(on.database, "worker") as session:
        usage, lines = session.fetch(_USAGE), session.fetch(_LINES)
    by_hour = ["hour_us", "device_id"]
    ours, theirs = (rows.group_by(by_hour).agg(pl.col(_SUMS).sum()).sort(by_hour) for rows in (usage, peer.parts))
    _same("board hours", ours, theirs.cast(ours.schema), by_hour)
    shared = pl.Series(fleet.shared_nodes)
    is_shared = ((pl.col("device_id") - 1) // BOARDS_PER_NODE + 1).is_in(shared.implode())
    both = usage.join(peer.parts.select(*_KEY, *_VALUES), on=_KEY, how="full", coalesce=True, suffix="_theirs")
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_theirs")) for name in _VALUES)
    divided = both.filter(differs)
    # A board of which some row is estimated had an interval to divide: what one holder gets more another gets less.
    estimated = usage.filter(pl.col("source") == "estimated").select(by_hour).unique()
    wrong = divided.filter(~is_shared).join(estimated, on=by_hour, how="anti")
    if wrong.height:
        raise RuntimeError(f"{wrong.height} usage hours differ without a reason, first: {wrong.row(0, named=True)}")
    owned = peer.lines.filter(pl.col("category") == "gpu_owned").select(
        "hour_us", "holder", "tenant_id", pl.col("quantity", "nano").cast(pl.Int64)
    )
    keys = ["hour_us", "holder", "tenant_id"]
    told = lines.filter(pl.col("quantity") > 0).select(owned.columns).sort(keys)
    more_us = pl.col("held_us").fill_null(0) - pl.col("held_us_theirs").fill_null(0)
    longer = both.group_by("hour_us", "holder").agg(more_us.sum().alias("more_us")).filter(pl.col("more_us") != 0)
    expected = (
        owned.filter(pl.col("quantity") > 0)
        .cast(told.schema)
        .join(longer, on=["hour_us", "holder"], how="left")
        .with_columns(pl.col("quantity") + pl.col("more_us").fill_null(0), pl.col("more_us").fill_null(0).abs())
        .sort(keys)
    )
    _same("quantities of lines", told.drop("nano"), expected.drop("nano", "more_us"), keys)
    # A microsecond is less than a billionth, and rounding may move one within its hour.
    cut_again = pl.col("hour_us").is_in(longer["hour_us"].unique().implode())
    off = (told["nano"] - expected["nano"]).abs()
    if not expected.select((pl.lit(off) <= pl.when(cut_again).then(pl.col("more_us") + 1).otherwise(0)).all()).item():
        raise RuntimeError("amounts of lines differ by more than what was cut once more accounts for")
    return {
        "usage_rows": usage.height,
        "divided_otherwise": divided.height,
        "board_hours": ours.height,
        "lines": told.height,
        "lines_off_by_microseconds": longer.height,
    }


def _same(what: str, ours: pl.DataFrame, theirs: pl.DataFrame, key: list[str]) -> None:
    if ours.equals(theirs):
        return
    both = ours.join(theirs, on=key, how="full", coalesce=True, nulls_equal=True, suffix="_theirs")
    values = [name for name in ours.columns if name not in key]
    wrong = both.filter(pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_theirs")) for name in values))
    raise RuntimeError(f"{wrong.height} {what} differ, first: {wrong.row(0, named=True) if wrong.height else ''}")
