"""Migrations while the version before still writes, beside somebody's long transaction, and by logins of little power."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from ingest.store import migrate, role_rights
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database

pytestmark = pytest.mark.db

REVISIONS = tuple(
    sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "alembic" / "versions").glob("*.py"))
)
BEFORE = "0017_allocation_events"
"""Where the release before left a database."""


_REQUIRED = """
SELECT attname FROM pg_attribute WHERE attrelid = 'device_samples'::regclass AND attnum > 0 AND attnotnull AND attname <> 'at'
AND NOT atthasdef AND NOT attisdropped ORDER BY attnum
"""


class OldReplica(threading.Thread):
    """Writes readings and calls as a replica of the version before does: only the columns it knows, again after a conflict."""

    def __init__(self, db: Database) -> None:
        super().__init__(daemon=True)
        self._db = db
        with db.connect("owner") as owner:  # of the schema it was started on
            self._columns = [str(name) for (name,) in owner.execute(_REQUIRED).fetchall()]
        self.acknowledged = 0
        self.longest_s = 0.0
        self.failed: Exception | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            with self._db.connect("writer") as connection:
                while not self.ended.is_set():
                    began = time.monotonic()
                    self._write(connection)
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - told to the test
            self.failed = error

    def _write(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        at = datetime.now(UTC)
        ones = (1,) * len(self._columns)
        copy_to = sql.SQL("COPY device_samples (at, {}) FROM STDIN").format(
            sql.SQL(", ").join(map(sql.Identifier, self._columns))
        )
        try:
            with connection.transaction(), connection.cursor() as cursor:
                with cursor.copy(copy_to) as copy:
                    for number in range(50):
                        copy.write_row((at + timedelta(microseconds=number), *ones))
                cursor.execute(
                    "INSERT INTO api_calls (called_at, dedupe_key, site_id, provider, model, usage_known, source, origin) "
                    "VALUES (%s, %s, 1, 'p', 'm', false, 'span', 1)",
                    (at, f"call-{self.acknowledged}"),
                )
        except psycopg.errors.DeadlockDetected:
            return  # the agent sends the body again: not acknowledged
        self.acknowledged += 1


@pytest.mark.parametrize("start", [BEFORE, REVISIONS[-3]])
def test_what_an_old_replica_writes_throughout_an_upgrade_is_all_there(db: Database, start: str) -> None:
    migrate.downgrade(db.url, start)
    with db.connect("owner") as owner:
        owner.execute("INSERT INTO sites (name) VALUES ('lab')")
        today = datetime.now(UTC).date()
        owner.execute("SELECT ensure_partitions(%s, %s)", (today, today + timedelta(days=2)))
    replica = OldReplica(db)
    replica.start()
    while replica.acknowledged < 5 and replica.failed is None:
        time.sleep(0.01)
    before = replica.acknowledged
    migrate.upgrade(db.url)
    after = replica.acknowledged
    while replica.acknowledged < after + 5 and replica.failed is None:
        time.sleep(0.01)
    replica.ended.set()
    replica.join()
    assert replica.failed is None
    assert after > before  # it went on meanwhile
    assert replica.longest_s < 5
    with db.connect("owner") as owner:
        counted = owner.execute(
            "SELECT (SELECT count(*) FROM device_samples), (SELECT count(*) FROM api_calls)"
        ).fetchone()
    assert counted == (50 * replica.acknowledged, replica.acknowledged)
    migrate.check(db.url)


@pytest.fixture
def held(db: Database) -> Iterator[threading.Event]:
    """Somebody holds what the last migration needs, until the event is set."""
    migrate.downgrade(db.url, REVISIONS[-2])
    let_go, holding = threading.Event(), threading.Event()

    def hold() -> None:
        with db.connect("admin") as admin:
            admin.execute("LOCK TABLE alembic_version IN EXCLUSIVE MODE")
            holding.set()
            let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    yield let_go
    let_go.set()
    holder.join()


class LetGo(logging.Handler):
    """Ends the other transaction when the migration says that it waits for it."""

    def __init__(self, held: threading.Event) -> None:
        super().__init__(logging.INFO)
        self._held = held
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        self._held.set()


def test_a_migration_lets_others_pass_and_tries_again(db: Database, held: threading.Event) -> None:
    logger, ear = logging.getLogger("ingest.store.migrate"), LetGo(held)
    before = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        migrate.upgrade(db.url)
    finally:
        logger.removeHandler(ear)
        logger.setLevel(before)
    assert len(ear.said) == 1
    assert ear.said[0].startswith("a migration waits for others (canceling statement due to lock timeout)")
    assert migrate.pending(db.url) == ()


@pytest.mark.usefixtures("held")
def test_a_migration_gives_up_in_the_end_and_says_how_to_find_who_holds_the_lock(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_PATIENCE_S", 1.0)
    with pytest.raises(migrate.MigrationError, match=r"lock timeout.*pg_stat_activity"):
        migrate.upgrade(db.url)
    assert migrate.pending(db.url) == (REVISIONS[-1],)


def test_a_server_older_than_the_oldest_supported_is_refused_with_what_to_do(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "MINIMUM_SERVER_VERSION", 99)
    with pytest.raises(migrate.MigrationError, match=r"needs 99 or newer: upgrade the server"):
        migrate.upgrade(db.url)


@pytest.fixture
def rented(server: EmbeddedServer) -> Iterator[Database]:
    """An empty database on a managed server: its owner logs in without superuser and without CREATEROLE."""
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute("CREATE ROLE tenant_of_the_cloud LOGIN")
        admin.execute("CREATE DATABASE rented OWNER tenant_of_the_cloud")
        try:
            yield Database.at_url(server.database("rented").as_login("tenant_of_the_cloud"))
        finally:
            admin.execute("DROP DATABASE rented WITH (FORCE)")
            admin.execute("DROP ROLE tenant_of_the_cloud")


def test_a_login_that_may_not_make_roles_is_told_the_sql_for_somebody_who_may(
    server: EmbeddedServer, rented: Database
) -> None:
    with pytest.raises(migrate.MigrationError, match="an administrator of the server") as refused:
        migrate.upgrade(rented.url)
    statements = [line.strip() for line in str(refused.value).splitlines() if line.endswith(";")]
    roles = "wattledger_api, wattledger_owner, wattledger_worker, wattledger_writer"
    assert statements[-1].startswith(f"GRANT {roles} TO tenant_of_the_cloud")
    assert migrate.current(rented.url) is None
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement.encode())  # as an administrator would paste it
    migrate.upgrade(rented.url)
    migrate.check(rented.url)
    with rented.connect("writer") as writer:  # it switches to the roles
        assert writer.execute("SELECT current_user::text").fetchone() == ("wattledger_writer",)


def test_roles_that_are_missing_are_made_by_the_same_sql(
    server: EmbeddedServer, rented: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(role_rights, "ROLE_NAMES", {"owner": "another_owner", "api": "another_api"})
    engine = rented.create_engine("admin")
    try:
        with engine.connect() as conn, server.database("postgres").connect("admin", autocommit=True) as admin:
            statements = role_rights.missing_statements(conn)
            assert [statement.split(" LOGIN")[0] for statement in statements[:2]] == [
                "CREATE ROLE another_api",
                "CREATE ROLE another_owner",
            ]
            assert statements[2].startswith("GRANT another_api, another_owner TO tenant_of_the_cloud")
            try:
                for statement in statements:
                    admin.execute(statement.encode())  # as an administrator would paste it
                assert role_rights.missing_statements(conn) == ()
            finally:
                admin.execute("DROP ROLE another_api, another_owner")
    finally:
        engine.dispose()
