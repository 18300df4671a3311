"""A device first known by its UUID alone is described as soon as anybody can, never the other way round, and its hours are due again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from analytics.inputs import Window
from analytics.io.load import load_batch
from analytics.policy import Policy
from collector.wire import UNKNOWN_MODEL, DeviceRef
from ingest.store import identities
from ingest.store.engine import Database
from ingest.store.registry import Identity, Registry, Sighting
from tests.db.ingest_harness import SECOND_US, batch_meta

pytestmark = pytest.mark.db

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NOON_US = round(NOON.timestamp()) * SECOND_US
HOUR = timedelta(hours=1)
STUB = DeviceRef("GPU-1", UNKNOWN_MODEL)
BOARD = DeviceRef("GPU-1", "H100", memory_bytes=85_899_345_920)
MIG_STUB = DeviceRef("MIG-1", UNKNOWN_MODEL, kind="mig")
MIG = DeviceRef("MIG-1", "H100", kind="mig", parent_uuid="GPU-1", mig_profile="1g.10gb", slice_ratio=0.142857)
DESCRIBED = ("nvidia", "H100", "gpu", None, None, Decimal(1), 1, 85_899_345_920)


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


def report(registry: Registry, site_id: int, *bodies: tuple[str, int, DeviceRef]) -> None:
    """Take in bodies of node n1, in one group: a spool, a minute past noon, and the one device in the table."""
    sightings = [
        Sighting(site_id, batch_meta(node="n1", spool=spool, devices=(device,)), at_us, at_us)
        for spool, minute, device in bodies
        for at_us in (NOON_US + minute * 60 * SECOND_US,)
    ]
    assert all(isinstance(found, Identity) for found in registry.resolve(sightings, NOON_US + 3_600 * SECOND_US))


def description(engine: sa.Engine, uuid: str = "GPU-1") -> tuple[Any, ...]:
    with engine.connect() as conn:
        columns = "vendor, model, kind, parent_device_id, mig_profile, slice_ratio, accelerators, memory_bytes"
        row = conn.execute(sa.text(f"SELECT {columns} FROM devices WHERE uuid = :uuid"), {"uuid": uuid}).one()
    return tuple(row)


def changes(db: Database) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:  # the writer may not read them
        return conn.execute(
            "SELECT site_id, from_at, to_at > now() - interval '1 minute', kind FROM changes"
        ).fetchall()


def test_a_real_description_takes_the_place_of_unknown_and_the_device_s_hours_are_due(
    db: Database, engine: sa.Engine, site_id: int
) -> None:
    registry = Registry(engine)
    report(registry, site_id, ("a", 5, STUB))
    assert changes(db) == []
    report(registry, site_id, ("b", 65, BOARD))
    assert description(engine) == DESCRIBED
    # From where the device is known to be first: 12:05.
    assert changes(db) == [(site_id, NOON + timedelta(minutes=5), True, "devices")]


def test_unknown_never_takes_the_place_of_a_real_description(db: Database, engine: sa.Engine, site_id: int) -> None:
    report(Registry(engine), site_id, ("a", 5, BOARD))
    report(Registry(engine), site_id, ("b", 6, STUB))
    report(Registry(engine), site_id, ("c", 7, DeviceRef("GPU-1", "A100")))  # nor one real description another's
    assert description(engine) == DESCRIBED
    assert changes(db) == []


@pytest.mark.parametrize("bodies", [(BOARD, STUB), (STUB, BOARD)])
def test_of_two_bodies_of_one_group_the_one_that_knows_describes(
    engine: sa.Engine, site_id: int, bodies: tuple[DeviceRef, DeviceRef]
) -> None:
    report(Registry(engine), site_id, ("a", 5, bodies[0]), ("b", 5, bodies[1]))
    assert description(engine) == DESCRIBED


def test_a_mig_instance_known_by_name_becomes_a_part_of_its_board(engine: sa.Engine, site_id: int) -> None:
    registry = Registry(engine)
    report(registry, site_id, ("a", 5, MIG_STUB))
    with engine.begin() as conn:
        ids = identities.device_ids(conn, [MIG, BOARD])
    assert description(engine, "MIG-1") == (
        "nvidia",
        "H100",
        "mig",
        ids["GPU-1"],
        "1g.10gb",
        Decimal("0.142857"),
        1,
        None,
    )
    report(Registry(engine), site_id, ("b", 6, MIG_STUB))
    assert description(engine, "MIG-1")[3] == ids["GPU-1"]


def test_what_was_known_before_the_description_can_be_loaded_again(
    db: Database, engine: sa.Engine, site_id: int
) -> None:
    registry = Registry(engine)
    report(registry, site_id, ("a", 5, STUB), ("b", 5, MIG_STUB))
    window = Window(NOON, NOON + HOUR, NOON + HOUR)

    with db.connect("worker", autocommit=True) as connection:
        first = load_batch(db, connection, site_id, window, Policy(), "USD")
        with engine.begin() as conn:
            identities.device_ids(conn, [BOARD, MIG])
        again = load_batch(db, connection, site_id, window, Policy(), "USD", as_of=first.as_of)
        now = load_batch(db, connection, site_id, window, Policy(), "USD")

    def models(loaded: Any) -> list[tuple[str, str]]:
        return list(loaded.inputs.usage.devices.sort("uuid").select("uuid", "model").iter_rows())

    assert models(first) == models(again) == [("GPU-1", UNKNOWN_MODEL), ("MIG-1", UNKNOWN_MODEL)]
    assert first.read.frames == again.read.frames
    assert models(now) == [("GPU-1", "H100"), ("MIG-1", "H100")]
    parents = now.inputs.usage.devices.sort("uuid")["parent_device_id"].to_list()
    assert [parent is None for parent in parents] == [True, False], (
        "what is described as an instance is a part of its board"
    )
