"""In which state a device was, each instant from capitalization to disposal: used, allocated-idle, reserved, available, down.

Of declared facts and of time: what jobs held is used or idle by their own readings. A device of which no asset is known is on
the books while it stands in a node. It guesses nothing from power, and takes a job's word over the register's: what is held is used.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.frames import HOLDER_IDLE, UNATTRIBUTED_PREFIX
from analytics.model.claims import FOREVER_US

AVAILABLE, RESERVED, DOWN = "available", "reserved_unused", "down"
NOT_INSTALLED: Final = "not_installed"
OUT_OF_SERVICE: Final = "out_of_service"
SILENT: Final = "no_telemetry"
"""Reason of an hour that is down because nothing was heard of the device, not because anybody said so."""
_DOWN_KINDS: Final = ("maintenance", "stranded")


def declared_cuts(placements: pl.DataFrame, assets: pl.DataFrame | None, capacity: pl.DataFrame | None) -> pl.DataFrame:
    """Return device_id, cut_us: where what is declared of devices changes, placements apart."""
    dated = [(assets, "capitalized_at", "disposed_at"), (capacity, "valid_from", "valid_to")]
    told = [_dated(rows, start, end) for rows, start, end in dated if rows is not None and rows.height]
    if not told:
        return pl.DataFrame(schema={"device_id": pl.Int32, "cut_us": pl.Int64})
    rows = pl.concat(told)
    edges = pl.concat(
        [rows.select("device_id", "node_id", pl.col(name).alias("cut_us")) for name in ("from_us", "until_us")]
    )
    there = placements.select("device_id", "node_id").unique()
    own = edges.filter(pl.col("device_id").is_not_null()).select("device_id", "cut_us")
    of_node = edges.filter(pl.col("device_id").is_null()).drop("device_id").join(there, on="node_id", how="inner")
    everywhere = edges.filter(pl.col("device_id").is_null() & pl.col("node_id").is_null())
    of_site = there.select("device_id").unique().join(everywhere.select("cut_us"), how="cross")
    return pl.concat([own, of_node.select("device_id", "cut_us"), of_site]).unique()


def stand(pieces: pl.DataFrame, assets: pl.DataFrame | None, capacity: pl.DataFrame | None) -> pl.DataFrame:
    """Return ``pieces`` with ``standing`` (what is declared of the time if nobody holds it; null = not on the books) and ``declared``.

    ``pieces``: device_id, from_us, to_us, node_id, in_service, cut at :func:`declared_cuts`. ``declared`` is the reason, null where nothing is declared. Down
    stands before reserved: a reservation of a broken board is not kept.
    """
    on_books = pl.col("node_id").is_not_null()
    pieces = pieces.with_row_index("piece")
    if assets is not None and assets.height:
        pieces, on_books = _owned(pieces, assets)
    kept = pl.lit(value=False)
    declared = pl.lit(None, dtype=pl.String)
    if capacity is not None and capacity.height:
        pieces = _kept(pieces, capacity)
        kept, declared = pl.col("reserved").fill_null(value=False), pl.col("kept_down")
    why = (
        pl.when(pl.col("node_id").is_null())
        .then(pl.lit(NOT_INSTALLED))
        .when(~pl.col("in_service"))
        .then(pl.lit(OUT_OF_SERVICE))
        .otherwise(declared)
    )
    standing = (
        pl.when(why.is_not_null()).then(pl.lit(DOWN)).when(kept).then(pl.lit(RESERVED)).otherwise(pl.lit(AVAILABLE))
    )
    return pieces.with_columns(
        pl.when(on_books).then(standing).alias("standing"),
        pl.when(on_books).then(pl.coalesce(why, pl.when(kept).then(pl.lit("reservation")))).alias("declared"),
    ).drop("piece", "owned", "owned_node", "has_asset", "node_has_asset", "reserved", "kept_down", strict=False)


def times(holder: pl.Expr, standing: pl.Expr, time_us: pl.Expr, dark_us: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Return reserved_us and down_us of a part of a piece: of time that nobody held alone.

    ``dark_us``: the part of ``time_us`` of which no meter tells. A device that is not heard of is not known to be available.
    """
    idle = holder == HOLDER_IDLE
    reserved, down = standing == RESERVED, (standing == DOWN) | standing.is_null()
    return (
        pl.when(idle & reserved).then(time_us).otherwise(0),
        pl.when(idle & down).then(time_us).when(idle & ~reserved).then(dark_us).otherwise(0),
    )


def word() -> pl.Expr:
    """Return the state that names most of a usage row's time; the more useful state where two are equal.

    Of rows with job_id, holder, held_us, idle_us (null = not known), reserved_us, down_us.
    """
    held, reserved, down = pl.col("held_us"), pl.col("reserved_us"), pl.col("down_us")
    available = held - reserved - down
    idle = (
        pl.when((available >= reserved) & (available >= down))
        .then(pl.lit(AVAILABLE))
        .when(reserved >= down)
        .then(pl.lit(RESERVED))
        .otherwise(pl.lit(DOWN))
    )
    asleep = pl.col("job_id").is_not_null() & (pl.col("idle_us") * 2 > held)
    return (
        pl.when(asleep.fill_null(value=False))
        .then(pl.lit("allocated_idle"))
        .when(pl.col("holder") == HOLDER_IDLE)
        .then(idle)
        .otherwise(pl.lit("used"))
    )


