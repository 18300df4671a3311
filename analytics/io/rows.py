"""Runs a query and returns a typed frame: the way from SQL to the model's tables, and one for many rows.

Column order and types come from the frame's schema; a column the query does not return is an error, not a null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString, TypeVar

import dataframely as dy
import polars as pl
import psycopg
from psycopg.types.numeric import Int8BinaryLoader

from ingest.store.arrow import Fetch

TIMESTAMPTZ_OID: Final = 1184
_EPOCH_US: Final = 946_684_800_000_000
"""2000-01-01, from which PostgreSQL counts, in Unix microseconds."""
S = TypeVar("S", bound=dy.Schema)


def fetch_frame(
    connection: psycopg.Connection[Any], query: LiteralString, parameters: Mapping[str, Any], schema: type[S]
) -> dy.DataFrame[S]:
    """Return the query's rows as a validated frame of ``schema``; columns are matched by name."""
    with connection.cursor(binary=True) as cursor:
        cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
        cursor.execute(query, parameters)
        if cursor.description is None:
            raise TypeError("the query returns no rows at all; fetch_frame wants a SELECT")
        names = [column.name for column in cursor.description]
        instants = {column.name for column in cursor.description if column.type_code == TIMESTAMPTZ_OID}
        rows = cursor.fetchall()
    types = schema.create_empty().schema
    missing = [name for name in types if name not in names]
    if missing:
        raise TypeError(f"{schema.__name__} wants {', '.join(missing)}, which the query does not return")
    # Column by column, of which all values say the type: a share of a board may come after a thousand boards held as a whole.
    values = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    frame = pl.DataFrame(
        [
            (_instants if name in instants else pl.Series)(name, values[name]).cast(kind, strict=True)
            for name, kind in types.items()
        ]
    )
    return schema.validate(frame)


def fetch_many(
    connection: psycopg.Connection[Any],
    fetch: Fetch,
    query: LiteralString,
    parameters: Mapping[str, Any],
    schema: type[S],
) -> dy.DataFrame[S]:
    """Return the same by ``fetch``, of a session in the snapshot of ``connection``: for many rows, which take a fifth of the time so.

    Numbers of any length, UUIDs and intervals do not come through it.
    """
    with psycopg.ClientCursor(connection) as cursor:
        rows = fetch(cursor.mogrify(query, parameters))
    types = schema.create_empty().schema
    missing = [name for name in types if name not in rows.columns]
    if missing:
        raise TypeError(f"{schema.__name__} wants {', '.join(missing)}, which the query does not return")
    return schema.validate(rows.select(pl.col(name).cast(kind) for name, kind in types.items()))


def _instants(name: str, values: Sequence[int | None]) -> pl.Series:
    """Return instants as the server sends them, microseconds of its own epoch: as objects of Python they took most of the time."""
    return (pl.Series(name, values, dtype=pl.Int64) + _EPOCH_US).cast(pl.Datetime("us", "UTC"))
