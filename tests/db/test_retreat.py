"""Going back to an older schema: what would be lost is said first, and what fails leaves the database as it was."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest.store import migrate
from ingest.store.engine import URL_VARIABLE, Database
from ingest.store.retreat import Loss, Way, retreat
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR_AT, SmallFleet, small_fleet
from wattledger.backup import back_up
from wattledger.backup_manifest import BackupError
from wattledger.cli import cli
from wattledger.restore import backed_up

pytestmark = pytest.mark.db

Command = Callable[..., Result]
BELOW = "0031_pseudonyms"
ABOVE = "0033_known_calls_named"
"""Between the two 0032 adds table device_sightings and column placements.feed. What comes later is not of these tests."""


def never(way: Way) -> bool:
    return not way.losses


def always(way: Way) -> bool:
    return bool(way.undone)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    migrate.downgrade(db.url, ABOVE)
    return small_fleet(db)


@pytest.fixture
def seen(fleet: SmallFleet) -> SmallFleet:
    return sighted(fleet)


@pytest.fixture
def seen_now(db: Database) -> SmallFleet:
    """The same on the newest schema, which is what backups are made of."""
    return sighted(small_fleet(db))


def sighted(fleet: SmallFleet) -> SmallFleet:
    """Add what only the newer schema can hold: a feed noted with a placement, and a sighting."""
    fleet.rows("UPDATE placements SET feed = 2 RETURNING 1")
    fleet.rows(
        "INSERT INTO device_sightings (device_id, feed, node_id, last_at) VALUES (%s, 1, %s, %s) RETURNING 1",
        fleet.device_id,
        fleet.node_id,
        HOUR_AT,
    )
    return fleet


def test_a_schema_that_nobody_has_used_goes_back_and_comes_again(fleet: SmallFleet) -> None:
    db = fleet.database
    way = retreat(db.url, BELOW, never)
    assert (way.is_done, way.losses, way.end) == (True, (), BELOW)
    assert way.undone == (ABOVE, "0032_device_sightings")
    assert migrate.current(db.url) == BELOW
    migrate.upgrade(db.url)
    migrate.check(db.url)


def test_what_would_be_lost_is_counted_and_stays_where_nobody_agrees(seen: SmallFleet) -> None:
    db = seen.database
    way = retreat(db.url, "0031", never)
    assert not way.is_done
    assert set(way.losses) == {Loss("column placements.feed", 1), Loss("table device_sightings", 1)}
    assert sorted(map(str, way.losses)) == ["column placements.feed: 1 row", "table device_sightings: 1 row"]
    assert str(Loss("table spans", 2_000)) == "table spans: 2,000 rows"
    assert migrate.current(db.url) == ABOVE
    assert seen.rows("SELECT feed FROM placements") == [(2,)]
    assert seen.rows("SELECT count(*) FROM device_sightings") == [(1,)]


def test_what_was_agreed_to_is_lost_and_nothing_else(seen: SmallFleet) -> None:
    db = seen.database
    assert retreat(db.url, BELOW, always).is_done
    assert migrate.current(db.url) == BELOW
    assert seen.rows("SELECT count(*), min(node_id) FROM placements") == [(1, seen.node_id)]
    migrate.upgrade(db.url)
    assert seen.rows("SELECT count(*) FROM device_sightings") == [(0,)]


def test_rows_that_a_way_back_deletes_are_a_loss_too(fleet: SmallFleet) -> None:
    # A finding that was withdrawn would count again in a schema that cannot say so: the way back of 0012 deletes it.
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO findings (site_id, kind, start_at, end_at, evidence, confidence, origin, dedupe_key, withdrawn_at) "
            "VALUES (%s, 'idle_waste', %s, %s, '{}', 1, 1, 'f-1', %s)",
            (fleet.site_id, HOUR_AT, HOUR_AT + timedelta(hours=1), HOUR_AT),
        )
    way = retreat(fleet.database.url, "0011", never)
    assert {Loss("column findings.withdrawn_at", 1), Loss("deleted from findings", 1)} <= set(way.losses)
    assert fleet.rows("SELECT count(*) FROM findings") == [(1,)]


def test_what_the_older_schema_cannot_hold_at_all_leaves_everything_as_it_was(fleet: SmallFleet) -> None:
    # Books that refer to a pool: before 0011 there are no pools, and the way back may not delete one.
    pool = fleet.rows(
        "INSERT INTO devices (uuid, vendor, model, kind) VALUES ('pool:s1/a', 'nvidia', 'H100', 'pool') RETURNING id"
    )[0][0]
    fleet.rows(
        "INSERT INTO placements (device_id, node_id, valid_from) VALUES (%s, %s, %s) RETURNING 1",
        pool,
        fleet.node_id,
        HOUR_AT,
    )
    with pytest.raises(migrate.MigrationError, match=r"stays at .*cannot be told in that of 0010.*restore"):
        retreat(fleet.database.url, "0010", always)
    assert migrate.current(fleet.database.url) == ABOVE
    assert fleet.rows("SELECT count(*) FROM device_sightings") == [(0,)]


@pytest.mark.parametrize("application", ["wattledger-writer", "wattledger-worker-1"])
def test_nothing_is_taken_from_under_a_process_that_runs(fleet: SmallFleet, application: str) -> None:
    with (
        fleet.database.connect("writer", application=application),
        pytest.raises(migrate.MigrationError, match=rf"1 of {application}\) .*stop ingest"),
    ):
        retreat(fleet.database.url, BELOW, always)
    assert retreat(fleet.database.url, BELOW, never).is_done


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("0099", "no way from schema .* back to '0099'"),
        ("base", "drop the database instead"),
        ("head", "nothing to take back"),
    ],
)
def test_a_revision_that_is_none_or_not_behind_is_refused_by_name(db: Database, revision: str, said: str) -> None:
    with pytest.raises(migrate.MigrationError, match=said):
        retreat(db.url, revision, always)


def test_a_migrator_meanwhile_is_waited_for(db: Database) -> None:
    with db.connect("admin", autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (migrate.MIGRATION_LOCK,))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(migrate, "MIGRATOR_WAIT_S", 0.05)
            with pytest.raises(migrate.MigrationError, match="another process has been migrating this database"):
                retreat(db.url, BELOW, never)
    assert retreat(db.url, BELOW, never).is_done


@pytest.fixture
def command(seen_now: SmallFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`wattledger downgrade` with whatever words."""
    monkeypatch.setenv(URL_VARIABLE, seen_now.database.url)
    return lambda *words: CliRunner().invoke(cli, ["--home", str(tmp_path / "home"), "downgrade", *words])


