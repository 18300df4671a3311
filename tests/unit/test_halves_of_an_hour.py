"""How the devices of an hour are divided between two processes: two halves of about one size, which stay what they are while a site grows."""

from __future__ import annotations

import pytest

from analytics.closing.halves import first_half, shard_size

pytestmark = pytest.mark.unit


def filled(devices: int, of_a_node: int, size: int) -> list[int]:
    """Return the shards of whole nodes that so many devices make."""
    node_shards = size // of_a_node * of_a_node
    return [min(node_shards, devices - at) for at in range(0, devices, node_shards)]


@pytest.mark.parametrize("devices", [2_000, 5_000, 11_770, 20_001, 100_000])
@pytest.mark.parametrize("of_a_node", [1, 5, 9, 17, 73])
def test_two_processes_have_about_as_much_to_do(devices: int, of_a_node: int) -> None:
    size = shard_size(devices, 4_096)
    sizes = filled(devices, of_a_node, size)
    ours = first_half(sizes)
    assert size <= 4_096 + 128
    assert abs(sum(sizes[:ours]) - sum(sizes[ours:])) <= devices * 0.13


def test_a_site_that_grows_by_a_node_has_its_shards_where_they_were() -> None:
    assert shard_size(11_800, 4_096) == shard_size(11_900, 4_096) == 3_072


@pytest.mark.parametrize(("sizes", "ours"), [([9], 1), ([5, 5], 1), ([3, 3, 3], 1), ([3, 3, 3, 1], 2), ([9, 1, 1], 1)])
def test_halves_are_cut_where_they_differ_least(sizes: list[int], ours: int) -> None:
    assert first_half(sizes) == ours
