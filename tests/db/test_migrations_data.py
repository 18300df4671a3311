"""Each migration is taken back and done again with rows in every table: what it does not drop is there as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from psycopg import sql

from ingest.store import migrate
from ingest.store.engine import Database
from ingest.store.tables import metadata
from tests.db.filled_tables import fill
from tests.db.ledger_fixture import HOUR_AT, small_fleet

pytestmark = pytest.mark.db

REVISIONS = tuple(
    sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "alembic" / "versions").glob("*.py"))
)
MAKES = {"0033_known_calls_named": {"call_keys"}, "0023_store_layout": {"store_layout"}}
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
    for left in reversed(range(1, len(REVISIONS))):
        above, revision = columns(filled), REVISIONS[left]
        migrate.downgrade(filled.url, "-1")
        assert migrate.pending(filled.url) == REVISIONS[left:]
        kept = in_both(above, columns(filled))
        gone = {table: names for table, names in above.items() if table not in kept}
        at_first = content(filled, kept)
        assert [table for table, digest in at_first.items() if digest is None] == [], f"{revision} empties it"
        migrate.upgrade(filled.url, "+1")
        assert columns(filled) == above, revision
        left_alone = {table: names for table, names in kept.items() if table not in MAKES.get(revision, ())}
        assert content(filled, left_alone) == {table: at_first[table] for table in left_alone}, revision
        assert not any(content(filled, gone).values()) or revision in MAKES, (
            f"{revision} drops it, and it is back with rows"
        )
        migrate.downgrade(filled.url, "-1")
    migrate.upgrade(filled.url)
    migrate.check(filled.url)
