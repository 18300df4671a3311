"""The schema as migrated is the schema as declared, documented to the last column, and can be taken back."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.store import migrate
from ingest.store.engine import Database
from ingest.store.tables import metadata
from ingest.store.tables.columns import UNIT_OF_SUFFIX

pytestmark = pytest.mark.db

ROOT = Path(__file__).resolve().parents[2]
REVISIONS = tuple(sorted(path.stem for path in (ROOT / "alembic" / "versions").glob("*.py")))
OUR_FUNCTIONS = "pronamespace = 'public'::regnamespace AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')"
"""Those in public that are not an extension's."""
COLUMNS = [column for table in metadata.sorted_tables for column in table.columns]


def test_the_migrated_database_is_what_the_tables_declare(database: Database) -> None:
    migrate.check(database.url)  # raises with the differences, comments and defaults included
    assert migrate.pending(database.url) == ()
    assert migrate.current(database.url) == REVISIONS[-1]


def test_check_constraints_are_what_the_tables_declare(database: Database) -> None:
    # Alembic does not compare these.
    declared = {
        str(constraint.name)
        for table in metadata.sorted_tables
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }
    with database.connect("admin") as connection:
        rows = connection.execute(
            "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
        ).fetchall()
    assert {name for (name,) in rows} == declared


def test_up_down_up_ends_where_it_began(db: Database) -> None:
    with db.connect("worker") as connection:
        connection.execute("SELECT ensure_partitions('2026-11-21', '2026-11-23')")
    migrate.downgrade(db.url, "base")
    with db.connect("admin") as admin:
        left = admin.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')"
        ).fetchall()
        functions = admin.execute(f"SELECT proname FROM pg_proc WHERE {OUR_FUNCTIONS}".encode()).fetchall()
    assert left == [("alembic_version",)]
    assert functions == []
    assert migrate.pending(db.url) == REVISIONS
    migrate.upgrade(db.url)
    migrate.check(db.url)


def test_daily_partitions_are_no_difference(db: Database) -> None:
    with db.connect("worker") as connection:
        connection.execute("SELECT ensure_partitions('2026-11-20', '2026-11-22')")
        connection.execute("SELECT close_partition('device_samples', '2026-11-20')")
    migrate.check(db.url)


def test_a_database_of_a_newer_version_is_refused_by_name(db: Database) -> None:
    with db.connect("admin", autocommit=True) as admin:
        admin.execute("UPDATE alembic_version SET version_num = '0999_later'")
    with pytest.raises(migrate.MigrationError, match="0999_later"):
        migrate.pending(db.url)
    with pytest.raises(migrate.MigrationError, match="0999_later"):
        migrate.upgrade(db.url)


def test_a_second_migrator_waits_for_the_first_and_finds_nothing_to_do(db: Database) -> None:
    migrate.downgrade(db.url, "base")
    command = [sys.executable, "-c", f"from ingest.store import migrate; migrate.upgrade({db.url!r})"]
    migrators = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [migrator.wait() for migrator in migrators] == [0, 0]
    assert migrate.pending(db.url) == ()


def test_no_other_database_is_taken_for_postgresql() -> None:
    with pytest.raises(migrate.MigrationError, match="not a PostgreSQL URL"):
        migrate.upgrade("sqlite:///somewhere.db")


def test_every_column_says_what_stands_in_it() -> None:
    assert [str(column) for column in COLUMNS if not column.comment] == []
    assert [table.name for table in metadata.sorted_tables if not table.comment] == []


# What a comment must say for each unit a name may end in; "instant, UTC" and the like are searched word by word.
UNIT_WORD = {suffix: unit.split()[0].rstrip(",") for suffix, unit in UNIT_OF_SUFFIX.items()} | {
    "_ratio": "0 to 1",
    "_id": "id",
    "_per_kwh": "per kWh",
    "_c": "Celsius",
}


def states_its_unit(column: sa.Column[object]) -> bool:
    suffixes = [suffix for suffix in UNIT_WORD if f"_{column.name}".endswith(suffix)]
    if suffixes:
        return UNIT_WORD[max(suffixes, key=len)] in str(column.comment)
    if isinstance(column.type, sa.Numeric):  # floats too; whole numbers without a unit are counts and codes
        return any(word in str(column.comment) for word in ("currency", "measure", "0 to 1", " / ", "units per"))
    return True


def test_every_quantity_states_its_unit() -> None:
    quantities = [column for column in COLUMNS if isinstance(column.type, sa.Integer | sa.Numeric | sa.DateTime)]
    assert len(quantities) > 100
    assert [f"{column}: {column.comment}" for column in quantities if not states_its_unit(column)] == []


def test_every_table_and_function_belongs_to_the_owner_role(database: Database) -> None:
    with database.connect("admin") as connection:
        others = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') "
            "AND pg_get_userbyid(relowner) <> 'wattledger_owner' "
            f"UNION SELECT proname FROM pg_proc WHERE {OUR_FUNCTIONS} AND pg_get_userbyid(proowner) <> 'wattledger_owner'"
        ).fetchall()
    assert others == []


def test_only_the_store_names_tables() -> None:
    # `ingest.store` and `analytics.io` are the only places that may; everyone else asks them.
    allowed = (ROOT / "ingest" / "store", ROOT / "analytics" / "io")
    offenders = [
        str(path.relative_to(ROOT))
        for package in ("analytics", "collector", "dashboard", "ingest", "wattledger")
        for path in (ROOT / package).rglob("*.py")
        if not any(path.is_relative_to(folder) for folder in allowed) and "ingest.store.tables" in path.read_text()
    ]
    assert offenders == []
