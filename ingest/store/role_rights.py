"""Whether the login that migrates can make the four roles, and what an administrator runs where it cannot.

And whether a service's login could become the owner. Managed servers often give the owner of a database neither superuser nor CREATEROLE. Refuses to guess: it reads the
catalog and changes nothing.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
import sqlalchemy as sa

from ingest.store.engine import ROLE_NAMES

_ROLES = """
SELECT name, r.oid IS NOT NULL AS present,
       CASE WHEN r.oid IS NULL THEN false ELSE pg_has_role(current_user, r.oid, 'USAGE') END AS joined,
       CASE WHEN r.oid IS NULL THEN false ELSE pg_has_role(current_user, r.oid, 'MEMBER WITH ADMIN OPTION') END AS may_join
FROM unnest(CAST(:names AS text[])) AS name LEFT JOIN pg_roles AS r ON r.rolname = name ORDER BY name
"""
_SELF = """
SELECT quote_ident(current_user), rolsuper, rolcreaterole, current_setting('server_version_num')::int >= 160000
FROM pg_roles WHERE rolname = current_user
"""
_OWNING: Final = """
SELECT session_user FROM pg_roles AS owner
WHERE owner.rolname = 'wattledger_owner' AND pg_has_role(session_user, owner.oid, 'MEMBER')
"""


def owning_login(connection: psycopg.Connection[Any]) -> str | None:
    """Return the login of a connection if it may become the owner of our tables, whatever role it is now; else None."""
    row = connection.execute(_OWNING).fetchone()
    return None if row is None else str(row[0])


def missing_statements(conn: sa.Connection) -> tuple[str, ...]:
    """Return the SQL an administrator has to run before this login can migrate; empty when it needs nobody."""
    login, is_superuser, creates_roles, has_options = conn.execute(sa.text(_SELF)).one()
    if is_superuser:
        return ()
    # Before version 16 whoever may create roles may also join any that is not a superuser's.
    joins_any = creates_roles and not has_options
    create, join = [], []
    for name, present, joined, may_join in conn.execute(sa.text(_ROLES), {"names": list(ROLE_NAMES.values())}):
        if not present and not creates_roles:
            create.append(f"CREATE ROLE {name} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;")
        if (not present and not creates_roles) or (present and not joined and not may_join and not joins_any):
            join.append(name)
    if not join:
        return ()
    options = " WITH INHERIT TRUE, SET TRUE" if has_options else ""
    return (*create, f"GRANT {', '.join(join)} TO {login}{options};")
