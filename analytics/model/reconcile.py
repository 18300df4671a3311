"""Sets each meter against what is known below it: utility over PDU and CDU over nodes over devices, with the gap between.

What the books say of nodes is compared with what meters above them measured, over the hours that both sides know, never with hours
one of them lacks. The gap is shown with the error both sides state; it is never spread over anybody, and a small one proves no single
meter right. It reads no samples: a node is what the books have of it.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.units import PPM, US_PER_HOUR

UTILITY: Final = "utility"
DISTRIBUTION: Final = ("pdu", "cdu")
NODE_GAIN_PPM: Final = 20_000
"""Half of the 90 % interval of what the books say of a node of which no meter states its own."""
GAPS: Final = {
    "level": pl.String,
    "meter": pl.String,
    "below": pl.String,
    "metered_mj": pl.Int64,
    "below_mj": pl.Int64,
    "gap_mj": pl.Int64,
    "gap_ppm": pl.Int64,
    "error_ppm": pl.Int64,
    "hours": pl.Int64,
    "of_hours": pl.Int64,
}
"""One row per pair of levels (``meter`` null) and per meter that has others below it. ``gap_ppm`` is relative to ``metered_mj``;
``error_ppm`` what both sides may be off together, added up; ``hours`` of ``of_hours`` are compared."""
_HOURS: Final = {"meter_id": pl.Int32, "hour_us": pl.Int64, "energy_mj": pl.Int64}


def hours_of(periods: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    """Return meter_id, hour_us, energy_mj of each hour of [from, to) that a meter's periods cover without a hole.

    ``periods``: meter_id, from_us, to_us, energy_mj, not overlapping. Energy of a period is even over it, in integers that add up.
    """
    end, start = pl.min_horizontal("to_us", pl.col("hour_us") + US_PER_HOUR), pl.max_horizontal("from_us", "hour_us")
    width = pl.col("to_us") - pl.col("from_us")

    def until(instant: pl.Expr) -> pl.Expr:
        return (pl.col("energy_mj").cast(pl.Int128) * (instant - pl.col("from_us")) // width).cast(pl.Int64)

    return (
        periods.filter((pl.col("to_us") > from_us) & (pl.col("from_us") < to_us))
        .with_columns(
            pl.int_ranges(
                pl.max_horizontal(pl.col("from_us") // US_PER_HOUR, pl.lit(from_us // US_PER_HOUR)),
                pl.min_horizontal((pl.col("to_us") - 1) // US_PER_HOUR + 1, pl.lit((to_us - 1) // US_PER_HOUR + 1)),
                dtype=pl.Int64,
            ).alias("hour")
        )
        .explode("hour", empty_as_null=False)
        .with_columns((pl.col("hour") * US_PER_HOUR).alias("hour_us"))
        .group_by("meter_id", "hour_us")
        .agg((until(end) - until(start)).sum().alias("energy_mj"), (end - start).sum().alias("covered_us"))
        .filter(pl.col("covered_us") == US_PER_HOUR)
        .select(pl.col(name).cast(kind) for name, kind in _HOURS.items())
        .sort("meter_id", "hour_us")
    )


def gap(meters: pl.DataFrame, metered: pl.DataFrame, nodes: pl.DataFrame, of_hours: int) -> pl.DataFrame:
    """Return :data:`GAPS` of one site, the site's levels first, then its meters by level and name.

    ``meters``: meter_id, parent_meter_id, level, name, covers, node_id, gain_ppm. ``metered``: of :func:`hours_of`. ``nodes``:
    node_id, hour_us, energy_mj, devices_mj, shared_mj: what the books have of each node's hours, null energy where too little is known.
    The site's levels are compared over hours in which every node is known: a node that fell silent is no loss of the site.
    """
    above = meters.filter(pl.col("node_id").is_null())
    gains = meters.filter(pl.col("node_id").is_not_null()).group_by("node_id").agg(pl.col("gain_ppm").max())
    booked = nodes.join(gains, on="node_id", how="left").with_columns(pl.col("gain_ppm").fill_null(NODE_GAIN_PPM))
    silent = booked.filter(pl.col("energy_mj").is_null()).select("hour_us").unique()
    of_site, booked = booked.join(silent, on="hour_us", how="anti"), booked.drop_nulls("energy_mj")
    sides = metered.join(above.select("meter_id", "gain_ppm"), on="meter_id")
    found = [*_levels(above, sides, of_site, of_hours), *_trees(meters, sides, booked, of_hours)]
    return pl.DataFrame(found, schema=GAPS, orient="row")


def _levels(above: pl.DataFrame, sides: pl.DataFrame, booked: pl.DataFrame, of_hours: int) -> list[tuple[object, ...]]:
    """Compare each level that has meters with the next one that has, and the nodes with their devices."""
    level_of = dict(above.select("meter_id", "level").iter_rows())
    # A PDU behind a PDU counts in the tree; in the level it would count twice.
    top = above.filter(
        pl.Series(
            [level_of.get(parent) != level for parent, level in above.select("parent_meter_id", "level").iter_rows()]
        )
        if above.height
        else pl.lit(value=True)
    )
    is_it = pl.col("covers") != "cooling"
    utility = top.filter(pl.col("level") == UTILITY)
    split = top.filter(pl.col("level").is_in(DISTRIBUTION))
    found = []
    if utility.height and split.height:
        found.append(_compared(UTILITY, None, "pdu", _all(utility, sides), _all(split, sides), of_hours))
    for level, chosen in (("pdu", split.filter(is_it)), (UTILITY, utility)):
        if chosen.height and booked.height:
            found.append(_compared(level, None, "node", _all(chosen, sides), _by_hour(booked), of_hours))
            break
    # Shared IT is in no node.
    told = booked.with_columns(pl.col("energy_mj") - pl.col("shared_mj")).filter(
        pl.col("energy_mj") > pl.col("devices_mj")
    )
    if told.height:
        devices = told.with_columns(pl.col("devices_mj").alias("energy_mj"), pl.lit(0).alias("gain_ppm"))
        found.append(_compared("node", None, "device", _by_hour(told), _by_hour(devices), of_hours))
    return found


def _trees(meters: pl.DataFrame, sides: pl.DataFrame, booked: pl.DataFrame, of_hours: int) -> list[tuple[object, ...]]:
    """Compare each meter that others hang on with all of those."""
    found = []
    rank = pl.col("level").replace_strict([UTILITY, *DISTRIBUTION], [0, 1, 2], default=3, return_dtype=pl.Int32)
    for meter in meters.filter(pl.col("node_id").is_null()).sort(rank, "name").iter_rows(named=True):
        children = meters.filter(pl.col("parent_meter_id") == meter["meter_id"])
        if children.is_empty():
            continue
        own = sides.filter(pl.col("meter_id") == meter["meter_id"])
        lower = children.filter(pl.col("node_id").is_null())
        on_nodes = children.select("node_id").drop_nulls().unique()
        parts = [_all(lower, sides)] if lower.height else []
        if on_nodes.height:
            parts.append(_every(booked.join(on_nodes, on="node_id", how="semi"), "node_id", on_nodes.height))
        below = parts[0] if len(parts) == 1 else _both(*parts)
        levels = children["level"].unique().sort().to_list()
        found.append(_compared(meter["level"], meter["name"], "+".join(levels), _by_hour(own), below, of_hours))
    return found


def _all(meters: pl.DataFrame, sides: pl.DataFrame) -> pl.DataFrame:
    """Sum the meters over the hours that every one of them knows."""
    return _every(sides.join(meters.select("meter_id"), on="meter_id", how="semi"), "meter_id", meters.height)


def _every(rows: pl.DataFrame, key: str, count: int) -> pl.DataFrame:
    """Sum by hour over the hours in which all ``count`` of them have a row; a node without one used nothing that is known."""
    whole = rows.group_by("hour_us").agg(pl.col(key).n_unique().alias("n")).filter(pl.col("n") == count)
    return _by_hour(rows.join(whole.select("hour_us"), on="hour_us", how="semi"))


def _by_hour(rows: pl.DataFrame) -> pl.DataFrame:
    error = pl.col("energy_mj").cast(pl.Int128) * pl.col("gain_ppm")
    return rows.group_by("hour_us").agg(pl.col("energy_mj").sum(), error.sum().alias("error"))


def _both(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    joined = one.join(other, on="hour_us", suffix="_other")
    return joined.select(
        "hour_us",
        pl.col("energy_mj") + pl.col("energy_mj_other"),
        (pl.col("error") + pl.col("error_other")).alias("error"),
    )


def _compared(
    level: str, meter: str | None, below: str, upper: pl.DataFrame, lower: pl.DataFrame, of_hours: int
) -> tuple[object, ...]:
    both = upper.join(lower, on="hour_us", suffix="_below")
    metered, under = int(both["energy_mj"].sum()), int(both["energy_mj_below"].sum())
    error = int(both["error"].sum()) + int(both["error_below"].sum())
    relative = None if metered == 0 else round((metered - under) * PPM / metered)
    return (
        level,
        meter,
        below,
        metered,
        under,
        metered - under,
        relative,
        None if metered == 0 else round(error / metered),
        both.height,
        of_hours,
    )
