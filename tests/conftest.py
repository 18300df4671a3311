"""Fixtures everybody shares: the real data folder and a real PostgreSQL, and in which order tests run.

Which PostgreSQL that is, WATTLEDGER_TEST_SERVER says (tests/servers); the embedded one by default.

`db` costs about 0.1 s: the schema is migrated once per process into a template, and each test gets a copy of its own.
Several processes (`pytest -n`) share nothing: each has a PostgreSQL of its own.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql

from ingest.store.embedded import EmbeddedServer
from ingest.store.embedded import server as server_module
from ingest.store.embedded.binaries import BINDIR_VARIABLE
from ingest.store.embedded.settings import server_settings
from ingest.store.engine import Database
from tests import servers
from tests.scratch import quick_folder

_TEMPLATE = "wattledger_template"
_numbers = itertools.count()
_LONGEST_FIRST = ("e2e", "real", "db", "property", "contract", "unit")
"""Folders by how long a file of theirs takes: when two processes share the files, none is left with a long one at the end."""
_FORGETFUL = {"fsync": "off", "full_page_writes": "off"}
"""No test pulls the plug: what a killed PostgreSQL has written is with the kernel. Half a second for each new database."""


def pytest_configure() -> None:
    """Give property tests all the time they need: a loaded machine is no finding. In CI hypothesis has such a profile itself."""
    patient = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("default", patient)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long files first, and leave out what only root, or only TimescaleDB, can show unless root or it runs the tests.

    Left out is not skipped: a skip would fail CI's run of a user.
    """
    items.sort(key=_rank)
    absent = {"root": os.geteuid() != 0, "timescale": servers.chosen(os.environ) is not servers.Kind.TIMESCALE}
    left_out = [item for item in items if any(absent[mark] and item.get_closest_marker(mark) for mark in absent)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return _LONGEST_FIRST.index(folder) if folder in _LONGEST_FIRST else 0


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the published real-world data sets."""
    named = os.environ.get("WATTLEDGER_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data in {folder}; set WATTLEDGER_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session", autouse=True)
def server_kind() -> Iterator[servers.Kind]:
    """Which PostgreSQL this run is about. Whatever starts one by itself meanwhile starts the same programs."""
    kind = servers.chosen(os.environ)
    bindir = servers.programs(kind)
    with pytest.MonkeyPatch.context() as patch:
        if bindir is not None:
            patch.setenv(BINDIR_VARIABLE, str(bindir))
        yield kind


@pytest.fixture(scope="session")
def server(server_kind: servers.Kind) -> Iterator[EmbeddedServer]:
    """One PostgreSQL for this process."""
    home = quick_folder("wl-test-")
    running = EmbeddedServer.in_home(home)
    wanted = _FORGETFUL | servers.settings(server_kind)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server_module, "server_settings", lambda folder: server_settings(folder) | wanted)
            running.start()
        if server_kind is servers.Kind.TIMESCALE:
            with running.database("template1").connect("admin", autocommit=True) as admin:
                admin.execute("CREATE EXTENSION timescaledb")  # as in TimescaleDB's own image: every database has it
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
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy OWNER wattledger_owner").format(
                sql.Identifier(name), sql.Identifier(database.name)
            )
        )
        try:
            yield server.database(name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
