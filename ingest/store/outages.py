"""Which errors of the database say that it cannot keep anything now, and which that it will never keep this.

A body that is refused is gone for its sender, so what may be the database's own trouble is never the body's fault: a server
that turned read-only under us (fail-over to a standby, a full disk at a provider), one that ran into its own limits, and one
whose tables or grants are not what this version needs. Then senders keep what they have and come again.
"""

from __future__ import annotations

from typing import Final

import psycopg
import sqlalchemy as sa

_READ_ONLY: Final = (psycopg.errors.ReadOnlySqlTransaction,)
_OURS: Final = (
    psycopg.errors.InternalError,  # 25006 read-only, 25P02, XX000: none of it depends on the values
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
)
OUTAGES: Final = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.TimeoutError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    *_OURS,
)
"""To be caught before any other error of the driver. SQLAlchemy's own classes come out of an engine as the first of these
(:func:`as_outages`)."""


def is_read_only(error: BaseException | None) -> bool:
    """Say whether a server refused to write because it is read-only now: its connection is of no more use."""
    return isinstance(error, _READ_ONLY)


def as_outages(engine: sa.Engine) -> None:
    """Have an engine raise OperationalError for outages of every kind, and drop connections to a read-only server."""

    @sa.event.listens_for(engine, "handle_error", retval=True)
    def explained(context: sa.engine.ExceptionContext) -> BaseException | None:
        raised, cause = context.sqlalchemy_exception, context.original_exception
        if is_read_only(cause):
            context.is_disconnect = True
        if isinstance(raised, sa.exc.OperationalError) or not isinstance(cause, _OURS):
            return None
        statement = raised.statement if isinstance(raised, sa.exc.StatementError) else None
        return sa.exc.OperationalError(statement, None, cause, connection_invalidated=is_read_only(cause))
