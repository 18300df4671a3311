"""Posts what later changes of a frozen hour come to, as lines of the first month that is open, chained like the hour's own.

Each time exactly the difference to what was posted before, so that frozen lines and corrections always add up to the newest revision. It never
touches a frozen line, and decides nothing about what the newest revision says.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any, Final

import polars as pl
import psycopg

from analytics.frames import LedgerLines
from analytics.io.book_rows import insert_posted
from analytics.io.line_names import names_of, site_name
from analytics.io.rows import fetch_frame
from analytics.model.chain import instant_text, stamp, start_of
from analytics.model.corrections import differences
from analytics.model.later import chain_version

_LINES: Final = (
    "SELECT * FROM ledger_lines WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s"
)
# Months that are closed one after another: the first hour after them is the first of the open month.
_OPEN: Final = """
WITH RECURSIVE later (at) AS (
    SELECT %(hour_at)s::timestamptz
    UNION
    SELECT period.to_at FROM later JOIN ledger_periods AS period ON period.from_at <= later.at AND period.to_at > later.at
    WHERE period.reopened_at IS NULL
      AND (period.site_id = %(site_id)s OR (period.site_id IS NULL AND %(site_id)s <> ALL (period.apart_site_ids)))
)
SELECT max(at) FROM later
"""


def post(
    connection: psycopg.Connection[Any],
    site_id: int,
    hour_at: datetime,
    from_revision: int,
    revision: int,
    run_id: int,
    reason: str,
) -> int:
    """Post the difference between two stored revisions of a frozen hour in the open month; return the number of corrections.

    ``from_revision`` 0: it had no books. Call it inside the transaction that wrote the newer one.
    """
    at = {"site_id": site_id, "hour_at": hour_at}
    before, after = (
        fetch_frame(connection, _LINES, at | {"revision": number}, LedgerLines) for number in (from_revision, revision)
    )
    moved = differences(before, after)
    if moved.is_empty():
        return 0
    row = connection.execute(_OPEN, at).fetchone()
    if row is None:
        raise AssertionError("an aggregate without GROUP BY has one row")
    holder = (
        pl.when(pl.col("pool") == "api").then("api:" + pl.col("api_key").fill_null("-")).otherwise(pl.col("holder_key"))
    )
    shown = [pl.col("tenant_id").cast(pl.String), holder, pl.col("device_model"), pl.col("charge_category")]
    named = moved.with_columns(
        pl.concat_str(*(part.fill_null("-") for part in shown), pl.lit(f"correction:{run_id}"), separator="|").alias(
            "line_key"
        ),
        pl.lit(None, pl.Int32).alias("price_id"),
        pl.lit(None, pl.Int32).alias("tariff_id"),
    )
    version = max(chain_version(before), chain_version(after))
    start = start_of_corrections(site_name(connection, site_id), hour_at, row[0], reason, version)
    chained = stamp(named, names_of(connection, named), start, secrets.token_bytes(32))
    posted = chained.drop("price_id", "tariff_id").with_columns(
        pl.lit(site_id, pl.Int32).alias("site_id"),
        pl.lit(hour_at, pl.Datetime("us", "UTC")).alias("hour_at"),
        pl.lit(row[0], pl.Datetime("us", "UTC")).alias("posted_hour_at"),
        pl.lit(from_revision, pl.Int32).alias("from_revision"),
        pl.lit(revision, pl.Int32).alias("revision"),
        pl.lit(run_id, pl.Int64).alias("run_id"),
        pl.lit(reason).alias("reason"),
    )
    insert_posted(connection, posted)
    return posted.height


def start_of_corrections(
    site: str, hour_at: datetime, posted_hour_at: datetime, reason: str, version: int = 1
) -> bytes:
    """Return the beginning of the chain of what one run posted for an hour; ``version``: the later one of the revisions it lies between."""
    return start_of(
        f"wattledger/correction/{version}", site, instant_text(hour_at), instant_text(posted_hour_at), reason
    )
