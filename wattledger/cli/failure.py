"""Turns the errors a person can do something about into one line and exit code 2; everything else keeps its traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import click

from wattledger.errors import WattledgerError

EXIT_UNANSWERED: Final = 2
SPEAKING: Final = frozenset(
    {
        # what is installed and what runs
        "wattledger.home.HomeError",
        "wattledger.ports.PortError",
        "wattledger.standing.StandingError",
        "wattledger.supervise.AlreadyUpError",
        "wattledger.supervise.ChildFailedError",
        "wattledger.simulate.cursor.CursorError",
        "wattledger.simulate.feed.FeedError",
        "collector.errors.AgentError",
        # the database
        "ingest.store.embedded.errors.EmbeddedError",
        "ingest.store.engine.DatabaseUrlError",
        "ingest.store.migrate.MigrationError",
        # settings, files and what was asked for
        "ingest.settings.SettingsError",
        "ingest.importers.errors.ImportFileError",
        "ingest.pollers.errors.WatchError",
        "ingest.store.tenancy.TenantPathError",
        "analytics.errors.CloseError",
        "analytics.io.bindings.BindingsError",
        "analytics.io.restate.RestateError",
        "analytics.io.diffs.NoSuchHourError",
        "analytics.io.tenant_moves.TenantMoveError",
        "analytics.io.budget_policy.PolicyError",
        "analytics.io.statements.StatementError",
        "analytics.io.gate_reads.SiteError",
        # control planes: Slurm and what may follow
        "analytics.actions.errors.PlaneError",
    }
)
"""Errors whose message says what failed and what to do. By name, because importing them all would cost `--help` seconds."""
DATABASE_TROUBLE: Final = frozenset({"psycopg.OperationalError", "sqlalchemy.exc.OperationalError"})
RIGHTS_MISSING: Final = "psycopg.errors.InsufficientPrivilege"
SERVICE_DOWN: Final = "httpx.TransportError"
_ADVICE: Final = "is it running? Try `wattledger up` or `wattledger doctor`"


@contextmanager
def explained() -> Iterator[None]:
    """Print a known error as `error: what failed, then what to do` and exit with 2."""
    try:
        yield
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        fail(message)


def explanation(error: Exception) -> str | None:
    """Return what to tell a person about an error, None for one that is a fault of ours."""
    names = _names(error)
    if isinstance(error, WattledgerError) or names & SPEAKING:
        return str(error)
    cause = getattr(error, "orig", None) or error  # SQLAlchemy wraps what the driver raised
    if RIGHTS_MISSING in _names(cause):
        return f"the database refuses: {_first_line(cause)}; its user must be a member of the roles wattledger_*"
    if names & DATABASE_TROUBLE:
        # With an SQLSTATE the server did answer: a lock timeout, a full disk, a shutdown.
        if getattr(cause, "sqlstate", None):
            return f"the database could not do it: {_first_line(cause)}; try again, and see `wattledger doctor`"
        return f"the database does not answer: {_first_line(cause)}; {_ADVICE}"
    if SERVICE_DOWN in names:
        return f"the service does not answer: {error}; {_ADVICE}"
    if isinstance(error, OSError):
        return _about_the_system(error)
    return None


def fail(message: str) -> NoReturn:
    """Print the message on standard error and exit with 2."""
    click.echo(f"error: {message}", err=True)
    sys.exit(EXIT_UNANSWERED)


def _about_the_system(error: OSError) -> str | None:
    """Explain a file that cannot be used and what took too long; any other failed system call is a fault of ours."""
    if isinstance(error, PermissionError):
        return f"no permission: {error}"
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, TimeoutError) and error.errno is None else None


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
