"""Brings a database to this code's schema, and says where it stands.

The scripts are the checkout's ``alembic/`` or, installed from a wheel, ``ingest/store/migrations/``. Nothing here runs by
itself: a process that finds :func:`pending` migrations says so and stops; ``wattledger up`` and ``wattledger migrate`` call
:func:`upgrade`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

MINIMUM_SERVER_VERSION = 15


class MigrationError(RuntimeError):
    """The schema cannot be brought to, or compared with, this code's: an operator has to look."""


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate up to ``revision``, one transaction per migration; a second caller waits and then finds nothing to do."""
    with _connected(url) as (config, connection):
        _refuse_foreign(config, connection)
        command.upgrade(config, revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate down to ``revision`` (``base`` drops everything). For tests and for undoing a failed upgrade."""
    with _connected(url) as (config, connection):
        _refuse_foreign(config, connection)
        command.downgrade(config, revision)


def current(url: str) -> str | None:
    """Return the revision the database is at, or None for one never migrated."""
    with _connected(url) as (_, connection):
        return _current(connection)


def pending(url: str) -> tuple[str, ...]:
    """Return the revisions still to be applied, first one first; empty when the schema is this code's."""
    with _connected(url) as (config, connection):
        return pending_on(connection, config)


def pending_on(connection: sa.Connection, config: Config | None = None) -> tuple[str, ...]:
    """The same over an open connection, for health checks."""
    config = config or migration_config()
    _refuse_foreign(config, connection)
    revisions = ScriptDirectory.from_config(config).iterate_revisions("head", _current(connection) or "base")
    return tuple(script.revision for script in revisions)[::-1]


def check(url: str) -> None:
    """Raise if the database differs from the declared tables (types, defaults, comments, indexes, constraints)."""
    with _connected(url) as (config, _):
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
def _connected(url: str) -> Iterator[tuple[Config, sa.Connection]]:
    engine = sa.create_engine(sqlalchemy_url(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        version = connection.dialect.server_version_info or (0,)
        if int(version[0]) < MINIMUM_SERVER_VERSION:
            raise MigrationError(
                f"the server is PostgreSQL {version[0]}; Wattledger needs {MINIMUM_SERVER_VERSION} or newer"
            )
        yield migration_config(connection), connection


def _current(connection: sa.Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()  # reading began a transaction; Alembic wants none
    return revision


def _refuse_foreign(config: Config, connection: sa.Connection) -> None:
    revision = _current(connection)
    if revision is None:
        return
    try:
        known = ScriptDirectory.from_config(config).get_revision(revision)
    except CommandError:
        known = None
    if known is None:
        raise MigrationError(
            f"the database is at schema {revision!r}, which this version does not know; run the version that wrote it, or newer"
        )