def reason() -> pl.Expr:
    """Return why a usage row's time is nobody's, or its state what it is; null = plain. Of rows with state, holder and declared."""
    nobodys = pl.col("holder").str.strip_prefix(UNATTRIBUTED_PREFIX)
    odd = (pl.col("holder") == HOLDER_IDLE) & (pl.col("state") != AVAILABLE)
    silent = pl.when(pl.col("state") == DOWN).then(pl.lit(SILENT))
    return (
        pl.when(nobodys != pl.col("holder"))
        .then(nobodys)
        .when(odd)
        .then(pl.coalesce("declared", silent))
        .otherwise(pl.lit(None, dtype=pl.String))
    )


def device_states(usage: pl.DataFrame) -> pl.DataFrame:
    """Return hour_at, device_id and the µs of each state: used_us, allocated_idle_us, reserved_us, available_us, down_us.

    ``usage``: ``UsageHours``. They sum to the device's held_us of the hour, exactly; shared devices' holders are added up.
    """
    idle, held = pl.col("holder") == HOLDER_IDLE, pl.col("held_us")
    known = pl.min_horizontal(pl.col("idle_us").fill_null(0), held)
    asleep = pl.when(pl.col("job_id").is_not_null()).then(known).otherwise(0)
    return (
        usage.group_by("hour_at", "device_id")
        .agg(
            pl.when(idle).then(0).otherwise(held - asleep).sum().alias("used_us"),
            pl.when(idle).then(0).otherwise(asleep).sum().alias("allocated_idle_us"),
            pl.col("reserved_us").sum(),
            pl.when(idle)
            .then(held - pl.col("reserved_us") - pl.col("down_us"))
            .otherwise(0)
            .sum()
            .alias("available_us"),
            pl.col("down_us").sum(),
        )
        .sort("hour_at", "device_id")
    )


def _dated(rows: pl.DataFrame, start: str, end: str) -> pl.DataFrame:
    return rows.select(
        "device_id",
        "node_id",
        pl.col(start).dt.epoch("us").alias("from_us"),
        pl.col(end).dt.epoch("us").fill_null(FOREVER_US).alias("until_us"),
    )


def _owned(pieces: pl.DataFrame, assets: pl.DataFrame) -> tuple[pl.DataFrame, pl.Expr]:
    """Return ``pieces`` and whether each is on the books: by the device's own asset, else its node's, else by standing in a node."""
    rows = _dated(assets, "capitalized_at", "disposed_at")
    for by, name, has in (("device_id", "owned", "has_asset"), ("node_id", "owned_node", "node_has_asset")):
        mine = rows.filter(pl.col(by).is_not_null()).select(by, "from_us", "until_us")
        inside = _within(pieces, mine, by).select("piece", pl.lit(value=True).alias(name))
        pieces = pieces.join(inside, on="piece", how="left", maintain_order="left").with_columns(
            pl.col(by).is_in(mine[by].unique().implode()).fill_null(value=False).alias(has)
        )
    return pieces, (
        pl.when("has_asset")
        .then(pl.col("owned").fill_null(value=False))
        .when("node_has_asset")
        .then(pl.col("owned_node").fill_null(value=False))
        .otherwise(pl.col("node_id").is_not_null())
    )


def _kept(pieces: pl.DataFrame, capacity: pl.DataFrame) -> pl.DataFrame:
    rows = _dated(capacity, "valid_from", "valid_to").with_columns(capacity["kind"])
    everywhere = pl.col("device_id").is_null() & pl.col("node_id").is_null()
    of_site = pieces.join(rows.filter(everywhere).select("from_us", "until_us", "kind"), how="cross", suffix="_held")
    found = pl.concat(
        [
            _within(pieces, rows.filter(pl.col(by).is_not_null()).select(by, "from_us", "until_us", "kind"), by).select(
                "piece", "kind"
            )
            for by in ("device_id", "node_id")
        ]
        + [
            of_site.filter(
                (pl.col("from_us_held") <= pl.col("from_us")) & (pl.col("until_us") >= pl.col("to_us"))
            ).select("piece", "kind")
        ]
    )
    by_piece = found.group_by("piece").agg(
        (pl.col("kind") == "reservation").any().alias("reserved"),
        pl.col("kind").filter(pl.col("kind").is_in(_DOWN_KINDS)).max().alias("kept_down"),
    )
    return pieces.join(by_piece, on="piece", how="left", maintain_order="left")


def _within(pieces: pl.DataFrame, rows: pl.DataFrame, by: str) -> pl.DataFrame:
    """Return pieces of the ``by`` of ``rows`` (``by``, from_us, until_us, ...) that lie inside them, each once per different row."""
    return (
        pieces.select("piece", by, pl.col("from_us").alias("at_us"), "to_us")
        .join(rows, on=by, how="inner")
        .filter((pl.col("from_us") <= pl.col("at_us")) & (pl.col("until_us") >= pl.col("to_us")))
        .drop("at_us", "to_us", "from_us", "until_us")
        .unique()
    )
