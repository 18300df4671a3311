"""The roles and the database every embedded server has.

Roles log in directly: the socket's folder (0700) is the guard, so a password would protect nothing more. None of them is a
superuser, may create roles or bypasses row-level security; what they may do to tables is granted by the migrations.
"""

import psycopg
from psycopg import sql

from ingest.store.engine import DATABASE_NAME, ROLE_NAMES


def ensure_roles_and_database(superuser_uri: str) -> None:
    """Create the four roles and the database where missing; changes nothing that exists."""
    with psycopg.connect(superuser_uri, autocommit=True) as connection:
        present = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles").fetchall()}
        for name in ROLE_NAMES.values():
            if name not in present:
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS").format(
                        sql.Identifier(name)
                    )
                )
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE_NAME]).fetchone() is None:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(
                    sql.Identifier(DATABASE_NAME), sql.Identifier(ROLE_NAMES["owner"])
                )
            )
