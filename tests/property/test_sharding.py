"""Books do not depend on how a fleet is cut into shards of whole nodes, in which order these are mapped, nor on how many threads map them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Final

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.inputs import HourInputs
from analytics.pipeline import HourResult, content_hash, map_devices, reduce_shards, resolve_holds
from analytics.policy import Policy
from analytics.shards import of_devices, resolved_of, shards
from tests.sim.spec import JobMix, Sampling, Sharing, Weather, WorldSpec
from tests.sim.world import World

pytestmark = pytest.mark.property
FLEET: Final = settings(max_examples=6, deadline=None)
SEEDS: Final = st.integers(0, 2**32)


def fleet(seed: int) -> HourInputs:
    """Five nodes with twelve boards, two of them shared, for one hour in which everything goes wrong that does."""
    spec = WorldSpec(
        seed=seed,
        hours=1,
        boards=12,
        nodes=5,
        jobs=JobMix(boards_each=(1, 2), duration_s=(60, 1_500)),
        sharing=Sharing("time_slice", boards=2),
        weather=Weather(reset_rate=1, silence_s=600, reload_in_outage=True, lost_end_rate=0.1),
    )
    return World(spec).sample(Sampling(cadence_s=30)).site().inputs()


def closed(inputs: HourInputs, cut: list[set[int]] | None = None, devices_at_once: int = 2**31) -> list[bytes]:
    usage, policy = inputs.usage, Policy()
    parts = list(shards(usage, devices_at_once)) if cut is None else [of_devices(usage, devices) for devices in cut]
    mapped = [map_devices(part, policy) for part in parts]
    return hashes(reduce_shards(usage.window, mapped, inputs.references, inputs.api_calls))


def hashes(result: HourResult) -> list[bytes]:
    return [
        content_hash(frame)
        for frame in (result.usage, result.lines, result.findings, result.quality, result.job_tenants)
    ]


@FLEET
@given(SEEDS)
def test_any_partition_of_nodes_in_any_order_gives_the_same_bytes(seed: int) -> None:
    inputs, drawn = fleet(seed), random.Random(seed)
    whole = closed(inputs)
    nodes: dict[int | None, set[int]] = {}
    for device, node in inputs.usage.devices.select("device_id", "node_id").iter_rows():
        nodes.setdefault(node, set()).add(device)
    groups = list(nodes.values())
    for _ in range(2):
        cut: list[set[int]] = [set() for _ in range(drawn.randint(1, len(groups)))]
        for group in groups:
            drawn.choice(cut).update(group)
        drawn.shuffle(cut)
        assert closed(inputs, [part for part in cut if part]) == whole


@FLEET
@given(SEEDS, st.integers(1, 12))
def test_who_held_what_may_be_resolved_once_for_all_shards(seed: int, devices_at_once: int) -> None:
    inputs, policy = fleet(seed), Policy()
    resolved = resolve_holds(inputs.usage, policy)
    mapped = [
        map_devices(part, policy, resolved=resolved_of(resolved, part))
        for part in shards(inputs.usage, devices_at_once)
    ]
    assert hashes(reduce_shards(inputs.usage.window, mapped, inputs.references, inputs.api_calls)) == closed(inputs)


@FLEET
@given(SEEDS, st.integers(1, 12))
def test_however_many_devices_are_in_memory_together_the_books_are_the_same(seed: int, devices_at_once: int) -> None:
    inputs = fleet(seed)
    parts = list(shards(inputs.usage, devices_at_once))
    seen = pl.concat([part.devices.select("device_id") for part in parts])["device_id"]
    assert sorted(seen) == sorted(inputs.usage.devices["device_id"])
    assert sum(part.readings.height for part in parts) == inputs.usage.readings.height
    assert closed(inputs, devices_at_once=devices_at_once) == closed(inputs)


def test_one_thread_gives_the_bytes_of_several() -> None:
    program = (
        "from tests.property.test_sharding import closed, fleet; print(*(each.hex() for each in closed(fleet(7))))"
    )
    env = os.environ | {"POLARS_MAX_THREADS": "1"}
    alone = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert alone.stdout.split() == [each.hex() for each in closed(fleet(7))]
