"""Turns the errors a person can do something about into one line and exit code 2; everything else keeps its traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from wattledger.errors import WattledgerError

EXIT_UNANSWERED: Final = 2
SPEAKING: Final = frozenset(
    {
        "analytics.io.bindings.BindingsError",
        "analytics.io.budget_policy.PolicyError",
        "analytics.io.statements.StatementError",
        "ingest.importers.errors.ImportFileError",
        "ingest.settings.SettingsError",
        "ingest.store.embedded.errors.EmbeddedError",
        "ingest.store.engine.DatabaseUrlError",
        "ingest.store.migrate.MigrationError",
        "wattledger.home.HomeError",
        "wattledger.ports.PortError",
        "wattledger.simulate.cursor.CursorError",
        "wattledger.simulate.feed.FeedError",
        "wattledger.standing.StandingError",
        "wattledger.supervise.AlreadyUpError",
        "wattledger.supervise.ChildFailedError",
    }
)
"""Errors whose message says what failed and what to do. By name, because importing them all would cost `--help` seconds."""
DATABASE_DOWN: Final = frozenset({"psycopg.OperationalError", "sqlalchemy.exc.OperationalError"})
SERVICE_DOWN: Final = frozenset({"httpx.TransportError"})
_ADVICE: Final = "is it running? Try `wattledger up` or `wattledger doctor`"


@contextmanager
def explained() -> Iterator[None]:
    """Print a known error as `error: what failed, then what to do` and exit with 2."""
    try:
        yield
    except PermissionError as error:
        fail(f"no permission: {error}")
    except WattledgerError as error:
        fail(str(error))
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        fail(message)


def explanation(error: Exception) -> str | None:
    """Return what to tell a person about an error, None for one that is a fault of ours."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if names & SPEAKING:
        return str(error)
    if names & DATABASE_DOWN:
        first_line = str(error).strip().partition("\n")[0]
        return f"the database does not answer: {first_line}; {_ADVICE}"
    if names & SERVICE_DOWN:
        return f"the service does not answer: {error}; {_ADVICE}"
    return None


def fail(message: str) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(EXIT_UNANSWERED)
