"""Who may see which rows: the tenant subtree of one transaction, and what a subtree covers.

The api role sees rows of tenant-bearing tables only inside :func:`tenant_scope`; everything fails closed, to no rows.
Roles with write access see all rows, but PostgreSQL refuses ``COPY … FROM`` into a table under row-level security to any
role subject to it: fill a temporary table by COPY and ``INSERT … SELECT`` from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

ALL_TENANTS: Final = "*"
_PATH: Final = re.compile(r"[^/\s][^/]*(/[^/]+)*")
_MAX_PATH_LENGTH: Final = 512


class TenantPathError(ValueError):
    """The text is not a tenant path."""


def checked_path(path: str) -> str:
    """Return a tenant path as it is (``acme/research/nlp``), or raise TenantPathError."""
    if path == ALL_TENANTS or len(path) > _MAX_PATH_LENGTH or not _PATH.fullmatch(path) or not path.isprintable():
        raise TenantPathError(
            f"{path!r:.80} is not a tenant path; write names joined by single slashes, like acme/research"
        )
    return path


def covers(subtree: str | None, path: str) -> bool:
    """Say whether a token's subtree includes a tenant path; None covers nothing, '*' everything."""
    if not subtree:
        return False
    return subtree in (ALL_TENANTS, path) or path.startswith(f"{subtree}/")


@contextmanager
def tenant_scope(conn: sa.Connection, path: str | None) -> Iterator[None]:
    """Let the api role see a subtree's rows ('*' = all tenants, None = none) until the block or the transaction ends.

    An error inside rolls the transaction back, so no scope outlives its block. Needs a transaction: with autocommit
    nothing is seen.
    """
    scope = path if path is None or path == ALL_TENANTS else checked_path(path)
    before = conn.execute(sa.select(sa.func.current_setting("wattledger.tenant", True))).scalar_one()
    _set(conn, scope)
    try:
        yield
    except BaseException:
        conn.rollback()
        raise
    _set(conn, before)


def _set(conn: sa.Connection, scope: str | None) -> None:
    conn.execute(sa.select(sa.func.set_config("wattledger.tenant", scope or "", True)))
