"""Who held what when: what was told of holdings becomes disjoint pieces of each device, and the holders of each piece.

Time only: no energy, no tenants. Decisions look at all that was told and at no window, so that a day and its hours agree; a
piece is cut wherever an hour, a holding or a placement begins or ends, so every quantity of a device and hour is the sum over
its pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from analytics.frames import HOLDER_IDLE
from analytics.model.claims import FOREVER_US, boots, ended, on_devices, on_nodes, stays
from analytics.model.contests import settle
from analytics.model.instants import Instants, distinct
from analytics.model.states import declared_cuts, stand
from analytics.policy import Policy
from analytics.units import PPM, US_PER_HOUR

CUTS: Final = {"device_id": pl.Int32, "cut_us": pl.Int64}
INSTANCES: Final = {
    "instance_id": pl.Int32,
    "job_id": pl.Int64,
    "slice_ppm": pl.Int64,
    "start_us": pl.Int64,
    "end_us": pl.Int64,
}
_POOL: Final = "pool"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Who had which board, decided once for all hours."""

    held: pl.DataFrame
    """``contests.HELD``."""
    contests: pl.DataFrame
    """``contests.CONTESTS``: where two claim one device."""
    too_many: pl.DataFrame
    """``claims.COUNTS``: where counts pass what a node has."""
    unended: pl.DataFrame
    """device_id, node_id, job_id, start_us, end_us, ended_by: holdings whose end nobody told, with the one taken."""
    instances: pl.DataFrame
    """:data:`INSTANCES`: who held MIG instances; ``slice_ppm`` is the job's part of the board by this one."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """Pieces of devices and who held them."""

    pieces: pl.DataFrame
    """piece, span, device_id, hour_us, from_us, to_us, segment, node_id, in_service, standing, declared; sorted by device and time.

    A span is what follows each other in one hour under one holding, in one place and state: pieces of one span have the same
    holders. ``segment`` is null and the holder ``idle`` where nobody had the device; ``node_id`` is null where it stood in no node;
    ``standing`` and ``declared`` as of ``states.stand``.
    """
    holders: pl.DataFrame
    """span, holder, job_id, holder_key, weight, weights, method: the holder's part of the span is weight / weights.

    ``holder_key`` is the holder by names instead of ids: what leftovers are ordered by.
    """


def resolve(
    holds: pl.DataFrame,
    placements: pl.DataFrame,
    devices: pl.DataFrame,
    epochs: pl.DataFrame,
    policy: Policy,
    earlier: pl.DataFrame | None = None,
) -> Resolved:
    """Return who had what, of all that was told: ``Holds``, ``Placements``, ``Devices`` with instances, ``Epochs`` of the nodes.

    ``earlier`` (``Placements``): where devices stood before those, since the first holding of each whose end nobody told.
    Pools are not looked at: nobody knows which devices they mean. Rules and their order: docs/methodology.md §3.
    """
    pools = devices.filter(pl.col("kind") == _POOL).select("device_id")
    placed = holds.join(pools, on="device_id", how="anti")
    known = ended(placed, stays(placements if earlier is None else pl.concat([placements, earlier])), boots(epochs))
    claims = on_devices(known, devices)
    counted, too_many = on_nodes(known, claims, devices, placements, policy.holding.handover_us)
    every = pl.concat([claims, counted])
    held, contests = settle(every, policy.holding.handover_us)
    instances = every.filter(pl.col("leaf_id") != pl.col("board_id")).select(
        pl.col("leaf_id").alias("instance_id"),
        "job_id",
        (pl.col("num").cast(pl.Int128) * PPM // pl.col("den")).cast(pl.Int64).alias("slice_ppm"),
        "start_us",
        "end_us",
    )
    unended = known.filter(pl.col("ended_by").is_not_null()).select(
        "device_id", "node_id", "job_id", "start_us", "end_us", "ended_by"
    )
    return Resolved(held, contests, too_many, unended, instances)


def hold(
    devices: pl.DataFrame,
    placements: pl.DataFrame,
    held: pl.DataFrame,
    from_us: int,
    to_us: int,
    cuts: Sequence[pl.DataFrame] = (),
    assets: pl.DataFrame | None = None,
    capacity: pl.DataFrame | None = None,
) -> Holdings:
    """Return the pieces of every device over [from, to) and their holders.

    ``held``: of :class:`Resolved`. ``cuts``: :data:`CUTS`, where pieces are cut beside: whatever changes there, holders do not.
    ``assets`` (``Assets``) and ``capacity`` (``CapacityHolds``): what is declared of devices; without them they stand by placement.
    A node that is metered as a whole (kind ``node``) has no pieces while anything else stands in it: ``placements`` are of all of these.
    """
    parts = held.filter((pl.col("start_us") < to_us) & (pl.col("end_us") > from_us))
    inside = parts.unique("segment").select("segment", "device_id", "start_us", "end_us")
    where = placements.select(
        "device_id",
        pl.col("valid_from").dt.epoch("us").alias("from_us"),
        pl.col("valid_to").dt.epoch("us").fill_null(FOREVER_US).alias("until_us"),
        "node_id",
        "in_service",
    ).sort("device_id", "from_us")
    known_apart = _known_apart(devices, where)
    edges = [
        *(known_apart.select("device_id", pl.col(name).alias("cut_us")) for name in ("from_us", "until_us")),
        *(inside.select("device_id", pl.col(name).alias("cut_us")) for name in ("start_us", "end_us")),
        *(where.select("device_id", pl.col(name).alias("cut_us")) for name in ("from_us", "until_us")),
        *(cut.select("device_id", "cut_us") for cut in cuts),
        declared_cuts(placements, assets, capacity),
    ]
    pieces = _cut(devices, pl.concat(edges), from_us, to_us)
    if known_apart.height:
        inside_one = pieces.join(known_apart, on="device_id", how="inner", suffix="_apart").filter(
            (pl.col("from_us") >= pl.col("from_us_apart")) & (pl.col("to_us") <= pl.col("until_us"))
        )
        pieces = pieces.join(inside_one, on=["device_id", "from_us"], how="anti", maintain_order="left")
    pieces = _at(pieces, where, {"node_id": pl.Int32, "in_service": pl.Boolean})
    pieces = _at(
        pieces,
        inside.rename({"start_us": "from_us", "end_us": "until_us"}).sort("device_id", "from_us"),
        {"segment": pl.Int64},
    )
    pieces = _spans(stand(pieces, assets, capacity))
    spans = pieces.select("span", "segment").unique()
    parts = parts.drop("device_id", "start_us", "end_us")
    free = spans.filter(pl.col("segment").is_null()).select(
        "span",
        pl.lit(HOLDER_IDLE).alias("holder"),
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        pl.lit(HOLDER_IDLE).alias("holder_key"),
        pl.lit(1, dtype=pl.Int64).alias("weight"),
        pl.lit(1, dtype=pl.Int64).alias("weights"),
        pl.lit("whole").alias("method"),
    )
    holders = pl.concat([spans.join(parts, on="segment", how="inner").drop("segment"), free])
    metered_whole = pieces.join(devices.filter(pl.col("kind") == "node"), on="device_id", how="semi")["span"].unique()
    of_node = pl.col("span").is_in(metered_whole.implode()) & (pl.col("method") == "whole")
    told = pl.when(of_node).then(pl.lit("node_meter")).otherwise("method").alias("method")
    return Holdings(pieces, holders.with_columns(told).sort("span", "holder_key", "holder"))


def _known_apart(devices: pl.DataFrame, where: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, from_us, until_us: when something else stands in the nodes that are metered as a whole."""
    nodes = devices.filter(pl.col("kind") == "node").select("device_id")
    stand = where.join(nodes, on="device_id", how="semi")
    others = where.join(stand.select("node_id").unique(), on="node_id", how="semi").join(
        nodes, on="device_id", how="anti"
    )
    start, end = pl.max_horizontal("from_us", "from_us_other"), pl.min_horizontal("until_us", "until_us_other")
    return (
        stand.join(others, on="node_id", how="inner", suffix="_other")
        .select("device_id", start.alias("from_us"), end.alias("until_us"))
        .filter(pl.col("from_us") < pl.col("until_us"))
    )


