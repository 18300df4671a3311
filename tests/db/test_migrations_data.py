"""Each migration is taken back and done again with rows in every table: what it does not drop is there as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from psycopg import sql

from ingest.store import layout, migrate
from ingest.store.engine import Database
from ingest.store.tables import metadata
from tests.db.filled_tables import fill
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet

pytestmark = pytest.mark.db

REVISIONS = tuple(
    sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "alembic" / "versions").glob("*.py"))
)
MAKES = {"0057_job_ends": {"job_ends"}, "0033_known_calls_named": {"call_keys"}, "0023_store_layout": {"store_layout"}}
"""Tables into which a migration writes rows of its own."""
Columns = Mapping[str, tuple[str, ...]]
_COLUMNS = """
SELECT c.relname, array_agg(a.attname::text ORDER BY a.attname)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname <> 'alembic_version' AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'e')
GROUP BY 1
"""


def columns(db: Database) -> dict[str, tuple[str, ...]]:
    with db.connect("admin") as admin:
        return {str(table): tuple(names) for table, names in admin.execute(_COLUMNS).fetchall()}  # type: ignore[arg-type]


def content(db: Database, wanted: Columns) -> dict[str, str | None]:
    """Return a digest of these columns of all rows, by table."""
    found = {}
    with db.connect("admin") as admin:
        for table, names in wanted.items():
            query = sql.SQL(
                "SELECT md5(string_agg(r::text, '' ORDER BY r::text)) FROM (SELECT {} FROM {}) AS r"
            ).format(sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier(table))
            (digest,) = admin.execute(query).fetchone() or (None,)
            found[table] = None if digest is None else str(digest)
    return found


def in_both(one: Columns, other: Columns) -> dict[str, tuple[str, ...]]:
    shared = {table: tuple(name for name in one[table] if name in other[table]) for table in one.keys() & other.keys()}
    return {table: names for table, names in shared.items() if names}


@pytest.fixture
def filled(db: Database) -> Database:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT)
    fleet.job("7", HOUR_AT, None)
    assert fill(db) == {table.name for table in metadata.sorted_tables}
    return db


def test_down_and_up_with_data_leave_all_that_the_schema_below_can_hold(filled: Database) -> None:
    # Alembic reads all scripts anew for each command; here they are read once: a hundred steps in seconds.
    scripts = ScriptDirectory.from_config(migrate.migration_config()).walk_revisions("base", "head")
    choice = migrate.layout_of(filled.url)
    engine = filled.create_engine("admin", pool_size=1)
    try:
        with engine.connect() as connection, layout.tables_made_as(choice.layout):
            reason = sa.text("SELECT set_config('wattledger.layout_reason', :reason, false)")
            connection.execute(reason, {"reason": choice.reason})
            connection.commit()
            for script in itertools.takewhile(lambda script: script.down_revision, scripts):
                _down_up_down(filled, connection, script)
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :first"), {"first": REVISIONS[0]})
            connection.commit()
    finally:
        engine.dispose()
    migrate.upgrade(filled.url)
    migrate.check(filled.url)


def _down_up_down(db: Database, connection: sa.Connection, script: Script) -> None:
    above, revision = columns(db), script.revision
    _step(connection, script.module.downgrade)
    kept = in_both(above, columns(db))
    gone = {table: names for table, names in above.items() if table not in kept}
    at_first = content(db, kept)
    assert [table for table, digest in at_first.items() if digest is None] == [], f"{revision} empties it"
    _step(connection, script.module.upgrade)
    assert columns(db) == above, revision
    left_alone = {table: names for table, names in kept.items() if table not in MAKES.get(revision, ())}
    assert content(db, left_alone) == {table: at_first[table] for table in left_alone}, revision
    assert not any(content(db, gone).values()) or revision in MAKES, f"{revision} drops it, and it is back with rows"
    _step(connection, script.module.downgrade)


def _step(connection: sa.Connection, work: Callable[[], None]) -> None:
    context = MigrationContext.configure(connection)
    with Operations.context(context), context.begin_transaction():
        work()


def test_ends_of_jobs_from_before_they_were_dated_were_always_known(db: Database) -> None:
    migrate.downgrade(db.url, "0056_whole_closes")
    fleet = small_fleet(db)
    ended, runs = fleet.job("7", HOUR_AT, HOUR_AT + HOUR), fleet.job("8", HOUR_AT, None)
    migrate.upgrade(db.url)
    seen = "pg_visible_in_snapshot(recorded_xid, '3:3:')"
    assert fleet.rows(f"SELECT job_id, ended_at, {seen} FROM job_ends") == [(ended, HOUR_AT + HOUR, True)]
    fleet.rows("UPDATE jobs SET ended_at = %s RETURNING 1", HOUR_AT + 2 * HOUR)
    kept = fleet.rows(f"SELECT job_id, ended_at, {seen}, superseded_at IS NULL FROM job_ends ORDER BY 1, 2")
    later = HOUR_AT + 2 * HOUR
    assert kept == [(ended, HOUR_AT + HOUR, True, False), (ended, later, False, True), (runs, later, False, True)]


def test_words_of_meters_that_hold_without_an_end_go_back_into_their_rows(db: Database) -> None:
    fleet = small_fleet(db)
    ((meter,),) = fleet.rows("INSERT INTO meters (node_id, name) VALUES (%s, 'ac') RETURNING id", fleet.node_id)
    for word, value, end in (("bills", True, HOUR_AT), ("bills", False, None), ("wrap_mj", 7, None)):
        fleet.rows(
            f"INSERT INTO meter_words (meter_id, {word}, valid_from, valid_to) VALUES (%s, %s, %s, %s) RETURNING 1",
            *(meter, value, HOUR_AT - HOUR if end else HOUR_AT, end),
        )
    fleet.rows(
        "INSERT INTO meter_words (meter_id, covers, valid_from, superseded_at) VALUES (%s, 'part', %s, now()) RETURNING 1",
        *(meter, HOUR_AT),
    )
    migrate.downgrade(db.url, "0059_moved_told")
    assert fleet.rows("SELECT bills, covers, wrap_mj FROM meters WHERE id = %s", meter) == [(False, "it", 7)]
    migrate.upgrade(db.url)
    assert fleet.rows("SELECT count(*) FROM meter_words") == [(0,)]
