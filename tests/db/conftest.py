"""The world the tests of actions act in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.store.engine import Database
from tests.db.actions_world import World, opened


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with opened(db, tmp_path) as made:
        yield made


@pytest.fixture
def over(world: World) -> World:
    """The world with a tenant at 120 % of an armed budget, its one job running, and the action planned."""
    world.policy()
    world.spend("120", world.job("42"))
    assert len(world.evaluate()) == 1
    return world