def whole_holder(gaps: pl.DataFrame, held: pl.DataFrame) -> pl.Series:
    """Return for each gap (device_id, from_us, to_us) whether jobs held the device unchanged throughout it.

    DESIGN §7.1: only then does the gap's energy go to them; an idle device whose agent was silent proves nothing.
    ``held``: device_id, start_us, end_us, as of :class:`Resolved`: disjoint on a device, each as long as nothing changes.
    """
    stretches = held.select("device_id", "start_us", "end_us").unique()
    around = (
        gaps.select(pl.col("device_id").cast(pl.Int32), "from_us", "to_us")
        .with_row_index("gap")
        .sort("from_us")
        .join_asof(
            stretches.sort("start_us"),
            left_on="from_us",
            right_on="start_us",
            by="device_id",
            check_sortedness=False,
        )
        .sort("gap")
    )
    return (around["end_us"] >= around["to_us"]).fill_null(value=False).alias("held")


def _cut(devices: pl.DataFrame, inner: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    """Return device_id, hour_us, from_us, to_us: every device over the window, cut at hours and at ``inner`` (device_id, cut_us)."""
    first = from_us // US_PER_HOUR * US_PER_HOUR
    ids = devices.select(pl.col("device_id").cast(pl.Int32))
    mine = inner.filter((pl.col("cut_us") > from_us) & (pl.col("cut_us") < to_us)).join(ids, on="device_id", how="semi")
    instants = Instants(ids["device_id"].unique().sort(), first, to_us)
    of_all = np.append(np.arange(first, to_us, US_PER_HOUR), to_us) - first
    every = (np.arange(len(instants.devices)) * instants.width)[:, None] + of_all
    numbers = distinct(np.append(every, *instants.numbered(mine["device_id"], mine["cut_us"])))
    cuts = instants.named(numbers, "cut_us")
    return (
        cuts.with_columns(
            pl.col("cut_us").shift(-1).alias("to_us"),
            (pl.col("device_id").shift(-1) == pl.col("device_id")).alias("same"),
        )
        .filter(pl.col("same"))
        .select(
            "device_id",
            (pl.col("cut_us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us"),
            pl.col("cut_us").alias("from_us"),
            "to_us",
        )
    )


def _at(pieces: pl.DataFrame, stretches: pl.DataFrame, names: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """Return ``pieces`` with ``names`` of the stretch (device_id, from_us, until_us) each lies in, null where it lies in none.

    Stretches of one device are disjoint, and pieces are cut at their ends.
    """
    found = pieces.select("device_id", "from_us", "to_us").join_asof(
        stretches.select("device_id", "from_us", "until_us", *names),
        on="from_us",
        by="device_id",
        check_sortedness=False,  # both are sorted by device and time
    )
    inside = pl.col("to_us") <= pl.col("until_us")
    return pieces.hstack(
        found.select(pl.when(inside).then(name).cast(kind).alias(name) for name, kind in names.items())
    )


def _spans(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return ``pieces`` numbered, and their runs within an hour, a segment and a place."""
    alike = pl.all_horizontal(
        pl.col(name).eq_missing(pl.col(name).shift(1))
        for name in ("device_id", "hour_us", "segment", "node_id", "standing", "declared")
    )
    return pieces.with_row_index("piece").select(
        "piece", (~alike).cum_sum().cast(pl.UInt32).alias("span"), pl.exclude("piece")
    )