def test_the_command_refuses_to_lose_data_and_goes_back_with_a_backup_of_it(
    seen_now: SmallFleet, command: Command, tmp_path: Path
) -> None:
    db = seen_now.database
    looked = command(BELOW, "--check")
    assert looked.exit_code == 1
    assert "would be lost: table device_sightings: 1 row\n" in looked.output
    refused = command(BELOW)
    assert refused.exit_code == 1
    assert "nothing was changed; go back all the same with --drop-data --backup TARGET" in refused.output
    assert command(BELOW, "--drop-data").exit_code == 2
    target = tmp_path / "target"
    back_up(db, Segments.at(tmp_path / "segments"), tmp_path, target, env={}, say=print)
    done = command(BELOW, "--drop-data", "--backup", str(target))
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"the schema is {BELOW}; start the version that calls it its own" in done.output
    assert migrate.current(db.url) == BELOW


def test_a_backup_that_is_old_or_of_another_schema_stands_for_nothing(db: Database, tmp_path: Path) -> None:
    target = tmp_path / "target"
    made = back_up(db, Segments.at(tmp_path / "segments"), tmp_path, target, env={}, say=print)
    now = datetime.now(UTC)
    assert str(made.folder) in backed_up(target, made.manifest.schema, now, print)
    with pytest.raises(BackupError, match="2 days old, and a day is the limit; make one now"):
        backed_up(target, made.manifest.schema, now + timedelta(days=2, minutes=1), print)
    with pytest.raises(BackupError, match=f"of schema {made.manifest.schema}, the database is at {BELOW}"):
        backed_up(target, BELOW, now, print)


def test_a_login_that_is_no_superuser_sees_what_would_be_lost_of_all_tenants(seen: SmallFleet) -> None:
    # On a managed server nobody is superuser: rows under row-level security have to count all the same.
    db = seen.database
    with seen.admin() as connection:
        connection.execute("CREATE ROLE of_the_cloud LOGIN")
        options = " WITH INHERIT TRUE, SET TRUE" if connection.info.server_version >= 160000 else ""
        roles = "wattledger_api, wattledger_owner, wattledger_worker, wattledger_writer"
        connection.execute(f"GRANT {roles} TO of_the_cloud{options}".encode())
        connection.execute(
            f"GRANT ALL ON alembic_version TO of_the_cloud; GRANT CONNECT ON DATABASE {db.name} TO of_the_cloud".encode()
        )
    try:
        way = retreat(Database.at_url(db.as_login("of_the_cloud")).url, "0005", lambda _: False)
        counted = {loss.what: loss.rows for loss in way.losses}
        assert counted["table device_sightings"] == 1
    finally:
        with seen.admin() as connection:
            connection.execute("DROP OWNED BY of_the_cloud")
            connection.execute("DROP ROLE of_the_cloud")
