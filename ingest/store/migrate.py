"""Brings a database to this code's schema, and says where it stands.

The scripts are the checkout's ``alembic/`` or, installed from a wheel, ``ingest/store/migrations/``. Nothing here runs by
itself: a process that finds :func:`pending` migrations says so and stops; ``wattledger up`` and ``wattledger migrate`` call
:func:`upgrade`. Ingest and worker of the version before may run meanwhile: a migration waits briefly for a table, gives up so that
they go on, and tries again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from ingest.store import layout as layouts
from ingest.store.layout import Choice, Layout
from ingest.store.role_rights import missing_statements

MINIMUM_SERVER_VERSION = 15
LOCK_PATIENCE_S: Final = 300.0
"""How long a migration goes on trying to get its tables from whoever holds them."""
MIGRATION_LOCK: Final = 0x77_61_74_74
"""Any constant of our own: held by whoever migrates this database, so that two starting processes do not migrate at once."""
MIGRATOR_WAIT_S: Final = 300.0
"""A second process waits for the first migrator's whole run."""
LOCK_TIMEOUT: Final = "2s"
"""A statement waits only briefly for a table, because everyone who comes after it queues behind it: ingest of the version before
stands still for as long. It is tried again."""
_MIGRATOR_PAUSE_S: Final = 0.1
_PAUSE_S: Final = (0.2, 5.0)
"""Before the next try, from the first to the longest: what queued behind the last one gets its turn."""
log = logging.getLogger(__name__)
Done = TypeVar("Done")


class MigrationError(RuntimeError):
    """The schema cannot be brought to, or compared with, this code's: an operator has to look."""


