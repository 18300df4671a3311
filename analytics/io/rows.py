"""Runs a query and returns a typed frame: the one way from SQL to the model's tables.

Column order and types come from the frame's schema; a column the query does not return is an error, not a null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString, TypeVar

import dataframely as dy
import polars as pl
import psycopg

S = TypeVar("S", bound=dy.Schema)


def fetch_frame(
    connection: psycopg.Connection[Any], query: LiteralString, parameters: Mapping[str, Any], schema: type[S]
) -> dy.DataFrame[S]:
    """Return the query's rows as a validated frame of ``schema``; columns are matched by name."""
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        if cursor.description is None:
            raise TypeError("the query returns no rows at all; fetch_frame wants a SELECT")
        names = [column.name for column in cursor.description]
        rows = cursor.fetchall()
    types = schema.create_empty().schema
    missing = [name for name in types if name not in names]
    if missing:
        raise TypeError(f"{schema.__name__} wants {', '.join(missing)}, which the query does not return")
    # All rows say what a column is: a share of a board may come after a thousand boards held as a whole.
    frame = (
        pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
        if rows
        else pl.DataFrame(schema=dict.fromkeys(names, pl.Null))
    )
    wanted = frame.select(pl.col(name).cast(kind, strict=True) for name, kind in types.items())
    return schema.validate(wanted)
