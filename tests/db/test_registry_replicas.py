"""Where a device is, asked of two replicas and of one that was started anew: they decide alike, whoever is asked first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from collector.wire import Feed
from ingest.store import identities
from ingest.store.engine import Database
from ingest.store.registry import Identity, Registry, Sighting
from tests.db.ingest_harness import SECOND_US, batch_meta, device

pytestmark = pytest.mark.db

NOON_US = 1_795_176_000 * SECOND_US
MINUTE_US = 60 * SECOND_US
OPEN = (
    "SELECT nodes.name, placements.feed FROM placements JOIN nodes ON nodes.id = node_id "
    "WHERE valid_to IS NULL AND superseded_at IS NULL"
)


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


def seen(registry: Registry, site_id: int, node: str, minute: float, feed: Feed = Feed.NATIVE) -> Identity:
    """Report one board from a node at a minute past noon."""
    meta = batch_meta(node=node, spool=f"spool-{node}-{int(feed)}", devices=(device("board"),), feed=feed)
    at_us = NOON_US + round(minute * MINUTE_US)
    (found,) = registry.resolve([Sighting(site_id, meta, at_us, at_us + 10 * SECOND_US)], at_us)
    assert isinstance(found, Identity)
    return found


def replica(engine: sa.Engine) -> Registry:
    return Registry(engine, look_every_s=0.0)


def is_placed(engine: sa.Engine) -> tuple[str, int]:
    with engine.connect() as conn:
        name, feed = conn.execute(sa.text(OPEN)).one()
    return name, feed


def test_a_twin_is_refused_by_a_replica_that_never_heard_the_first(engine: sa.Engine, site_id: int) -> None:
    first, second = replica(engine), replica(engine)
    for minute in range(60):
        assert seen(first, site_id, "n1", minute).device_ids != (None,)
        if minute >= 15:
            assert seen(second, site_id, "n2", minute + 0.5).device_ids == (None,)
            assert seen(replica(engine), site_id, "n2", minute + 0.5).device_ids == (None,)


def test_a_board_that_moved_by_one_replica_is_refused_to_its_old_node_by_the_other(
    engine: sa.Engine, site_id: int
) -> None:
    first, second = replica(engine), replica(engine)
    seen(first, site_id, "n1", 0)
    assert seen(second, site_id, "n2", 30).device_ids != (None,)
    assert seen(first, site_id, "n1", 31).device_ids == (None,)


@pytest.mark.parametrize("first", ["scraper", "agent"])
@pytest.mark.parametrize("shape", ["one", "two", "anew"])
def test_the_agent_has_its_board_whatever_a_scraper_calls_the_node(
    engine: sa.Engine, site_id: int, first: str, shape: str
) -> None:
    agent = scraper = replica(engine)
    if shape == "two":
        scraper = replica(engine)
    if first == "scraper":
        assert seen(scraper, site_id, "exporter-x7z", 0, Feed.REMOTE_WRITE).device_ids != (None,)
    for minute in range(1, 60):
        if shape == "anew" and minute == 30:
            agent = scraper = replica(engine)
        if minute >= 15:
            assert seen(scraper, site_id, "exporter-x7z", minute - 0.03, Feed.REMOTE_WRITE).device_ids != (None,)
        assert seen(agent, site_id, "n1", minute).device_ids != (None,)
        assert is_placed(engine) == ("n1", int(Feed.NATIVE))


def test_what_a_scraper_placed_gives_way_and_its_hours_are_told_anew(
    engine: sa.Engine, site_id: int, db: Database
) -> None:
    scraped = seen(replica(engine), site_id, "exporter-x7z", 5, Feed.REMOTE_WRITE)
    assert scraped.elsewhere == frozenset()
    seen(replica(engine), site_id, "n1", 0)
    assert is_placed(engine) == ("n1", int(Feed.NATIVE))
    with db.connect("admin") as conn:
        rows = conn.execute("SELECT from_at, kind FROM changes").fetchall()
    five_past = datetime.fromtimestamp((NOON_US + 5 * MINUTE_US) / 1e6, UTC)
    assert rows == [(five_past, "placements")]


def test_an_outage_of_the_agent_does_not_move_its_board_and_a_day_without_it_does(
    engine: sa.Engine, site_id: int
) -> None:
    seen(replica(engine), site_id, "n1", 0)
    assert seen(replica(engine), site_id, "n2", 600, Feed.REMOTE_WRITE).elsewhere
    assert is_placed(engine) == ("n1", int(Feed.NATIVE))
    assert not seen(replica(engine), site_id, "n2", 24 * 60 + 1, Feed.REMOTE_WRITE).elsewhere
    assert is_placed(engine) == ("n2", int(Feed.REMOTE_WRITE))


def test_what_is_remembered_of_devices_is_bounded_and_what_was_forgotten_is_asked_again(
    engine: sa.Engine, site_id: int
) -> None:
    small = Registry(engine, look_every_s=0.0, max_devices=8)
    other = replica(engine)
    for number in range(20):
        meta = batch_meta(
            node=f"m{number}", spool=f"spool-m{number}", devices=(device(f"b{number}-1"), device(f"b{number}-2"))
        )
        small.resolve([Sighting(site_id, meta, NOON_US, NOON_US + SECOND_US)], NOON_US)
        assert len(small._placed) <= 8 + 2
    mine = seen(small, site_id, "n1", 0)
    assert seen(small, site_id, "n1", 1) == mine
    # A board that moved while it was forgotten, and one that moves while it is remembered: both are found.
    assert seen(other, site_id, "n2", 30).device_ids != (None,)
    assert seen(small, site_id, "n1", 31).device_ids == (None,)
