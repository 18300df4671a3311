"""Runs migrations: one migrator at a time, one transaction per migration, never waiting long for a lock.

An empty database gets its layout first (``ingest.store.layout``).

It refuses to guess a database: the caller passes one (``ingest.store.migrate``) or WATTLEDGER_DATABASE_URL names it.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import sqlalchemy as sa
from alembic import context
from sqlalchemy.dialects.postgresql import base as postgresql

from ingest.store import layout
from ingest.store.migrate import MigrationError, chosen_layout, migrators_lock, sqlalchemy_url
from ingest.store.tables import metadata
from ingest.store.tables.columns import Xid8

log = logging.getLogger("ingest.store.migrate")
PARTITION = re.compile(r"_p\d{8}(_|$)")

# Reflection knows PostgreSQL's types by name; xid8 is missing from SQLAlchemy's list.
postgresql.ischema_names.setdefault("xid8", Xid8)


def include_object(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:  # noqa: ARG001, FBT001
    """Leave out daily partitions and what hangs on them: they come and go at run time (ingest/store/partitions.py)."""
    owner = item.name if kind == "table" else getattr(getattr(item, "table", None), "name", None)
    return not (reflected and owner is not None and PARTITION.search(owner))


def run(connection: sa.Connection, asked: layout.Layout | None = None) -> None:
    with migrators_lock(connection):
        choice = chosen_layout(connection, asked)
        connection.execute(
            sa.text("SELECT set_config('wattledger.layout_reason', :reason, false)"), {"reason": choice.reason}
        )
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            include_object=include_object,
            compare_type=True,
            compare_server_default=True,
            transaction_per_migration=True,
        )
        with layout.tables_made_as(choice.layout), context.begin_transaction():
            context.run_migrations()
        if layout.found(connection) is layout.Layout.HYPERTABLES:
            _keep_in_columns(connection)


def _keep_in_columns(connection: sa.Connection) -> None:
    """Turn the columnstore on where it may be. It saves space and decides nothing, so a refusal stops no upgrade."""
    try:
        layout.keep_in_columns(connection)
        connection.commit()
    except sa.exc.DBAPIError as error:
        connection.rollback()
        log.warning("days stay in rows until they are sealed: TimescaleDB gives no columnstore: %s", error.orig)


def main() -> None:
    if context.is_offline_mode():
        raise MigrationError("migrations run against a live database; --sql is not supported")
    given: sa.Connection | None = context.config.attributes.get("connection")
    if given is not None:
        run(given, context.config.attributes.get("layout"))
        return
    url = os.environ.get("WATTLEDGER_DATABASE_URL")
    if not url:
        raise MigrationError("no database named; set WATTLEDGER_DATABASE_URL=postgresql://… and run again")
    engine = sa.create_engine(sqlalchemy_url(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        run(connection)


main()
