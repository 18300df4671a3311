"""Cuts what a close reads into shards of whole nodes, so that memory follows a shard and not the site. Books do not depend on the cut.

Devices that were on one node in the window, or are parts of one board, stay together: who holds what of a node, and what a node takes beside
its boards, is decided among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import polars as pl

from analytics.pipeline import UsageInputs


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


def _about(frame: pl.DataFrame, devices: pl.Series, nodes: pl.Series) -> pl.Expr | None:
    names = set(frame.columns)
    ours = pl.col("device_id").is_in(devices.implode())
    on_node = pl.col("node_id").is_in(nodes.implode())
    if "device_id" in names:
        if "node_id" in names and frame["device_id"].null_count():
            return ours | (pl.col("device_id").is_null() & (on_node | pl.col("node_id").is_null()))
        return ours
    return on_node | pl.col("node_id").is_null() if "node_id" in names else None


def _places(inputs: UsageInputs) -> list[tuple[int, int | None]]:
    """Return (device, node) of the window, from every frame that says where devices are."""
    found = [inputs.devices]
    placements = getattr(inputs, "placements", None)
    if placements is not None:
        found.append(placements)
    rows: list[tuple[int, int | None]] = []
    for frame in found:
        if {"device_id", "node_id"} <= set(frame.columns):
            rows += list(frame.select("device_id", "node_id").unique().iter_rows())
        elif frame is inputs.devices:
            rows += [(device, None) for device in frame["device_id"]]
    return rows


def _nodes_of(inputs: UsageInputs, devices: pl.Series) -> set[int]:
    wanted = set(devices.to_list())
    return {node for device, node in _places(inputs) if node is not None and device in wanted}


def _groups(inputs: UsageInputs) -> dict[int, int]:
    """Return for each device the least device of those it must stay with."""
    parent: dict[object, object] = {}

    def root(of: object) -> object:
        while parent.setdefault(of, of) != of:
            parent[of] = parent[parent[of]]
            of = parent[of]
        return of

    places = _places(inputs)
    for device, node in places:
        root(device)
        if node is not None:
            parent[root(device)] = root(("node", node))
    if "parent_device_id" in inputs.devices.columns:
        for device, board in inputs.devices.select("device_id", "parent_device_id").drop_nulls().iter_rows():
            parent[root(device)] = root(board)
    least: dict[object, int] = {}
    known = sorted({device for device, _ in places})
    for device in known:
        least.setdefault(root(device), device)
    return {device: least[root(device)] for device in known}


def _by_group(groups: dict[int, int]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for device, first in groups.items():
        members.setdefault(first, []).append(device)
    return [members[first] for first in sorted(members)]