def upgrade(url: str, revision: str = "head", *, layout: Layout | None = None) -> None:
    """Migrate up to ``revision``, one transaction per migration; a second caller waits and then finds nothing to do.

    ``layout``: how an empty database is to keep its days; None takes hypertables where TimescaleDB is installed in it. A
    migrated database keeps what it has. Raises MigrationError when that is not what was asked for, when the login may not
    make the roles (the message holds the SQL for somebody who may), and when a table stayed locked for five minutes.
    """
    with connected(url) as (config, connection):
        refuse_foreign(config, connection)
        _refuse_powerless(connection)
        config.attributes["layout"] = layout
        patiently(lambda: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Migrate down to ``revision`` (``base`` drops everything), asking nobody. For tests; people have ``ingest.store.retreat``."""
    with connected(url) as (config, connection):
        refuse_foreign(config, connection)
        patiently(lambda: command.downgrade(config, revision))


def chosen_layout(connection: sa.Connection, asked: Layout | None) -> Choice:
    """Return the layout for this database and make ready for it. Called by ``env.py``, under the migrators' lock."""
    choice = layouts.choose(connection, asked)
    if isinstance(choice, str):
        raise MigrationError(choice)
    try:
        layouts.prepare(connection, choice.layout)
    except sa.exc.DBAPIError as error:
        said = str(error.orig).partition("\n")[0]
        raise MigrationError(
            f"no hypertables: {said}; have an administrator run CREATE EXTENSION {layouts.EXTENSION} in this "
            "database (its server needs shared_preload_libraries = 'timescaledb'), or use --layout native"
        ) from error
    return choice


def current(url: str) -> str | None:
    """Return the revision the database is at, or None for one never migrated."""
    with connected(url) as (_, connection):
        return revision_of(connection)


def pending(url: str) -> tuple[str, ...]:
    """Return the revisions still to be applied, first one first; empty when the schema is this code's."""
    with connected(url) as (config, connection):
        return pending_on(connection, config)


def pending_on(connection: sa.Connection, config: Config | None = None) -> tuple[str, ...]:
    """The same over an open connection, for health checks."""
    config = config or migration_config()
    refuse_foreign(config, connection)
    revisions = ScriptDirectory.from_config(config).iterate_revisions("head", revision_of(connection) or "base")
    return tuple(script.revision for script in revisions)[::-1]


def layout_of(url: str) -> Choice:
    """Return how a migrated database keeps its days, and why, as recorded when it was made."""
    with connected(url) as (_, connection):
        return layouts.recorded(connection)


def check(url: str) -> None:
    """Raise if the database differs from the declared tables (types, defaults, comments, indexes, constraints)."""
    with connected(url) as (config, _):
        command.check(config)


def scripts_folder() -> Path:
    """Return where the migrations are: packaged beside this module, or in the checkout."""
    packaged = Path(__file__).parent / "migrations"
    checkout = Path(__file__).parents[2] / "alembic"
    for folder in (packaged, checkout):
        if (folder / "env.py").is_file():
            return folder
    raise MigrationError(
        f"no migrations found in {packaged} or {checkout}; the installation is incomplete, reinstall it"
    )


def sqlalchemy_url(url: str | sa.URL) -> sa.URL:
    """Return a libpq URL (``postgresql://…``) with the driver this project uses."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise MigrationError(
            f"{parsed.render_as_string()} is not a PostgreSQL URL; use postgresql://user@host/database"
        )
    return parsed.set(drivername="postgresql+psycopg")


def migration_config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def migrators_lock(connection: sa.Connection) -> Iterator[None]:
    """Be the one migrator of this database as long as the block lasts; whatever transaction it leaves open is rolled back.

    Raises MigrationError where another still is after MIGRATOR_WAIT_S.
    """
    deadline = time.monotonic() + MIGRATOR_WAIT_S
    # Asked again and again instead of waited for in a statement: an index that is made while others write waits until every
    # statement that began before it has ended, and would wait for who waits for it.
    while not connection.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": MIGRATION_LOCK}).scalar_one():
        connection.commit()
        if time.monotonic() > deadline:
            raise MigrationError(
                f"another process has been migrating this database for {MIGRATOR_WAIT_S:.0f} s; let it end, then try again"
            )
        time.sleep(_MIGRATOR_PAUSE_S)
    connection.execute(sa.text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.commit()  # session state survives; Alembic must find no transaction open to run one per migration
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
        connection.execute(sa.text("RESET lock_timeout"))
        connection.commit()


@contextmanager
def connected(url: str) -> Iterator[tuple[Config, sa.Connection]]:
    """Open a connection as the URL's login, with Alembic's settings for it; raises MigrationError for a server too old."""
    engine = sa.create_engine(sqlalchemy_url(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        version = connection.dialect.server_version_info or (0,)
        if int(version[0]) < MINIMUM_SERVER_VERSION:
            raise MigrationError(
                f"the server is PostgreSQL {version[0]}; Wattledger needs {MINIMUM_SERVER_VERSION} or newer: upgrade the server "
                "(pg_upgrade, or dump and restore), or name another in WATTLEDGER_DATABASE_URL"
            )
        yield migration_config(connection), connection


def patiently(migrate: Callable[[], Done]) -> Done:
    """Run migrations again as long as somebody else's locks are in the way; what was committed stays done."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    pause_s = _PAUSE_S[0]
    while True:
        try:
            return migrate()
        except sa.exc.OperationalError as error:
            if not isinstance(error.orig, (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)):
                raise
            said = str(error.orig).partition("\n")[0]
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"a migration could not get its locks in {LOCK_PATIENCE_S:.0f} s ({said}); what was done so far stays. End "
                    "what holds them (in pg_stat_activity the oldest xact_start comes first), then migrate again"
                ) from error
            log.info("a migration waits for others (%s); it tries again", said)
            time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - only to keep two migrators apart
            pause_s = min(2 * pause_s, _PAUSE_S[1])


def _refuse_powerless(connection: sa.Connection) -> None:
    statements = missing_statements(connection)
    connection.rollback()
    if statements:
        raise MigrationError(
            "this login may not make the roles that the schema needs; have an administrator of the server run\n  "
            + "\n  ".join(statements)
            + "\nand migrate again"
        )


def revision_of(connection: sa.Connection) -> str | None:
    """The same as :func:`current` over an open connection."""
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()  # reading began a transaction; Alembic wants none
    return revision


def refuse_foreign(config: Config, connection: sa.Connection) -> None:
    """Raise MigrationError for a database that a version newer than this one migrated."""
    revision = revision_of(connection)
    if revision is None:
        return
    try:
        known = ScriptDirectory.from_config(config).get_revision(revision)
    except CommandError:
        known = None
    if known is None:
        raise MigrationError(
            f"the database is at schema {revision!r}, which this version does not know; run the version that wrote it, or newer "
            "(to go back, that version's `wattledger downgrade` comes first: docs/upgrading.md)"
        )
