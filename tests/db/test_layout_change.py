"""From one layout to the other by dump and restore, as docs/databases.md says it; needs a server with TimescaleDB."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest.store import migrate
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.layout import Layout
from tests import servers
from tests.db.ledger_fixture import HOUR_AT, small_fleet

pytestmark = [pytest.mark.db, pytest.mark.timescale]

SETTLE = Path(__file__).resolve().parents[2] / "deploy/server/settle.sql"
NOT_DATA = ("alembic_version", "store_layout")
BOOKS = ("usage_hours", "ledger_lines", "findings", "tenant_minutes")


@pytest.fixture
def both(server: EmbeddedServer) -> Iterator[dict[Layout, Database]]:
    """A migrated database of each layout."""
    made = {layout: server.database(f"wattledger_{layout}") for layout in Layout}
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        for layout, database in made.items():
            admin.execute(f"CREATE DATABASE {database.name} OWNER wattledger_owner".encode())
            migrate.upgrade(database.url, layout=layout)
        try:
            yield made
        finally:
            for database in made.values():
                admin.execute(f"DROP DATABASE {database.name} WITH (FORCE)".encode())


def run(*words: str, standard_input: str | None = None) -> str:
    bindir = servers.programs(servers.Kind.TIMESCALE)
    assert bindir is not None
    done = subprocess.run(
        [str(bindir / words[0]), *words[1:]], input=standard_input, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def dumped(database: Database, *how: str) -> str:
    """Return all rows, those of the books last."""
    first = [word for name in (*NOT_DATA, *BOOKS) for word in ("-T", name)]
    last = [word for name in BOOKS for word in ("-t", name)]
    return "".join(run("pg_dump", "--data-only", *how, *which, database.url) for which in (first, last))


def restore(database: Database, script: str) -> None:
    run("psql", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction", database.url, standard_input=script)


def seeded(database: Database) -> None:
    """Readings over midnight, calls and a change: two days of some tables, and rows under row-level security."""
    fleet = small_fleet(database)
    midnight = HOUR_AT.replace(hour=0) + timedelta(days=1)
    fleet.samples(midnight - timedelta(hours=1), midnight + timedelta(hours=1))
    with database.connect("writer") as writer:
        for number in range(3):
            at = datetime(2026, 11, 1, 20, tzinfo=UTC) + timedelta(hours=3 * number)
            writer.execute(
                "INSERT INTO api_calls (called_at, dedupe_key, site_id, provider, model, usage_known, source, origin) "
                "VALUES (%s, %s, %s, 'p', 'm', false, 'span', 1)",
                (at, f"call-{number}", fleet.site_id),
            )


def content(database: Database) -> dict[str, tuple[object, ...]]:
    """Return the number of rows of each table and a digest of what matters most; the move itself notes a shift of stamps."""
    with database.connect("admin") as admin:
        names = admin.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') "
            "AND NOT relispartition AND relname NOT IN ('alembic_version', 'store_layout', 'stamp_shifts') ORDER BY 1"
        ).fetchall()
        counts = {
            str(name): admin.execute(f"SELECT count(*) FROM {name}".encode()).fetchone() or () for (name,) in names
        }
        digest = admin.execute("SELECT md5(string_agg(d::text, '' ORDER BY at)) FROM device_samples AS d").fetchone()
    return counts | {"digest": digest or ()}


def test_daily_partitions_become_hypertables(both: dict[Layout, Database]) -> None:
    old, new = both[Layout.NATIVE], both[Layout.HYPERTABLES]
    seeded(old)
    restore(new, dumped(old, "--load-via-partition-root") + SETTLE.read_text())
    assert content(new) == content(old)
    assert content(new)["device_samples"] == (721,)  # two hours, a row each 10 s, both ends
    assert migrate.layout_of(new.url).layout is Layout.HYPERTABLES


def test_hypertables_become_daily_partitions(both: dict[Layout, Database]) -> None:
    old, new = both[Layout.HYPERTABLES], both[Layout.NATIVE]
    seeded(old)
    with old.connect("admin") as admin:
        kept = admin.execute(
            "SELECT parent, min(day)::text, (max(day) + 1)::text FROM stored_days() GROUP BY parent ORDER BY parent"
        ).fetchall()
    restore(new, dumped(old, "-N", "wattledger_days", "-N", "_timescaledb*"))
    for table, first, last in kept:
        run("psql", "-c", f"SELECT ensure_partitions('{first}', '{last}', ARRAY['{table}'])", new.url)
        rows = run("psql", "-c", f"COPY (SELECT * FROM {table}) TO STDOUT", old.url)
        run("psql", "-c", f"COPY {table} FROM STDIN", new.url, standard_input=rows)
    run("psql", "-v", "ON_ERROR_STOP=1", "--single-transaction", "--file", str(SETTLE), new.url)
    assert content(new) == content(old)
    assert content(new)["api_calls"] == (3,)
