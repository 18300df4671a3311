"""Turns the errors a person can do something about into one line and exit code 2; everything else keeps its traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
import httpx
import psycopg

from wattledger.errors import WattledgerError

EXIT_UNANSWERED = 2


@contextmanager
def explained() -> Iterator[None]:
    """Print a known error as `error: what failed, then what to do` and exit with 2."""
    try:
        yield
    except WattledgerError as error:
        fail(str(error))
    except psycopg.OperationalError as error:
        fail(f"the database does not answer: {str(error).strip()}; is it running? Try `wattledger up` or `wattledger doctor`")
    except httpx.TransportError as error:
        fail(f"the service does not answer: {error}; is it running? Try `wattledger up` or `wattledger doctor`")
    except PermissionError as error:
        fail(f"no permission: {error}")


def fail(message: str) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(EXIT_UNANSWERED)
