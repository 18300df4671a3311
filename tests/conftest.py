"""Fixtures everybody shares: the real data folder and a real PostgreSQL.

`db` costs about 0.3 s: the schema is migrated once per run into a template, and each test gets a copy of its own.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database

_TEMPLATE = "wattledger_template"
_numbers = itertools.count()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only root can ask, unless root runs the tests: not a skip, which would fail CI's run of a user."""
    if os.geteuid() == 0:
        return
    left_out = [item for item in items if item.get_closest_marker("root")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("root")]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the published real-world data sets."""
    named = os.environ.get("WATTLEDGER_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data in {folder}; set WATTLEDGER_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """One embedded PostgreSQL for the run. Its home is passable by others, or as root the data would move elsewhere."""
    home = Path(tempfile.mkdtemp(prefix="wl-test-"))
    home.chmod(0o711)
    running = EmbeddedServer.in_home(home)
    try:
        running.start()
        yield running
    finally:
        running.destroy()
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def database(server: EmbeddedServer) -> Database:
    """A migrated database to read or to copy; a test that writes asks for `db`."""
    from ingest.store.migrate import upgrade  # noqa: PLC0415 - unit tests need no alembic

    template = server.database(_TEMPLATE)
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER wattledger_owner").format(sql.Identifier(_TEMPLATE)))
    upgrade(template.url)
    return template


@pytest.fixture
def db(server: EmbeddedServer, database: Database) -> Iterator[Database]:
    """A migrated database of this test's own, dropped after it with whatever connections it left open."""
    name = f"wattledger_test_{next(_numbers)}"
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER wattledger_owner").format(
                sql.Identifier(name), sql.Identifier(database.name)
            )
        )
        try:
            yield server.database(name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
