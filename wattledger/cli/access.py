"""What a command needs to work on the home's database: one transaction as a role, and a name for the audit."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from wattledger.cli import chosen_home

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy as sa

    from ingest.store.engine import Role


@contextmanager
def transaction(ctx: click.Context, role: Role) -> Iterator[sa.Connection]:
    """One transaction of the home's database, kept unless the block raises."""
    with idle_connection(ctx, role) as connection, connection.begin():
        yield connection


@contextmanager
def idle_connection(ctx: click.Context, role: Role) -> Iterator[sa.Connection]:
    """A connection outside any transaction, for work that makes its own; its engine has room for one more."""
    from wattledger.runtime import ready_database

    engine = ready_database(chosen_home(ctx)).create_engine(role, pool_size=2, application="wattledger-cli")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def driver_transaction(ctx: click.Context, role: Role) -> Iterator[psycopg.Connection[Any]]:
    """One transaction on a plain psycopg connection, kept unless the block raises."""
    from wattledger.runtime import ready_database

    with ready_database(chosen_home(ctx)).connect(role, application="wattledger-cli") as connection:
        yield connection


def actor() -> str:
    """Return who does it, for the audit; a uid without a name is common in containers."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):
        return f"uid {os.geteuid()} (command line)"
