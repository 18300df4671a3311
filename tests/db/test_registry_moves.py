"""A board that changes nodes while both nodes go on reporting: refused while it may be a forgery, then believed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from ingest.store import identities, placements
from ingest.store.engine import Database
from ingest.store.identities import NodeKey
from ingest.store.registry import Identity, Registry, Sighting
from tests.db.ingest_harness import SECOND_US, batch_meta, device

pytestmark = pytest.mark.db

NOON_US = 1_795_176_000 * SECOND_US
MINUTE_US = 60 * SECOND_US


@pytest.fixture
def engine(db: Database) -> Iterator[sa.Engine]:
    engine = db.create_engine("writer", pool_size=2)
    yield engine
    engine.dispose()


@pytest.fixture
def site_id(db: Database) -> int:
    owner = db.create_engine("owner", pool_size=1)
    with owner.begin() as connection:
        made = identities.site_ids(connection, ["lab"])["lab"]
    owner.dispose()
    return made


def seen(registry: Registry, site_id: int, node: str, minute: int, *boards: str) -> tuple[int | None, ...]:
    """Report boards from a node at a minute past noon; return the ids they got, None where refused."""
    meta = batch_meta(node=node, spool=f"spool-{node}", devices=tuple(device(board) for board in boards))
    at_us = NOON_US + minute * MINUTE_US
    (found,) = registry.resolve([Sighting(site_id, meta, at_us, at_us + 10 * SECOND_US)], at_us)
    assert isinstance(found, Identity)
    return found.device_ids


def test_a_board_moved_between_two_live_nodes_is_taken_after_ten_minutes(engine: sa.Engine, site_id: int) -> None:
    registry = Registry(engine)
    for minute in range(30):
        seen(registry, site_id, "n1", minute, "moved", "stays")
    moved, _ = seen(registry, site_id, "n1", 30, "moved", "stays")
    assert moved is not None

    # Pulled at 12:31; the node it left goes on reporting its other board.
    for minute in range(31, 60):
        seen(registry, site_id, "n1", minute, "stays")
        (taken,) = seen(registry, site_id, "n2", minute, "moved")
        assert taken == (None if minute <= 40 else moved), minute


def test_a_board_that_both_nodes_report_stays_where_it_was(engine: sa.Engine, site_id: int) -> None:
    registry = Registry(engine)
    for minute in range(60):
        (own,) = seen(registry, site_id, "n1", minute, "twin")
        assert own is not None
        if minute:
            assert seen(registry, site_id, "n2", minute, "twin") == (None,)


def test_a_placement_is_never_replaced_before_it_was_known(engine: sa.Engine, site_id: int) -> None:
    noon = datetime.fromtimestamp(NOON_US / 1e6, UTC)
    with engine.begin() as conn:
        nodes = identities.node_ids(conn, [NodeKey(site_id, "n1"), NodeKey(site_id, "n2")])
        (board,) = identities.device_ids(conn, [device("moved")]).values()
    first, second = nodes.values()
    with engine.connect() as early, engine.connect() as late:
        early.execute(sa.text("SELECT 1"))  # its transaction begins here
        time.sleep(0.02)
        placements.place(late, first, {board: noon}, {})
        late.commit()
        placements.place(early, second, {board: noon + timedelta(hours=2)}, {board: noon})
        early.commit()
    with engine.connect() as conn:
        assert conn.execute(
            sa.text("SELECT count(*), count(*) FILTER (WHERE superseded_at <= recorded_at) FROM placements")
        ).one() == (3, 0)
