"""How a database keeps its days: chosen when it is empty, recorded, never changed in place.

What TimescaleDB alone can show is marked `timescale` and left out of runs on other servers; there, hypertables are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from ingest.store import migrate, partitions
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import URL_VARIABLE, Database
from ingest.store.layout import Layout
from ingest.store.tables import samples, work
from tests import servers
from wattledger.cli import cli
from wattledger.diagnosis import Verdict
from wattledger.examination import examine
from wattledger.home import resolve_home

pytestmark = pytest.mark.db


@pytest.fixture
def empty(server: EmbeddedServer) -> Iterator[Database]:
    """A database that nobody migrated yet, with the extension if every database of the server has it."""
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute("CREATE DATABASE wattledger_empty OWNER wattledger_owner")
        try:
            yield server.database("wattledger_empty")
        finally:
            admin.execute("DROP DATABASE wattledger_empty WITH (FORCE)")


def kinds(db: Database) -> set[str]:
    """Return what pg_class calls the tables that are kept by day: p = partitioned, r = a table, or a hypertable."""
    names = [table.name for table in (*samples.PARTITIONED, *work.PARTITIONED)]
    with db.connect("admin") as admin:
        rows = admin.execute("SELECT relkind::text FROM pg_class WHERE relname = ANY (%s)", (names,)).fetchall()
    assert len(rows) == len(names)
    return {str(kind) for (kind,) in rows}


def test_the_layout_follows_the_extension_and_is_recorded_with_the_reason(
    empty: Database, server_kind: servers.Kind
) -> None:
    migrate.upgrade(empty.url)
    kept = migrate.layout_of(empty.url)
    if server_kind is servers.Kind.TIMESCALE:
        assert kinds(empty) == {"r"}
        assert kept.layout is Layout.HYPERTABLES
        assert kept.reason.endswith("is installed in this database")
    else:
        assert kinds(empty) == {"p"}
        assert (kept.layout, kept.reason) == (Layout.NATIVE, "the server has no timescaledb")


def test_daily_partitions_are_kept_on_any_server_that_is_asked_for_them(empty: Database) -> None:
    migrate.upgrade(empty.url, layout=Layout.NATIVE)
    assert kinds(empty) == {"p"}
    assert migrate.layout_of(empty.url).reason == "asked for"
    migrate.check(empty.url)
    with empty.connect("worker", autocommit=True) as worker:
        assert worker.execute("SELECT ensure_partitions('2026-03-01', '2026-03-02')").fetchone() == (9,)


def test_another_layout_than_the_one_there_is_is_refused_with_the_way_to_get_it(db: Database) -> None:
    there = migrate.layout_of(db.url).layout
    (other,) = set(Layout) - {there}
    with pytest.raises(migrate.MigrationError, match=rf"with the layout {there} and {other} is asked for.*dump"):
        migrate.upgrade(db.url, layout=other)
    assert migrate.layout_of(db.url).layout is there
    migrate.upgrade(db.url, layout=there)  # asking for what is there is fine


def test_hypertables_that_cannot_be_are_refused_with_what_to_do_before_anything_is_made(
    empty: Database, server_kind: servers.Kind
) -> None:
    login = empty
    said = "the server has no timescaledb; install it there"
    if server_kind is servers.Kind.TIMESCALE:
        with empty.connect("admin", autocommit=True) as admin:
            admin.execute("DROP EXTENSION timescaledb")
            admin.execute("GRANT wattledger_api, wattledger_worker, wattledger_writer TO wattledger_owner")
            admin.execute("ALTER DATABASE wattledger_empty OWNER TO postgres")
        login = Database.at_url(empty.as_login("wattledger_owner"))  # neither superuser nor owner of the database
        said = "permission denied to create extension.*have an administrator run CREATE EXTENSION timescaledb"
    try:
        with pytest.raises(migrate.MigrationError, match=said):
            migrate.upgrade(login.url, layout=Layout.HYPERTABLES)
        assert migrate.current(empty.url) is None
    finally:
        if login is not empty:
            with empty.connect("admin", autocommit=True) as admin:
                admin.execute("REVOKE wattledger_api, wattledger_worker, wattledger_writer FROM wattledger_owner")


def test_every_unique_key_of_a_table_kept_by_day_contains_its_time(db: Database) -> None:
    # Both layouts demand it: a day knows nothing of the others.
    clocks = {"api_calls": "called_at", "spans": "started_at"}
    names = [table.name for table in (*samples.PARTITIONED, *work.PARTITIONED)]
    with db.connect("admin") as admin:
        rows = admin.execute(
            "SELECT c.relname::text, i.indexrelid::regclass::text, "
            "ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum = ANY (i.indkey::int2[])) "
            "FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid WHERE i.indisunique AND c.relname = ANY (%s)",
            (names,),
        ).fetchall()
    assert {str(table) for table, _, _ in rows} >= {"api_calls"}
    assert [index for table, index, columns in rows if clocks.get(str(table), "at") not in list(columns)] == []  # type: ignore[call-overload]


def test_the_doctor_tells_server_layout_extension_and_licence(
    db: Database, server_kind: servers.Kind, tmp_path: Path
) -> None:
    home = resolve_home({}, tmp_path / "home").create()
    told = {check.subject: check for check in examine(home, {URL_VARIABLE: db.url})}
    major = {servers.Kind.POSTGRES15: "15", servers.Kind.TIMESCALE: "17", servers.Kind.EMBEDDED: "18"}[server_kind]
    assert told["PostgreSQL"].found.startswith(f"answers, version {major}.")
    if server_kind is servers.Kind.TIMESCALE:
        assert told["layout"].found.startswith("hypertables of TimescaleDB 2.")
        assert told["layout"].found.endswith("licence apache: no columnstore")
        assert "partitions" not in told
    else:
        assert told["layout"].found == "daily partitions of PostgreSQL (the server has no timescaledb)"
    assert told["layout"].verdict is Verdict.FINE


def test_the_command_says_which_layout_there_is_and_why(empty: Database) -> None:
    made = CliRunner().invoke(cli, ["migrate", "--layout", "native"], env={URL_VARIABLE: empty.url})
    assert made.exit_code == 0, made.output
    assert made.output.splitlines()[-1] == "layout: native (asked for)"
    again = CliRunner().invoke(cli, ["migrate", "--layout", "hypertables"], env={URL_VARIABLE: empty.url})
    assert isinstance(again.exception, migrate.MigrationError)


@pytest.mark.timescale
def test_an_extension_that_is_only_available_is_not_installed_unasked(empty: Database) -> None:
    with empty.connect("admin", autocommit=True) as admin:
        admin.execute("DROP EXTENSION timescaledb")
    migrate.upgrade(empty.url)
    kept = migrate.layout_of(empty.url)
    assert kept.layout is Layout.NATIVE
    assert kept.reason.endswith("is on the server but not installed in this database")


@pytest.mark.timescale
def test_asked_for_by_name_the_extension_is_installed(empty: Database) -> None:
    with empty.connect("admin", autocommit=True) as admin:
        admin.execute("DROP EXTENSION timescaledb")
    migrate.upgrade(empty.url, layout=Layout.HYPERTABLES)
    assert kinds(empty) == {"r"}
    assert migrate.layout_of(empty.url).reason.endswith("was installed for it")


@pytest.mark.timescale
def test_each_table_kept_by_day_is_a_hypertable_with_chunks_of_one_utc_day(db: Database) -> None:
    with db.connect("admin") as admin:
        rows = admin.execute(
            "SELECT hypertable_name::text, column_name::text, time_interval FROM timescaledb_information.dimensions ORDER BY 1"
        ).fetchall()
    clocks = {"api_calls": "called_at", "spans": "started_at"}
    tables = sorted(table.name for table in (*samples.PARTITIONED, *work.PARTITIONED))
    assert rows == [(table, clocks.get(table, "at"), timedelta(days=1)) for table in tables]


@pytest.mark.timescale
def test_the_apache_edition_gets_no_columnstore_and_no_policy(db: Database) -> None:
    migrate.upgrade(db.url)
    with db.connect("admin") as admin:
        assert admin.execute(
            "SELECT DISTINCT compression_enabled FROM timescaledb_information.hypertables"
        ).fetchall() == [(False,)]
        # TimescaleDB's own housekeeping jobs have no hypertable.
        assert (
            admin.execute("SELECT * FROM timescaledb_information.jobs WHERE hypertable_name IS NOT NULL").fetchall()
            == []
        )


@pytest.mark.timescale
def test_two_writers_make_days_side_by_side_and_a_long_transaction_hinders_no_new_day(db: Database) -> None:
    today = datetime.now(UTC).date()
    engine = db.create_engine("writer")
    row = "INSERT INTO node_samples (at, meter_id, epoch_id, span_us) VALUES (%s, 1, 1, 0)"
    with engine.begin() as conn:
        partitions.ensure(conn, today, today + timedelta(days=1), tables=("node_samples",))
    with db.connect("writer") as long:
        long.execute(row, (datetime.now(UTC),))  # its day was made ahead, so it holds no lock on days
        with engine.begin() as conn:
            conn.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
            assert partitions.ensure_days(conn, "node_samples", [today + timedelta(days=1)]) == 1
    engine.dispose()
