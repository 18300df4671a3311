"""Cuts what a close reads into shards of whole nodes, so that memory follows a shard and not the site. Books do not depend on the cut.

Devices that were on one node in the window, or are parts of one board, stay together: who holds what of a node, and what a node takes beside
its boards, is decided among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
import polars as pl

from analytics.inputs import UsageInputs
from analytics.model.holding import Resolved

ALL_DEVICES: Final = 2**31


def shards(inputs: UsageInputs, devices_at_once: int) -> Iterator[UsageInputs]:
    """Yield the inputs of some devices after the other, each device once, at least one shard: in order of their least device.

    A shard has at most ``devices_at_once`` devices unless one node has more. Rows of no device and no node are in every shard.
    """
    groups = _groups(inputs)
    if len(groups) <= devices_at_once:
        yield inputs
        return
    members: list[set[int]] = [set()]
    for group in _by_group(groups):
        if members[-1] and len(members[-1]) + len(group) > devices_at_once:
            members.append(set())
        members[-1].update(group)
    for devices in members:
        yield of_devices(inputs, devices)


def of_devices(inputs: UsageInputs, devices: set[int]) -> UsageInputs:
    """Return what of the inputs is about these devices, and about the nodes they were on."""
    listed = pl.Series("device_id", sorted(devices), dtype=pl.Int32)
    nodes = pl.Series("node_id", sorted(_nodes_of(inputs, listed)), dtype=pl.Int32)
    kept: dict[str, Any] = {}
    for each in fields(inputs):
        frame = getattr(inputs, each.name)
        if isinstance(frame, pl.DataFrame) and each.name != "epochs":
            condition = _about(frame, listed, nodes)
            if condition is not None:
                kept[each.name] = frame.filter(condition)
    return replace(inputs, **kept)


def resolved_of(resolved: Resolved, part: UsageInputs) -> Resolved:
    """Return what of all that was resolved is about the devices of a shard, and the nodes they were on."""
    listed = part.devices["device_id"].unique().sort()
    nodes = pl.Series("node_id", sorted(_nodes_of(part, listed)), dtype=pl.Int32)
    kept: dict[str, Any] = {"instances": resolved.instances.filter(pl.col("instance_id").is_in(listed.implode()))}
    for name in ("held", "contests", "too_many", "unended"):
        frame = getattr(resolved, name)
        condition = _about(frame, listed, nodes)
        kept[name] = frame if condition is None else frame.filter(condition)
    return Resolved(**kept)


def _about(frame: pl.DataFrame, devices: pl.Series, nodes: pl.Series) -> pl.Expr | None:
    names = set(frame.columns)
    ours = pl.col("device_id").is_in(devices.implode())
    on_node = pl.col("node_id").is_in(nodes.implode())
    if "device_id" in names:
        if "node_id" in names and frame["device_id"].null_count():
            return ours | (pl.col("device_id").is_null() & (on_node | pl.col("node_id").is_null()))
        return ours
    return on_node | pl.col("node_id").is_null() if "node_id" in names else None


def _places(inputs: UsageInputs) -> pl.DataFrame:
    """Return device_id, node_id of the window, from every frame that says where devices are; a node may be null."""
    found = [inputs.devices]
    placements = getattr(inputs, "placements", None)
    if placements is not None:
        found.append(placements)
    pairs = [
        frame.select(
            "device_id", pl.col("node_id") if "node_id" in frame.columns else pl.lit(None, pl.Int32).alias("node_id")
        )
        for frame in found
        if "node_id" in frame.columns or frame is inputs.devices
    ]
    return pl.concat(pairs).unique().sort("device_id", "node_id")


def _nodes_of(inputs: UsageInputs, devices: pl.Series) -> list[int]:
    here = _places(inputs).filter(pl.col("device_id").is_in(devices.implode()))
    return here["node_id"].drop_nulls().unique().to_list()


def _groups(inputs: UsageInputs) -> dict[int, int]:
    """Return for each device the least device of those it must stay with."""
    places = _places(inputs).cast({"node_id": pl.Int64})
    together = [places.drop_nulls()]
    if "parent_device_id" in inputs.devices.columns:
        parts = inputs.devices.drop_nulls("parent_device_id").select("device_id", "parent_device_id")
        # A board is to its instances what a node is to its devices.
        board = pl.col("parent_device_id").cast(pl.Int64) + ALL_DEVICES
        both = [
            parts.select("device_id", board.alias("node_id")),
            parts.select(pl.col("parent_device_id").alias("device_id"), board.alias("node_id")),
        ]
        known = places.select("device_id").unique()
        together += [each.join(known, on="device_id", how="semi") for each in both]
    pairs = pl.concat(together)
    ids = np.unique(places["device_id"].to_numpy())
    device = np.searchsorted(ids, pairs["device_id"].to_numpy())
    nodes, node = np.unique(pairs["node_id"].to_numpy(), return_inverse=True)
    least = ids.astype(np.int64)
    while True:  # told from node to node, until nobody hears of a lesser one: a few times
        of_node = np.full(len(nodes), ALL_DEVICES, dtype=np.int64)
        np.minimum.at(of_node, node, least[device])
        before = least.copy()
        np.minimum.at(least, device, of_node[node])
        if (least == before).all():
            return dict(zip(ids.tolist(), least.tolist(), strict=True))


def _by_group(groups: dict[int, int]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for device, first in groups.items():
        members.setdefault(first, []).append(device)
    return [members[first] for first in sorted(members)]
